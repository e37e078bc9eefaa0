"""Feeds: the same global batches for any number of ranks, from memory or from shard files.

Global batch t of an epoch is the t-th slice of an order of all training users (`epoch_order`), a
pure function of (seed, epoch). Every user appears exactly once per epoch and all ranks take the
same number of steps; a rank's part of a batch may be empty.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from distrib.batch import Batch, TrainInput
from distrib.data.history_arrays import HistoryArrays, IntArray
from distrib.feedback import Feedback

BATCHES_AHEAD = 3
T = TypeVar("T")

Reads = Literal["users", "items", "both"]
"""Whose histories training reads."""


class ResidentRows(NamedTuple):
    """All histories of a prepared dataset in memory."""

    train: HistoryArrays
    """Training histories, of users or of items."""

    valid: HistoryArrays
    """Histories of users with validation targets."""

    items: HistoryArrays
    """Histories of items if training reads both sides; empty otherwise."""

    num_columns: tuple[int, int]
    """Number of item indices in user histories, and of user indices in item histories."""

    feedback: Feedback | None = None
    """Which ratings are likes and dislikes; None for a log without two signs."""


class RankBatch(NamedTuple):
    """One rank's part of a global batch."""

    inputs: TrainInput
    """What the model reads; may hold no users."""

    target: Batch
    """What it should decode, a row for each row of the state that it encodes ``inputs`` to; for an
    autoencoder the same object as ``inputs``."""

    size: int
    """Size of the global batch over all ranks, in users or what else the scheme counts; losses are
    means over them."""

    def to(self, device: torch.device | str) -> "RankBatch":
        """Return the batch on a device; what is both input and target is copied once."""
        target = self.target.to(device)
        is_one = self.target is self.inputs
        return RankBatch(target if is_one else self.inputs.to(device), target, self.size)

    def split(self, num_parts: int) -> list["RankBatch"]:
        """Split it into micro-batches, each with the size of the whole."""
        if num_parts == 1:
            return [self]
        if self.target is self.inputs:
            return [RankBatch(part, part, self.size) for part in self.target.split(num_parts)]
        parts = self.inputs.split(num_parts)
        cuts = [0, *accumulate(part.num_rows for part in parts)]
        targets = [self.target.slice(low, high) for low, high in pairwise(cuts)]
        return [RankBatch(*both, self.size) for both in zip(parts, targets, strict=True)]


class BatchSharding(NamedTuple):
    """How global batches are split over ranks."""

    batch_users: int
    """Users per global batch."""

    seed: int
    rank: int
    world_size: int

    def num_steps(self, num_users: int) -> int:
        """Return the number of global batches of an epoch."""
        return -(-num_users // self.batch_users)


class Feed(Protocol):
    """Interface that workers use."""

    num_users: int
    """Training users over all ranks."""

    def num_steps(self, epoch: int) -> int:
        """Return the number of global batches of an epoch."""

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[RankBatch]:
        """Return this rank's part of each global batch of an epoch, from ``first_step``."""

    def training_parts(self) -> Iterator[tuple[HistoryArrays, IntArray]]:
        """Return all training histories once, with the rows that belong to this rank."""

    def valid_parts(self) -> Iterator[tuple[HistoryArrays, IntArray]]:
        """Return validation histories, with the rows that belong to this rank."""


def own_rows(rows: HistoryArrays, sharding: BatchSharding) -> IntArray:
    """Return this rank's rows when all ranks hold the same rows."""
    return np.arange(rows.num_users)[sharding.rank :: sharding.world_size]


def ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """Prefetch up to ``depth`` items of an iterator in a background thread."""
    end = object()
    with ThreadPoolExecutor(1) as worker:
        coming = deque(worker.submit(next, items, end) for _ in range(depth))
        while (item := coming.popleft().result()) is not end:
            coming.append(worker.submit(next, items, end))
            yield item  # type: ignore[misc]
