"""Feeds: the same global batches on any number of ranks, from memory or from the shards' files.

Global batch t of an epoch is the t-th slice of one order of all training users, a pure function of
(seed, epoch). Every user comes exactly once an epoch, none is dropped, and all ranks take equally
many steps; a rank's part of a batch may be empty.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np

from distrib.data.history_arrays import HistoryArrays, IntArray
from distrib.tiles import TrainInput

BATCHES_AHEAD = 3
T = TypeVar("T")

Reads = Literal["users", "items", "both"]
"""Whose histories training reads."""


class ResidentRows(NamedTuple):
    """All histories of a prepared folder in memory."""

    train: HistoryArrays
    """Of users or of items, as training reads them."""

    valid: HistoryArrays
    """Of the users with validation targets."""

    items: HistoryArrays
    """Of items, where training reads both; empty otherwise."""

    num_columns: tuple[int, int]
    """Items that users may list, and numbers of users that items may list."""


class RankBatch(NamedTuple):
    """One rank's part of a global batch."""

    batch: TrainInput
    num_users: int
    """Users of the global batch, over all ranks; of a block its ratings. Losses are means over
    them."""


class BatchSharding(NamedTuple):
    """How users are dealt out."""

    batch_users: int
    """Users of a global batch."""

    seed: int
    rank: int
    world_size: int

    def num_steps(self, num_users: int) -> int:
        """Return the global batches of an epoch."""
        return -(-num_users // self.batch_users)


class Feed(Protocol):
    """What a worker asks of a feed."""

    num_users: int
    """Training users, over all ranks."""

    def num_steps(self, epoch: int) -> int:
        """Return the global batches of an epoch."""

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[RankBatch]:
        """Return this rank's part of each global batch of an epoch, from ``first_step`` on."""

    def training_parts(self) -> Iterator[tuple[HistoryArrays, IntArray]]:
        """Return all training histories once, and the rows among them that are this rank's."""

    def valid_parts(self) -> Iterator[tuple[HistoryArrays, IntArray]]:
        """Return histories for validation, and the rows among them that are this rank's."""


def own_rows(rows: HistoryArrays, sharding: BatchSharding) -> IntArray:
    """Return the rows of a rank among those that all ranks hold."""
    return np.arange(rows.num_users)[sharding.rank :: sharding.world_size]


def epoch_order(num_users: int, seed: int, epoch: int) -> IntArray:
    """Return the order of users in an epoch, a pure function of its arguments."""
    return np.random.default_rng([seed, epoch]).permutation(num_users)


def ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """Yield what an iterator yields, computed up to ``depth`` items early, in a thread."""
    end = object()
    with ThreadPoolExecutor(1) as worker:
        coming = deque(worker.submit(next, items, end) for _ in range(depth))
        while (item := coming.popleft().result()) is not end:
            coming.append(worker.submit(next, items, end))
            yield item  # type: ignore[misc]
