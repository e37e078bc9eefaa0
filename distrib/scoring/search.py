"""Top-K search for a batch of users, one chunk of the catalog at a time.

Strikes out the items that a user has seen, and what is not among the candidates of a request.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distrib.batch import Batch, ChunkEntries, entries_by_chunk, item_chunks
from distrib.models.base import ItemRows, Model, UserState
from distrib.scoring.rules import Rules, chosen
from distrib.topk import UNWANTED, best_keys, items_of, merge, rank_keys, scores_of

_CHUNK_PAIRS = 1 << 24
_LEAST_CHUNK = 4096
_MORE_CANDIDATES = 64


class Limits(NamedTuple):
    """Per-user candidates."""

    candidates: Batch
    """The only items that may be recommended to the limited users."""

    is_limited_B: Tensor
    """bool; False for users with the whole catalog as candidates."""


class RankingHead(NamedTuple):
    """What to decode, and how the output becomes a score."""

    tables: ItemRows
    decode: Callable[[UserState, ItemRows], Tensor]
    score: Callable[[Tensor, int], Tensor]
    keeps: bool
    breaks_ties: bool = True
    is_ranking: bool = True
    """Whether the score is the model's ranking score."""


class Mask(NamedTuple):
    """Excluded items per user, on the device."""

    hidden: Batch
    limits: Limits | None

    @classmethod
    def on(cls, device: torch.device, hidden: Batch, limits: Limits | None) -> "Mask":
        if limits is not None:
            limits = Limits(limits.candidates.to(device), limits.is_limited_B.to(device))
        return cls(hidden.to(device), limits)

    @property
    def num_users(self) -> int:
        """Number of users in the batch."""
        return self.hidden.num_users

    @property
    def device(self) -> torch.device:
        """Device of the scores."""
        return self.hidden.item_N.device

    def by_chunk(self, chunks: list[tuple[int, int]]) -> Iterator[Callable[[Tensor], None]]:
        """Yield, for each chunk, a function that masks its scores in place."""
        hidden = entries_by_chunk(self.hidden, chunks)
        if self.limits is None:
            for struck in hidden:
                yield _striking(struck, None, None)
            return
        open_pairs = entries_by_chunk(self.limits.candidates, chunks)
        for struck, opened in zip(hidden, open_pairs, strict=True):
            yield _striking(struck, opened, self.limits.is_limited_B)


def _striking(
    hidden: ChunkEntries, opened: ChunkEntries | None, is_limited_B: Tensor | None
) -> Callable[[Tensor], None]:
    def strike(score_BI: Tensor) -> None:
        if opened is not None and is_limited_B is not None:
            is_out_BI = is_limited_B[:, None].repeat(1, score_BI.shape[1])
            is_out_BI[opened.row_M, opened.column_M] = False
            score_BI.masked_fill_(is_out_BI, -torch.inf)
        score_BI[hidden.row_M, hidden.column_M] = -torch.inf

    return strike


class TopKSearch:
    """Ranks the catalog without materializing the users x items score matrix.

    Args:
        model: Decodes the items.
        num_items: Size of the catalog.
        chunk_items: Items decoded at a time; None for as many as keep a batch within 64 MB.
        is_halved: Whether to select candidates in bfloat16 first; see `Scorer`.
    """

    def __init__(
        self, model: Model, num_items: int, chunk_items: int | None, *, is_halved: bool
    ) -> None:
        self.model = model
        self.num_items = num_items
        self.chunk_items = chunk_items
        self.is_halved = is_halved
        self._half_tables: ItemRows = ()

    def chunks(self, num_users: int) -> list[tuple[int, int]]:
        """Return the bounds of the item chunks for a batch of ``num_users``."""
        size = self.chunk_items or max(_LEAST_CHUNK, _CHUNK_PAIRS // max(num_users, 1))
        return item_chunks(self.num_items, size)

    def best(
        self, state: UserState, mask: Mask, k: int, ranked: RankingHead, rules: Rules
    ) -> tuple[Tensor, Tensor | None]:
        """Return keys of lists ``[B, K]`` and, if kept, the output for their items.

        If group caps leave a user short of items, the search repeats with more candidates. Only
        short lists are replaced, so that no list depends on the other users of the batch.
        """
        found: tuple[Tensor, Tensor | None] | None = None
        size, item_count = rules.pool_for(k), self.num_items
        if size == k and rules.group_I is None and not rules.diversity:
            if self.is_halved and ranked.is_ranking:
                found = self._near_best(state, mask, k, ranked, rules)
                if found is not None:
                    return found
            return self._all_best(state, mask, k, ranked, rules)
        is_open_B = torch.ones(mask.num_users, dtype=torch.bool, device=mask.device)
        while True:
            key_BP, output = self._all_best(state, mask, size, ranked, rules)
            column_BK = chosen(rules, key_BP, items_of(key_BP), min(k, item_count))
            fresh = _listed(key_BP, output, column_BK)
            found = fresh if found is None else _updated(found, fresh, is_open_B)
            is_open_B = is_open_B & (column_BK < 0).any(1) & (items_of(key_BP[:, -1]) >= 0)
            if size >= item_count or not bool(is_open_B.any()):
                return found
            size = min(4 * size, item_count)

    def _near_best(
        self, state: UserState, mask: Mask, k: int, ranked: RankingHead, rules: Rules
    ) -> tuple[Tensor, Tensor | None] | None:
        """Like `_all_best`, with candidates selected in bfloat16; None if that may be inexact.

        An item outside the candidates scores at most as high as the last one in bfloat16. Twice the
        largest rounding error among the candidates is the margin.
        """
        if not self._half_tables:
            self._half_tables = _halved(ranked.tables)
        near = ranked._replace(tables=self._half_tables, keeps=False, breaks_ties=False)
        size = min(k + max(k, _MORE_CANDIDATES), self.num_items)
        open_rules = rules._replace(min_score=None)
        near_BP, _ = self._all_best(_halved(state), mask, size, near, open_rules)
        item_BP, is_none_BP = items_of(near_BP), near_BP == UNWANTED
        output = (
            self.model.score_pairs(state, pairs_of(item_BP)).float().unflatten(0, item_BP.shape)
        )
        score_BP = self.model.output.ranking_score(output)
        if rules.damping_I is not None:
            score_BP = score_BP - rules.damping_I[item_BP.clamp(min=0)]
        error_BP = (score_BP - scores_of(near_BP)).masked_fill(is_none_BP, 0.0).abs()
        score_BP = score_BP.masked_fill(is_none_BP, -torch.inf)
        key_BP, column_BP = rank_keys(score_BP, item_BP.clamp(min=0)).sort(dim=1, descending=True)
        kth_B = scores_of(key_BP[:, min(k, size) - 1])
        limit_B = scores_of(near_BP[:, -1]) + 2 * error_BP.amax(1)
        if size < self.num_items and bool((~is_none_BP[:, -1] & (kth_B <= limit_B)).any()):
            return None
        key_BK, column_BK = key_BP[:, :k], column_BP[:, :k]
        if rules.min_score is not None:
            key_BK = key_BK.masked_fill(scores_of(key_BK) < rules.min_score, UNWANTED)
        return key_BK, _picked(output, column_BK) if ranked.keeps else None

    def _all_best(
        self, state: UserState, mask: Mask, k: int, ranked: RankingHead, rules: Rules
    ) -> tuple[Tensor, Tensor | None]:
        """Return the best keys ``[B, K]`` and, if kept, the output for their items."""
        num_users = mask.num_users
        chunks = self.chunks(num_users)
        best = torch.empty(num_users, 0, dtype=torch.int64, device=mask.device)
        kept: Tensor | None = None
        for (low, high), masked in zip(chunks, mask.by_chunk(chunks), strict=True):
            output = ranked.decode(state, tuple(table[low:high] for table in ranked.tables)).float()
            # Masking may overwrite the output in place: masked items are never chosen.
            score_BI = rules.apply(ranked.score(output, low), low).contiguous()
            masked(score_BI)
            key_BK = best_keys(score_BI, low, k, breaks_ties=ranked.breaks_ties)
            best, column_BK = merge(best, key_BK, k)
            if ranked.keeps:
                found = _picked(output, (items_of(key_BK) - low).clamp(min=0))
                joined = found if kept is None else torch.cat([kept, found], dim=1)
                kept = _picked(joined, column_BK)
        return best, kept


def pairs_of(item_BK: Tensor) -> Batch:
    """Return lists as user-item pairs; -1 becomes item 0."""
    length, k = item_BK.shape
    bounds = torch.arange(length + 1, device=item_BK.device) * k
    item_N = item_BK.clamp(min=0).flatten()
    return Batch(bounds[:-1], bounds, item_N, torch.zeros_like(item_N, dtype=torch.float32))


def _halved(part: Any) -> Any:
    """Convert float tensors to bfloat16, at any depth of tuples; leave the rest unchanged."""
    if isinstance(part, Tensor):
        return part.to(torch.bfloat16) if part.is_floating_point() else part
    if not isinstance(part, tuple):
        return part
    found = [_halved(inner) for inner in part]
    return type(part)(*found) if hasattr(part, "_fields") else tuple(found)


def _listed(
    key_BP: Tensor, output: Tensor | None, column_BK: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Gather candidates by column; -1 for none."""
    place_BK = column_BK.clamp(min=0)
    key_BK = key_BP.gather(1, place_BK).masked_fill(column_BK < 0, UNWANTED)
    return key_BK, None if output is None else _picked(output, place_BK)


def _updated(
    found: tuple[Tensor, Tensor | None], fresh: tuple[Tensor, Tensor | None], is_open_B: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Replace the lists of the users in ``is_open_B``; new lists may be longer."""
    joined: list[Tensor | None] = []
    for old, new in zip(found, fresh, strict=True):
        if old is None or new is None:
            joined.append(None)
            continue
        result = new.clone()
        result[~is_open_B, : old.shape[1]] = old[~is_open_B]
        joined.append(result)
    assert joined[0] is not None  # keys are always there
    return joined[0], joined[1]


def _picked(output: Tensor, column_BK: Tensor) -> Tensor:
    """Gather columns of the output per user."""
    return output[torch.arange(output.shape[0], device=output.device)[:, None], column_BK]
