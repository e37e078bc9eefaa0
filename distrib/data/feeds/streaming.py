"""A feed from shard files, a window of whole shards at a time."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from distrib.batch import Batch
from distrib.data.dataset import Dataset, ItemShardEntry, ShardEntry
from distrib.data.feeds.base import BATCHES_AHEAD, BatchSharding, RankBatch, ahead
from distrib.data.feeds.collate import gather
from distrib.data.feeds.epoch_order import epoch_order
from distrib.data.history_arrays import HistoryArrays, IntArray, merge
from distrib.data.schema import Role
from distrib.errors import DataError


class Shard(NamedTuple):
    """A shard of a prepared dataset, for the streaming feed."""

    entry: ShardEntry | ItemShardEntry
    """Its manifest entry."""

    num_train: int
    """Number of training users."""


class StreamingFeed:
    """Feed from shard files, a window of whole shards at a time; the next window is prefetched.

    Shards are shuffled per epoch and users per window. Each rank reads only its part of a window,
    so that all ranks together read every file about once; batches do not depend on the number of
    ranks.
    """

    def __init__(
        self,
        dataset: Dataset,
        shards: Sequence[Shard],
        sharding: BatchSharding,
        *,
        window_users: int,
    ) -> None:
        self.num_users = sum(shard.num_train for shard in shards)
        self.sharding = sharding
        self._dataset = dataset
        self._shards = shards
        self._window_users = window_users

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[RankBatch]:
        """Slice the permutations of the windows in turn; see `Feed`."""
        return ahead(self._batches(epoch, first_step), BATCHES_AHEAD)

    def _batches(self, epoch: int, first_step: int) -> Iterator[RankBatch]:
        size = self.sharding.batch_users
        parts: list[Batch] = []
        num_users = 0
        for window, first in self._windows(epoch, first_step * size):
            start = first
            while start < window.num_users:
                stop = min(window.num_users, start + size - num_users)
                parts.append(window.part(start, stop))
                num_users += stop - start
                start = stop
                if num_users == size:
                    batch = Batch.joined(parts)
                    yield RankBatch(batch, batch, num_users)
                    parts, num_users = [], 0
        if num_users:
            batch = Batch.joined(parts)
            yield RankBatch(batch, batch, num_users)

    def _windows(self, epoch: int, skip: int) -> Iterator[tuple["_Window", int]]:
        """Yield the windows after ``skip`` users, each with the position of its first user."""
        wanted = []
        for number, shards in enumerate(self._cut(epoch)):
            num_users = sum(shard.num_train for shard in shards)
            if skip < num_users:
                wanted.append((number, shards, skip))
            skip = max(0, skip - num_users)
        with ThreadPoolExecutor(1) as reader:
            coming = deque(
                reader.submit(self._read, epoch, number, shards) for number, shards, _ in wanted[:1]
            )
            for place, (_, _, first) in enumerate(wanted):
                window = coming.popleft().result()
                for number, shards, _ in wanted[place + 1 : place + 2]:
                    coming.append(reader.submit(self._read, epoch, number, shards))
                yield window, first

    def _cut(self, epoch: int) -> list[list[Shard]]:
        """Return the shards of each window of an epoch."""
        windows: list[list[Shard]] = []
        held = self._window_users
        for place in epoch_order(len(self._shards), self.sharding.seed, epoch):
            if held >= self._window_users:
                windows.append([])
                held = 0
            windows[-1].append(self._shards[place])
            held += self._shards[place].num_train
        return windows

    def _read(self, epoch: int, number: int, shards: Sequence[Shard]) -> "_Window":
        """Read this rank's part of a window."""
        ends = np.cumsum([0, *(shard.num_train for shard in shards)])
        total, rank, world_size = int(ends[-1]), self.sharding.rank, self.sharding.world_size
        low, high = total * rank // world_size, total * (rank + 1) // world_size
        overlapping = [
            place for place in range(len(shards)) if ends[place] < high and ends[place + 1] > low
        ]
        rows = [self._train_rows(shards[place]) for place in overlapping]
        order = epoch_order(total, self.sharding.seed, epoch, number)
        base = int(ends[overlapping[0]]) if overlapping else 0
        return _Window(order, merge(rows) if rows else None, base, low, high)

    def _train_rows(self, shard: Shard) -> HistoryArrays:
        entry = shard.entry
        if isinstance(entry, ItemShardEntry):
            found = self._dataset.item_training(entry)
        else:
            found = self._dataset.training(entry)
        if found.num_users != shard.num_train:
            raise DataError(
                f"{self._dataset.folder / entry.name}: {found.num_users} training users, "
                f"{shard.num_train} when training began; the data changed, start a new run folder"
            )
        return found

    def num_steps(self, epoch: int) -> int:
        """Return the same for every epoch; see `Feed`."""
        del epoch
        return self.sharding.num_steps(self.num_users)

    def training_parts(self) -> Iterator[tuple[HistoryArrays, IntArray]]:
        """Yield this rank's shards; see `Feed`."""
        for shard in self._shards[self.sharding.rank :: self.sharding.world_size]:
            rows = self._train_rows(shard)
            yield rows, np.arange(rows.num_users)

    def valid_parts(self) -> Iterator[tuple[HistoryArrays, IntArray]]:
        """Yield the validation users of this rank's shards; see `Feed`."""
        shards = self._dataset.manifest.shards
        for entry in shards[self.sharding.rank :: self.sharding.world_size]:
            found = self._dataset.held_out(entry, Role.VALID_TARGET)
            yield found, np.arange(found.num_users)


class _Window:
    """Users of a window in shuffled order; this rank holds those from low to high."""

    def __init__(
        self, order: IntArray, rows: HistoryArrays | None, base: int, low: int, high: int
    ) -> None:
        self.num_users = len(order)
        self._order, self._rows, self._base = order, rows, base
        self._low, self._high = low, high

    def part(self, start: int, stop: int) -> Batch:
        """Return this rank's users among positions start to stop of the order."""
        chosen = self._order[start:stop]
        mine = chosen[(chosen >= self._low) & (chosen < self._high)]
        if self._rows is None:
            return Batch.from_lists([])
        return gather(self._rows, mine - self._base)[0]
