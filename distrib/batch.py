"""Batches: the histories of some users as compressed sparse rows."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from distrib.devices import constant, sent, sent_positions


class TrainInput(Protocol):
    """What a model reads in a step: a `Batch`, or another tuple of tensors that a scheme feeds."""

    @property
    def num_rows(self) -> int:
        """Rows of the state that the model encodes it to."""

    def to(self, device: torch.device | str) -> Self:
        """Return it on a device."""

    def split(self, num_parts: int) -> Sequence[Self]:
        """Split it into parts of nearly equal size, in order; parts may be empty."""


class Batch(NamedTuple):
    """Histories of B rows; a row is a user, or an item where a model reads the log from that side.

    Within a row the interactions are in time order. A named tuple, since DeepSpeed's ZeRO-3 hooks
    look for tensors in tuples only.
    """

    user_B: Tensor
    """int64 number of the user in the prepared data, -1 for a user outside of them."""

    pointer_P: Tensor
    """int64 ``[B + 1]``, first 0; row b is ``[pointer_P[b], pointer_P[b + 1])`` of ``*_N``."""

    item_N: Tensor
    """int64 position of the item in the vocabulary."""

    value_N: Tensor
    """float32 rating; 1 where the log has none."""

    @property
    def num_users(self) -> int:
        """B."""
        return self.pointer_P.shape[0] - 1

    @property
    def num_rows(self) -> int:
        """B; see `TrainInput`."""
        return self.num_users

    @property
    def length_B(self) -> Tensor:
        """Number of interactions of each user, int64."""
        return self.pointer_P.diff()

    @property
    def row_N(self) -> Tensor:
        """Row of each interaction, int64."""
        rows = torch.arange(self.num_users, device=self.item_N.device)
        return rows.repeat_interleave(self.length_B, output_size=self.item_N.shape[0])

    def keep(self, keep_N: Tensor) -> "Batch":
        """Return the batch with only the interactions where ``keep_N`` is true; all rows stay."""
        return self.keep_places(keep_N)[0]

    def keep_places(self, keep_N: Tensor) -> tuple["Batch", Tensor]:
        """Return `keep`, and the places of what it keeps, int64."""
        place_M = keep_N.nonzero().flatten()  # once: on a device the host waits for their number
        item_M, value_M = self.item_N[place_M], self.value_N[place_M]
        return Batch(self.user_B, self.kept_pointer(keep_N), item_M, value_M), place_M

    def kept_pointer(self, keep_N: Tensor) -> Tensor:
        """Return ``pointer_P`` of `keep`, without its other parts."""
        kept = torch.zeros(keep_N.shape[0] + 1, dtype=torch.int64, device=keep_N.device)
        torch.cumsum(keep_N.to(torch.int64), 0, out=kept[1:])
        return kept[self.pointer_P]

    def slice(self, low: int, high: int) -> "Batch":
        """Return the users from ``low`` to ``high``; views, no copies."""
        start, stop = int(self.pointer_P[low]), int(self.pointer_P[high])
        return Batch(
            self.user_B[low:high],
            self.pointer_P[low : high + 1] - start,
            self.item_N[start:stop],
            self.value_N[start:stop],
        )

    def chosen(self, row_R: Tensor) -> "Batch":
        """Return the users of some rows, in the order given."""
        return self._runs(self.user_B[row_R], self.pointer_P[row_R], self.length_B[row_R])

    def latest(self, length: int) -> "Batch":
        """Return the last interactions of each user, at most ``length``."""
        length_B = self.length_B.clamp(max=length)
        if int(length_B.sum()) == len(self.item_N):
            return self
        return self._runs(self.user_B, self.pointer_P[1:] - length_B, length_B)

    def _runs(self, user_R: Tensor, start_R: Tensor, length_R: Tensor) -> "Batch":
        """Return runs of interactions, one for each of some users."""
        pointer_P = torch.cat([length_R.new_zeros(1), length_R.cumsum(0)])
        count = int(pointer_P[-1])
        place_N = torch.arange(count, device=start_R.device)
        place_N += (start_R - pointer_P[:-1]).repeat_interleave(length_R, output_size=count)
        return Batch(user_R, pointer_P, self.item_N[place_N], self.value_N[place_N])

    def split(self, num_parts: int) -> list["Batch"]:
        """Split the users into parts of nearly equal size; some are empty if users are few."""
        if num_parts == 1:
            return [self]
        cuts = [self.num_users * part // num_parts for part in range(num_parts + 1)]
        return [self.slice(low, high) for low, high in pairwise(cuts)]

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device."""
        user_B, pointer_P, value_N = (
            sent(part, device) for part in (self.user_B, self.pointer_P, self.value_N)
        )
        return Batch(user_B, pointer_P, sent_positions(self.item_N, device), value_N)

    @classmethod
    def joined(cls, parts: Sequence["Batch"]) -> "Batch":
        """Return the users of all parts, in order; there is at least one part."""
        if len(parts) == 1:
            return parts[0]
        lengths = torch.cat([part.length_B for part in parts])
        pointer_P = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        return cls(
            torch.cat([part.user_B for part in parts]),
            pointer_P,
            torch.cat([part.item_N for part in parts]),
            torch.cat([part.value_N for part in parts]),
        )

    @classmethod
    def from_lists(
        cls,
        items: Sequence[Sequence[int]],
        values: Sequence[Sequence[float]] | None = None,
        users: Sequence[int] | None = None,
    ) -> "Batch":
        """Make a small batch from lists."""
        lengths = torch.tensor([0, *(len(row) for row in items)], dtype=torch.int64)
        item_N = torch.tensor([item for row in items for item in row], dtype=torch.int64)
        value_N = torch.ones(len(item_N))
        if values is not None:
            value_N = torch.tensor([value for row in values for value in row], dtype=torch.float32)
        user_B = torch.full((len(items),), -1) if users is None else torch.tensor(users)
        return cls(user_B, lengths.cumsum(0), item_N, value_N)


class ChunkEntries(NamedTuple):
    """Observed entries that fall into one chunk of items."""

    row_M: Tensor
    """int64 row within the batch."""

    column_M: Tensor
    """int64 item within the chunk, from 0."""

    value_M: Tensor
    """float32 rating."""

    place_M: Tensor
    """int64 place among the N interactions of the batch."""

    first_item: int
    """Item of the chunk's first column."""

    log_weight_J: Tensor | None = None
    """float32; of each item in the chunk, if the items are a sample; see `Candidates`."""


def entries_by_chunk(batch: Batch, chunks: Sequence[tuple[int, int]]) -> Iterator[ChunkEntries]:
    """Yield, for each chunk of items in turn, the batch's entries inside it.

    Args:
        batch: The histories.
        chunks: Ascending half-open ranges of items that cover the catalog.

    Yields:
        One `ChunkEntries` for each chunk.
    """
    item_N, order_N = torch.sort(batch.item_N, stable=True)
    row_N, value_N = batch.row_N[order_N], batch.value_N[order_N]
    cuts = [0, item_N.shape[0]]
    if len(chunks) > 1:
        edges = (*(low for low, _ in chunks), chunks[-1][1])
        edges_P = constant(edges, torch.int64, item_N.device)
        cuts = torch.searchsorted(item_N, edges_P).tolist()
    for (low, _), start, stop in zip(chunks, cuts[:-1], cuts[1:], strict=True):
        part = slice(start, stop)
        yield ChunkEntries(row_N[part], item_N[part] - low, value_N[part], order_N[part], low)


def item_chunks(item_count: int, chunk_items: int) -> list[tuple[int, int]]:
    """Cut ``range(item_count)`` into half-open ranges of at most ``chunk_items``."""
    starts = range(0, item_count, chunk_items)
    return [(low, min(low + chunk_items, item_count)) for low in starts]


def level_index(value: Tensor, levels: Sequence[float]) -> Tensor:
    """Return the position of the nearest rating level, int64; halfway values round down."""
    if len(levels) == 1:
        return torch.zeros_like(value, dtype=torch.int64)
    middles = tuple((low + high) / 2 for low, high in pairwise(levels))
    boundaries = constant(middles, torch.float32, value.device)
    return torch.bucketize(value.to(torch.float32), boundaries)
