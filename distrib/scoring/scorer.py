"""The scorer: the one implementation of recommendations from model output."""

from typing import NamedTuple

import torch
from torch import Tensor

from distrib.batch import Batch
from distrib.checkpoint.bundle import load_bundle
from distrib.devices import fetched
from distrib.errors import CheckpointError, DataError
from distrib.models.base import Model, UserState
from distrib.models.capabilities import (
    ReadsLatest,
    interaction_head,
    item_vectors,
    pair_variance,
    user_embedding,
)
from distrib.models.outputs import Prediction
from distrib.scoring.policy import Precision
from distrib.scoring.results import NoveltyFilter, PairPredictions, Recommendations
from distrib.scoring.rules import Rules
from distrib.scoring.search import Limits, Mask, RankingHead, TopKSearch, pairs_of
from distrib.storage import Folder
from distrib.topk import items_of, scores_of
from distrib.vocabulary import Vocabulary

_EXPLAINED_PAIRS = 1 << 22
_QUANTILE_SAMPLE = 4096
_NO_RULES = Rules()


class Encoded(NamedTuple):
    """Encoded users; many models spend most of their time there."""

    source: Batch
    history: Batch
    """The source on the model's device."""

    users: UserState


class Scorer:
    """A model on one device that scores batches of users against chunks of items.

    Args:
        model: The model.
        vocabulary: The model's items.
        device: Device to score on.
        chunk_items: Items decoded at a time; None for as many as keep the scores of a batch within
            64 MB, at least 4,096.
        precision: ``bf16`` selects twice as many candidates by bfloat16 products and ranks them by
            float32 scores; if rounding could have excluded an item, the whole batch is ranked in
            float32. For models with item embeddings; all others score in float32.
    """

    def __init__(
        self,
        model: Model,
        vocabulary: Vocabulary,
        *,
        device: torch.device | str = "cpu",
        chunk_items: int | None = None,
        precision: Precision = "fp32",
    ) -> None:
        self.model = model.to(device)
        self.vocabulary = vocabulary
        self.device = torch.device(device)
        is_halved = precision == "bf16" and item_vectors(model) is not None
        self.search = TopKSearch(self.model, len(vocabulary), chunk_items, is_halved=is_halved)
        support_I = torch.from_numpy(vocabulary.train_count_IL.sum(1))
        self.support_I = support_I.to(self.device)

    @classmethod
    def from_bundle(
        cls, folder: Folder, *, device: torch.device | str = "cpu", precision: Precision = "fp32"
    ) -> "Scorer":
        """Load a bundle; see `load_bundle`."""
        bundle = load_bundle(folder)
        return cls(bundle.model, bundle.vocabulary, device=device, precision=precision)

    @torch.inference_mode()
    def encode(self, source: Batch | Encoded) -> Encoded:
        """Encode users once, for several calls; encoded ones stay as they are."""
        if isinstance(source, Encoded):
            return source
        history = source.to(self.device)
        return Encoded(source, history, self.model.encode(history))

    @torch.inference_mode()
    def recommend(
        self,
        source: Batch | Encoded,
        seen: Batch | None,
        k: int,
        *,
        rules: Rules = _NO_RULES,
        limits: Limits | None = None,
        with_predictions: bool = True,
    ) -> Recommendations:
        """Return each user's best items by ranking score; ties go to the lower position.

        Args:
            source: Histories.
            seen: Items to leave out; None leaves nothing out.
            k: Length of the lists.
            rules: Rules for all users.
            limits: Candidates of users who are restricted to some items.
            with_predictions: Whether to return predictions and deviations, too.

        Returns:
            Lists of ``min(k, items)``.
        """
        source, history, state = self.encode(source)
        hidden = history if seen is source else _nothing(source) if seen is None else seen
        mask = Mask.on(self.device, hidden, limits)
        key_BK, output = self.search.best(
            state, mask, k, self._ranked(with_predictions=with_predictions), rules
        )
        item_BK = items_of(key_BK)
        found = Recommendations(
            item_BK,
            scores_of(key_BK),
            self._predictions(state, item_BK, output) if with_predictions else None,
            self._deviation(state, item_BK) if with_predictions else None,
        )
        return fetched(found)

    @torch.inference_mode()
    def serendipitous(
        self,
        source: Batch,
        seen: Batch | None,
        k: int,
        *,
        novel: NoveltyFilter,
        rules: Rules = _NO_RULES,
        limits: Limits | None = None,
    ) -> Recommendations:
        """Return items of low interaction probability, ranked by expected rating.

        Source: the serendipity list of "Conv4Rec", IEEE TNNLS 2025.
        Differs from the source: the thresholds.

        Args:
            source: Histories.
            seen: Items to leave out; None leaves nothing out.
            k: Length of the lists.
            novel: Which items are novel.
            rules: Only allowed items and group caps apply.
            limits: Candidates of users who are restricted to some items.

        Returns:
            Lists of at most ``k``, with the expected rating as score.

        Raises:
            DataError: The model does not predict both ratings and probabilities.
        """
        step = max(1, -(-len(self.vocabulary) // _QUANTILE_SAMPLE))
        state = self.model.encode(source.to(self.device))
        sample = self.model.decode(state, slice(0, None, step)).float()
        prediction = self.model.output.predict(sample)
        if prediction is None or prediction.probability_BI is None:
            raise DataError(
                f"{type(self.model).__name__} does not predict both ratings and probabilities, "
                "which the serendipitous list needs; set score.serendipitous_k = 0, or use conv4rec"
            )
        odds = self.model.output.ranking_score(sample)
        place = max(1, int(novel.share * odds.shape[1]))
        limit_B1 = odds.kthvalue(place, dim=1, keepdim=True).values

        def score(output: Tensor, low: int) -> Tensor:
            prediction = self.model.output.predict(output)
            rating_BI = prediction.rating_BI if prediction is not None else output
            high = low + output.shape[1]
            novel_BI = self.model.output.ranking_score(output) <= limit_B1
            wanted_BI = novel_BI & (self.support_I[low:high] >= novel.min_support)
            return torch.where(wanted_BI, rating_BI, -torch.inf)

        hidden = _nothing(source) if seen is None else seen
        mask = Mask.on(self.device, hidden, limits)
        tables, decode = self.model.item_tables(), self.model.decode_rows
        ranked = RankingHead(tables, decode, score, keeps=True, is_ranking=False)
        kept = Rules(allowed_I=rules.allowed_I, group_I=rules.group_I, at_most=rules.at_most)
        key_BK, output = self.search.best(state, mask, k, ranked, kept)
        assert output is not None  # keeps=True
        prediction = self._predict(output)
        assert prediction is not None  # checked above
        return fetched(Recommendations(items_of(key_BK), prediction.rating_BI, prediction))

    @torch.inference_mode()
    def predict(self, source: Batch | Encoded, target: Batch) -> PairPredictions | None:
        """Return the expected rating of each target pair; None if the model predicts none."""
        target = target.to(self.device)
        state = self.encode(source).users
        output_N = self.model.score_pairs(state, target)
        prediction = self.model.output.predict(output_N.float()[None])
        if prediction is None:
            return None
        level_BIL, raw_N = prediction.level_BIL, prediction.rating_BI[0]
        variance_N = pair_variance(self.model, state, target)
        found = PairPredictions(
            clamped_to_scale(raw_N, self.vocabulary.levels),
            raw_N if level_BIL is None else None,
            None if variance_N is None else variance_N.float().sqrt(),
            None if level_BIL is None else level_BIL[0],
        )
        return fetched(found)

    @torch.inference_mode()
    def predictions(self, source: Batch, items: slice | Tensor) -> Prediction | None:
        """Return predictions for the same items for all users; None if the model has none."""
        state = self.model.encode(source.to(self.device))
        return fetched(self._predict(self.model.decode(state, items).float()))

    @torch.inference_mode()
    def embed(self, source: Batch) -> Tensor:
        """Return the user embeddings, float32 ``[B, Z]``.

        Args:
            source: Histories.

        Returns:
            The embeddings, on the CPU; see `user_embedding`.

        Raises:
            DataError: The model has none.
        """
        vector_BZ = user_embedding(self.model, self.model.encode(source.to(self.device)))
        if vector_BZ is None:
            raise DataError(
                f"{type(self.model).__name__} has no user embeddings; remove 'embedding' from "
                "score.outputs"
            )
        return vector_BZ.float().cpu()

    @torch.inference_mode()
    def explain(self, source: Batch, item_K: Tensor) -> Tensor:
        """Return the influence of each interaction of one user on the scores of some items.

        Exact leave-one-out: the ranking score with the whole history minus the score without the
        interaction.

        Args:
            source: One user; a training user is folded in like a new one, since a trained row does
                not depend on the history.
            item_K: Positions of the items.

        Returns:
            float32 ``[N, K]``.
        """
        source = source._replace(user_B=-torch.ones_like(source.user_B))
        length = len(source.item_N)
        whole_BK = self._scores_of(source, item_K)
        size = max(1, _EXPLAINED_PAIRS // max(length, 1))
        first = 0  # a model of sequences does not read what comes before
        if isinstance(self.model, ReadsLatest):
            first = max(0, length - self.model.max_length)
        parts = [whole_BK.new_zeros(first, whole_BK.shape[1])]
        for low in range(first, length, size):
            left_out = torch.arange(low, min(low + size, length))
            parts.append(whole_BK - self._scores_of(_without(source, left_out), item_K))
        return torch.cat(parts)

    @torch.inference_mode()
    def expected_interactions(self, source: Batch | Encoded) -> Tensor | None:
        """Return each user's probabilities summed over all items, float64 ``[B]``, or None."""
        source, _, state = self.encode(source)
        head = interaction_head(self.model)
        total_B = torch.zeros(source.num_users, dtype=torch.float64, device=self.device)
        for low, high in self.search.chunks(source.num_users):
            if head is not None:
                rows = tuple(table[low:high] for table in head.tables)
                probability_BI = torch.sigmoid(head.decode_rows(state, rows).float())
            else:
                prediction = self.model.output.predict(
                    self.model.decode(state, slice(low, high)).float()
                )
                if prediction is None or prediction.probability_BI is None:
                    return None
                probability_BI = prediction.probability_BI
            total_B += probability_BI.sum(1, dtype=torch.float64)
        return total_B.cpu()

    def _scores_of(self, source: Batch, item_K: Tensor) -> Tensor:
        """Return the ranking scores of the same items for all users, on the CPU."""
        state = self.model.encode(source.to(self.device))
        output = self.model.decode(state, item_K.to(self.device)).float()
        return self.model.output.ranking_score(output).cpu()

    def _ranked(self, *, with_predictions: bool) -> RankingHead:
        """Return the head to rank by: only the interaction logits, if the model separates them."""
        head = interaction_head(self.model)
        if head is not None:
            return RankingHead(head.tables, head.decode_rows, _as_it_is, keeps=False)
        rows, decode = self.model.item_tables(), self.model.decode_rows
        return RankingHead(
            rows,
            decode,
            lambda output, _: self.model.output.ranking_score(output),
            with_predictions,
        )

    def _predictions(
        self, state: UserState, item_BK: Tensor, output: Tensor | None
    ) -> Prediction | None:
        """Return predictions for the items of lists."""
        if output is None:  # ranked by interaction logits alone
            output = self.model.score_pairs(state, pairs_of(item_BK)).float()
            output = output.unflatten(0, item_BK.shape)
        return self._predict(output)

    def _predict(self, output: Tensor) -> Prediction | None:
        """Return predictions, ratings clamped to the scale."""
        found = self.model.output.predict(output)
        if found is None:
            return None
        return found._replace(rating_BI=clamped_to_scale(found.rating_BI, self.vocabulary.levels))

    def _deviation(self, state: UserState, item_BK: Tensor) -> Tensor | None:
        """Return the standard deviations of the ratings of these items."""
        variance_N = pair_variance(self.model, state, pairs_of(item_BK))
        return None if variance_N is None else variance_N.float().sqrt().view(item_BK.shape)


def require_numbers(scorer: Scorer) -> None:
    """Refuse a model whose scores are not finite.

    Args:
        scorer: Of the model.

    Raises:
        CheckpointError: The scores for an empty or a one-item history are not finite.
    """
    found = scorer.recommend(Batch.from_lists([[], [0]]), None, 1, with_predictions=False)
    if not torch.isfinite(found.score_BK).all():
        raise CheckpointError(
            f"{type(scorer.model).__name__}: its scores are not finite numbers; retrain"
        )


@torch.inference_mode()
def pair_scores(scorer: Scorer, source: Batch | Encoded, target: Batch) -> Tensor:
    """Return the ranking score of each target pair, float32 ``[N]``, on the CPU."""
    model, users = scorer.model, scorer.encode(source).users
    output_N = model.score_pairs(users, target.to(scorer.device)).float()
    return model.output.ranking_score(output_N[None])[0].cpu()


def clamped_to_scale(rating: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Return ratings cut to the range of the scale."""
    return rating.clamp(levels[0], levels[-1])


def _as_it_is(output: Tensor, _low: int) -> Tensor:
    return output


def _nothing(batch: Batch) -> Batch:
    """Return the same users with empty histories."""
    return batch.keep(torch.zeros_like(batch.item_N, dtype=torch.bool))


def _without(source: Batch, left_out_B: Tensor) -> Batch:
    """Return copies of one user, each without one of the given interactions."""
    length, copies = len(source.item_N), len(left_out_B)
    place_BN = torch.arange(length).repeat(copies, 1)
    kept_N = (place_BN != left_out_B[:, None]).flatten()
    pointer_P = torch.arange(copies + 1) * length
    number_B = source.user_B.expand(copies)
    items, values = source.item_N.repeat(copies), source.value_N.repeat(copies)
    copied = Batch(number_B, pointer_P, items, values)
    return copied.keep(kept_N)
