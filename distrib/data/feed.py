"""Feeds: the same global batches on any number of ranks, from memory or from the shards' files.

Global batch t of an epoch is the t-th slice of one order of all training users, a pure function of
(seed, epoch). Every user comes exactly once an epoch, none is dropped, and all ranks take equally
many steps; a rank's part of a batch may be empty.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from distrib.batch import Batch, Read
from distrib.data.collate import (
    IntArray,
    Rows,
    asked_rows,
    gather,
    item_training_rows,
    merge,
    rows_of,
    select,
    trained_numbers,
    training_rows,
)
from distrib.data.prepared import read_part, user_number
from distrib.data.schema import Role
from distrib.errors import DataError
from distrib.storage import Folder, patiently

_AHEAD = 3
_RETRY_S = 120.0  # for a store that does not answer
_USER_COLUMNS = ["subset", "items", "ratings", "roles"]
_ITEM_COLUMNS = ["users", "ratings", "roles", "subsets"]
T = TypeVar("T")


class RankBatch(NamedTuple):
    """One rank's part of a global batch."""

    batch: Read
    num_users: int
    """Users of the global batch, over all ranks; of a block its ratings. Losses are means over
    them."""


class Dealing(NamedTuple):
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

    def training_parts(self) -> Iterator[tuple[Rows, IntArray]]:
        """Return all training histories once, and the rows among them that are this rank's."""

    def valid_parts(self) -> Iterator[tuple[Rows, IntArray]]:
        """Return histories for validation, and the rows among them that are this rank's."""


class ResidentFeed:
    """From histories in memory, shared by all ranks of a node, or in this rank's GPU."""

    def __init__(
        self, train: Rows, valid: Rows, dealing: Dealing, device: torch.device | None = None
    ) -> None:
        self.num_users = train.num_users
        self.dealing = dealing
        self._train, self._valid = train, valid
        self._gathered = _OnDevice(train, device).gather if device else _OnHost(train).gather

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[RankBatch]:
        """Slice the permutation of all users; see `Feed`."""
        return ahead(self._batches(epoch, first_step), _AHEAD)

    def _batches(self, epoch: int, first_step: int) -> Iterator[RankBatch]:
        dealing = self.dealing
        order = epoch_order(self.num_users, dealing.seed, epoch)
        for start in range(first_step * dealing.batch_users, len(order), dealing.batch_users):
            chosen = order[start : start + dealing.batch_users]
            mine = np.array_split(chosen, dealing.world_size)[dealing.rank]
            yield RankBatch(self._gathered(mine), len(chosen))

    def num_steps(self, epoch: int) -> int:
        """Return the same for every epoch; see `Feed`."""
        del epoch
        return self.dealing.num_steps(self.num_users)

    def training_parts(self) -> Iterator[tuple[Rows, IntArray]]:
        """Yield one part; see `Feed`."""
        yield self._train, own_rows(self._train, self.dealing)

    def valid_parts(self) -> Iterator[tuple[Rows, IntArray]]:
        """Yield one part; see `Feed`."""
        yield self._valid, own_rows(self._valid, self.dealing)


class Shard(NamedTuple):
    """A shard of a prepared folder, as a streaming feed needs to know it."""

    entry: Mapping[str, Any]
    """From the manifest."""

    num_train: int
    """Its training users."""


class StreamingFeed:
    """From the shards' files, a window of whole shards at a time; the next is read meanwhile.

    Shards come in an order drawn for the epoch, and the users of a window in an order drawn for
    the window. Each rank reads the part of a window that is its own, so that ranks together read
    every file about once; which users make a batch does not depend on that.
    """

    def __init__(
        self,
        prepared: Folder,
        shards: Sequence[Shard],
        dealing: Dealing,
        *,
        asked: Sequence[Mapping[str, Any]] | None = None,
        num_shards: int,
        window_users: int,
    ) -> None:
        self.num_users = sum(shard.num_train for shard in shards)
        self.dealing = dealing
        self._prepared = prepared
        self._shards = shards
        self._asked = [shard.entry for shard in shards] if asked is None else asked
        self._num_shards = num_shards
        self._window_users = window_users

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[RankBatch]:
        """Slice the windows' orders, one after the other; see `Feed`."""
        return ahead(self._batches(epoch, first_step), _AHEAD)

    def _batches(self, epoch: int, first_step: int) -> Iterator[RankBatch]:
        size = self.dealing.batch_users
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
                    yield RankBatch(Batch.joined(parts), num_users)
                    parts, num_users = [], 0
        if num_users:
            yield RankBatch(Batch.joined(parts), num_users)

    def _windows(self, epoch: int, skip: int) -> Iterator[tuple["_Window", int]]:
        """Yield the windows from a user's place in the epoch on, and that place in the first."""
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
        for place in np.random.default_rng([self.dealing.seed, epoch]).permutation(
            len(self._shards)
        ):
            if held >= self._window_users:
                windows.append([])
                held = 0
            windows[-1].append(self._shards[place])
            held += self._shards[place].num_train
        return windows

    def _read(self, epoch: int, number: int, shards: Sequence[Shard]) -> "_Window":
        """Read this rank's part of a window."""
        ends = np.cumsum([0, *(shard.num_train for shard in shards)])
        total, rank, world_size = int(ends[-1]), self.dealing.rank, self.dealing.world_size
        low, high = total * rank // world_size, total * (rank + 1) // world_size
        overlapping = [
            place for place in range(len(shards)) if ends[place] < high and ends[place + 1] > low
        ]
        rows = [self._train_rows(shards[place]) for place in overlapping]
        order = np.random.default_rng([self.dealing.seed, epoch, number]).permutation(total)
        base = int(ends[overlapping[0]]) if overlapping else 0
        return _Window(order, merge(rows) if rows else None, base, low, high)

    def _train_rows(self, shard: Shard) -> Rows:
        if "first_item" in shard.entry:
            found = _items_of(self._prepared, shard.entry)
        else:
            found = training_rows(*_users_of(self._prepared, shard.entry, self._num_shards))
        if found.num_users != shard.num_train:
            raise DataError(
                f"{self._prepared / shard.entry['name']}: {found.num_users} training users, "
                f"{shard.num_train} when training began; it was changed, train in a new run folder"
            )
        return found

    def num_steps(self, epoch: int) -> int:
        """Return the same for every epoch; see `Feed`."""
        del epoch
        return self.dealing.num_steps(self.num_users)

    def training_parts(self) -> Iterator[tuple[Rows, IntArray]]:
        """Yield every so many shards; see `Feed`."""
        for shard in self._shards[self.dealing.rank :: self.dealing.world_size]:
            rows = self._train_rows(shard)
            yield rows, np.arange(rows.num_users)

    def valid_parts(self) -> Iterator[tuple[Rows, IntArray]]:
        """Yield the validation users of every so many shards; see `Feed`."""
        for entry in self._asked[self.dealing.rank :: self.dealing.world_size]:
            asked = _asked_of(*_users_of(self._prepared, entry, self._num_shards))
            yield asked, np.arange(asked.num_users)


class _Window:
    """Some users in the order of the epoch, of whom this rank holds those from low to high."""

    def __init__(self, order: IntArray, rows: Rows | None, base: int, low: int, high: int) -> None:
        self.num_users = len(order)
        self._order, self._rows, self._base = order, rows, base
        self._low, self._high = low, high

    def part(self, start: int, stop: int) -> Batch:
        """Return this rank's users among those from start to stop of the order."""
        chosen = self._order[start:stop]
        mine = chosen[(chosen >= self._low) & (chosen < self._high)]
        if self._rows is None:
            return Batch.from_lists([])
        return gather(self._rows, mine - self._base)[0]


class _OnHost:
    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def gather(self, wanted_B: IntArray) -> Batch:
        return gather(self.rows, wanted_B)[0]


class _OnDevice:
    """Rows as tensors on a device; gathers there, without a copy from the host."""

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self.number_B, self.pointer_P, self.item_N, self.value_N = (
            torch.from_numpy(part.copy()).to(device)
            for part in (rows.number_B, rows.pointer_P, rows.item_N, rows.value_N)
        )

    def gather(self, wanted_B: IntArray) -> Batch:
        wanted = torch.from_numpy(wanted_B).to(self.item_N.device)
        start_B = self.pointer_P[wanted]
        length_B = self.pointer_P[wanted + 1] - start_B
        pointer_P: Tensor = torch.cat([length_B.new_zeros(1), length_B.cumsum(0)])
        place_N = torch.arange(int(pointer_P[-1]), device=wanted.device)
        place_N += (start_B - pointer_P[:-1]).repeat_interleave(length_B)
        items = self.item_N[place_N].to(torch.int64)
        return Batch(self.number_B[wanted], pointer_P, items, self.value_N[place_N])


def own_rows(rows: Rows, dealing: Dealing) -> IntArray:
    """Return the rows of a rank among those that all ranks hold."""
    return np.arange(rows.num_users)[dealing.rank :: dealing.world_size]


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


def read_shard(prepared: Folder, entry: Mapping[str, Any], num_shards: int) -> tuple[Rows, Rows]:
    """Read a shard of a prepared folder.

    Args:
        prepared: The folder.
        entry: The manifest's entry of a shard of users, or of items.
        num_shards: From the manifest's recipe.

    Returns:
        What training reads, and what validation asks; items are asked nothing.
    """
    if "first_item" in entry:
        train = _items_of(prepared, entry)
        return train, nobody_of(train)
    rows, subset_B = _users_of(prepared, entry, num_shards)
    return training_rows(rows, subset_B), _asked_of(rows, subset_B)


def _items_of(prepared: Folder, entry: Mapping[str, Any]) -> Rows:
    table = patiently(lambda: read_part(prepared, entry, _ITEM_COLUMNS), for_s=_RETRY_S)
    return item_training_rows(table, entry["first_item"])


def _users_of(prepared: Folder, entry: Mapping[str, Any], num_shards: int) -> tuple[Rows, Any]:
    table = patiently(lambda: read_part(prepared, entry, _USER_COLUMNS), for_s=_RETRY_S)
    rows = rows_of(table, *user_number(entry["shard"], num_shards))
    return rows, table["subset"].to_numpy()


def _asked_of(rows: Rows, subset_B: Any) -> Rows:
    return asked_rows(trained_numbers(rows, subset_B), Role.VALID_TARGET)


def nobody_of(rows: Rows) -> Rows:
    """Return no rows of the same kinds."""
    nothing = np.zeros(len(rows.item_N), dtype=bool), np.zeros(rows.num_users, dtype=bool)
    return select(rows, *nothing)
