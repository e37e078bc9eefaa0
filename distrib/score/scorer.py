"""The scorer: the only place where a model's output becomes a recommendation."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from distrib.batch import Batch, cells_by_block, item_blocks
from distrib.checkpoint.bundle import load_bundle
from distrib.errors import DataError
from distrib.models.base import Model, Opinion, State
from distrib.storage import Folder
from distrib.topk import UNWANTED, items_of, merge, rank_keys
from distrib.vocabulary import Vocabulary

_QUANTILE_SAMPLE = 4096


class Recommendations(NamedTuple):
    """The best items of each user, best first."""

    item_BK: Tensor
    """int64 positions; -1 where a user has fewer than K candidates."""

    score_BK: Tensor
    """float32; what the list is sorted by: the model's ranking score, or the expected rating."""

    opinion: Opinion | None
    """Probability, expected rating and its distribution for each item, where the model tells."""

    deviation_BK: Tensor | None = None
    """float32; standard deviation of the expected rating over the posteriors, where it is told."""


class Prediction(NamedTuple):
    """Expected ratings of some cells."""

    rating_N: Tensor
    """float32, cut to the scale of the levels."""

    uncut_N: Tensor | None
    """As the model gave them; None for a mean over the levels, which lies on the scale."""


class Scorer:
    """A model on one device, asked for whole batches of users and blocks of items."""

    def __init__(
        self,
        model: Model,
        vocabulary: Vocabulary,
        *,
        device: torch.device | str = "cpu",
        block_items: int = 4096,
    ) -> None:
        self.model = model.to(device)
        self.vocabulary = vocabulary
        self.device = torch.device(device)
        self.blocks = item_blocks(len(vocabulary), block_items)
        support_I = torch.from_numpy(vocabulary.train_count_IL.sum(1))
        self.support_I = support_I.to(self.device)

    @classmethod
    def from_bundle(cls, folder: Folder, *, device: torch.device | str = "cpu") -> "Scorer":
        """Load a bundle; see `load_bundle`."""
        bundle = load_bundle(folder)
        return cls(bundle.model, bundle.vocabulary, device=device)

    @torch.inference_mode()
    def recommend(self, source: Batch, seen: Batch | None, k: int) -> Recommendations:
        """Return each user's best items by the model's ranking score, ties to the lower position.

        Args:
            source: Histories.
            seen: Items to leave out; None leaves nothing out.
            k: How many.

        Returns:
            Lists of ``min(k, items)``.
        """

        def keys(output: Tensor, low: int) -> Tensor:
            return rank_keys(self.model.ranking_score(output), low)

        state = self.model.encode(source.to(self.device))
        best, output = self._best(state, self._hidden(source, seen), k, keys)
        item_BK, score_BK = items_of(best), self.model.ranking_score(output)
        deviation_BK = self._deviation(state, item_BK)
        return Recommendations(item_BK.cpu(), score_BK.cpu(), self._opinion(output), deviation_BK)

    @torch.inference_mode()
    def serendipitous(
        self, source: Batch, seen: Batch | None, k: int, *, unlikely_share: float, min_support: int
    ) -> Recommendations:
        """Return items that a user is unlikely to meet and likely to love, by expected rating.

        An item is unlikely when it is in the share ``unlikely_share`` of the catalogue with the
        lowest log-odds of interaction (above 4,096 items: of an even sample of the catalogue).

        Source: the serendipity list of "Conv4Rec", IEEE TNNLS 2025; thresholds are ours.

        Args:
            source: Histories.
            seen: Items to leave out; None leaves nothing out.
            k: How many.
            unlikely_share: Above 0, at most 1.
            min_support: Training ratings that an item must have.

        Returns:
            Lists of at most ``k``, with the expected rating as score.

        Raises:
            DataError: The model does not tell ratings and probabilities.
        """
        batch = source.to(self.device)
        step = max(1, -(-len(self.vocabulary) // _QUANTILE_SAMPLE))
        state = self.model.encode(batch)
        sample = self.model.decode(state, slice(0, None, step)).float()
        told = self.model.opinion(sample)
        if told is None or told.probability_BI is None:
            raise DataError(
                f"{type(self.model).__name__} tells not both ratings and probabilities, so has no "
                "serendipitous list; set score.serendipitous_k = 0, or use conv4rec"
            )
        odds = self.model.ranking_score(sample)
        place = max(1, int(unlikely_share * odds.shape[1]))
        limit_B1 = odds.kthvalue(place, dim=1, keepdim=True).values

        def keys(output: Tensor, low: int) -> Tensor:
            opinion = self.model.opinion(output)
            rating_BI = opinion.rating_BI if opinion is not None else output
            high = low + output.shape[1]
            unlikely_BI = self.model.ranking_score(output) <= limit_B1
            wanted_BI = unlikely_BI & (self.support_I[low:high] >= min_support)
            return torch.where(wanted_BI, rank_keys(rating_BI, low), UNWANTED)

        best, output = self._best(state, self._hidden(source, seen), k, keys)
        opinion = self._opinion(output)
        assert opinion is not None  # asked above
        return Recommendations(items_of(best).cpu(), opinion.rating_BI, opinion)

    @torch.inference_mode()
    def predict(self, source: Batch, target: Batch) -> Prediction | None:
        """Return the expected rating of each target cell; None where the model tells none."""
        target = target.to(self.device)
        output_N = self.model.decode_cells(self.model.encode(source.to(self.device)), target)
        opinion = self.model.opinion(output_N.float()[None])
        if opinion is None:
            return None
        is_point = opinion.level_BIL is None
        raw_N = opinion.rating_BI[0].cpu()
        return Prediction(self._on_scale(raw_N), raw_N if is_point else None)

    @torch.inference_mode()
    def expected_interactions(self, source: Batch) -> Tensor | None:
        """Return the sum of each user's probabilities over all items, float64 ``[B]``, if told."""
        state = self.model.encode(source.to(self.device))
        odds = self.model.odds()
        total_B = torch.zeros(source.num_users, dtype=torch.float64, device=self.device)
        for low, high in self.blocks:
            if odds is not None:
                rows = tuple(table[low:high] for table in odds.tables)
                probability_BI = torch.sigmoid(odds.decode_rows(state, rows).float())
            else:
                opinion = self.model.opinion(self.model.decode(state, slice(low, high)).float())
                if opinion is None or opinion.probability_BI is None:
                    return None
                probability_BI = opinion.probability_BI
            total_B += probability_BI.sum(1, dtype=torch.float64)
        return total_B.cpu()

    def _opinion(self, output: Tensor) -> Opinion | None:
        """Return what the model thinks, on the CPU, ratings cut to the scale."""
        opinion = self.model.opinion(output)
        if opinion is None:
            return None
        found = Opinion(*(None if part is None else part.cpu() for part in opinion))  # type: ignore[arg-type]
        return found._replace(rating_BI=self._on_scale(found.rating_BI))

    def _on_scale(self, rating: Tensor) -> Tensor:
        levels = self.vocabulary.levels
        return rating.clamp(levels[0], levels[-1])

    def _deviation(self, state: State, item_BK: Tensor) -> Tensor | None:
        """Return how sure the model is of what it thinks of these items, on the CPU."""
        length, k = item_BK.shape
        bounds = torch.arange(length + 1, device=self.device) * k
        item_N = item_BK.clamp(min=0).flatten()
        cells = Batch(bounds[:-1], bounds, item_N, torch.zeros_like(item_N, dtype=torch.float32))
        variance_N = self.model.variance_cells(state, cells)
        return None if variance_N is None else variance_N.float().sqrt().view(length, k).cpu()

    def _outputs(self, state: State) -> Iterator[tuple[int, Tensor]]:
        """Yield, block by block, the first item and the model's output in float32."""
        for low, high in self.blocks:
            yield low, self.model.decode(state, slice(low, high)).float()

    def _hidden(self, source: Batch, seen: Batch | None) -> Batch:
        """Return what must not be recommended, on the device."""
        nothing = torch.zeros(len(source.item_N), dtype=torch.bool, device=source.item_N.device)
        return (source.keep(nothing) if seen is None else seen).to(self.device)

    def _best(
        self, state: State, hidden: Batch, k: int, keys: Callable[[Tensor, int], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the best keys ``[B, K]`` and the model's output for their items."""
        best = torch.empty(hidden.num_users, 0, dtype=torch.int64, device=self.device)
        kept: Tensor | None = None
        for (low, output), cells in zip(
            self._outputs(state), cells_by_block(hidden, self.blocks), strict=True
        ):
            key_BI = keys(output, low)
            key_BI[cells.row_M, cells.column_M] = UNWANTED
            best, column_BK = merge(best, key_BI, k)
            joined = output if kept is None else torch.cat([kept, output], dim=1)
            row_B1 = torch.arange(joined.shape[0], device=self.device)[:, None]
            kept = joined[row_B1, column_BK]
        assert kept is not None  # there is at least one block
        return best, kept
