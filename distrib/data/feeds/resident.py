"""A feed from histories in host memory or on this rank's device."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from distrib.batch import Batch
from distrib.data.feeds.base import (
    BATCHES_AHEAD,
    BatchSharding,
    RankBatch,
    ahead,
    own_rows,
)
from distrib.data.feeds.collate import gather
from distrib.data.feeds.epoch_order import epoch_order
from distrib.data.history_arrays import HistoryArrays, IntArray
from distrib.devices import sent


class ResidentFeed:
    """Feed from histories in memory: shared by all ranks of a node, or on this rank's GPU."""

    def __init__(
        self,
        train: HistoryArrays,
        valid: HistoryArrays,
        sharding: BatchSharding,
        device: torch.device | None = None,
    ) -> None:
        self.num_users = train.num_users
        self.sharding = sharding
        self._train, self._valid = train, valid
        self._gathered = _OnDevice(train, device).gather if device else _OnHost(train).gather

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[RankBatch]:
        """Slice a permutation of all users; see `Feed`."""
        return ahead(self._batches(epoch, first_step), BATCHES_AHEAD)

    def _batches(self, epoch: int, first_step: int) -> Iterator[RankBatch]:
        sharding = self.sharding
        order = epoch_order(self.num_users, sharding.seed, epoch)
        for start in range(first_step * sharding.batch_users, len(order), sharding.batch_users):
            chosen = order[start : start + sharding.batch_users]
            mine = np.array_split(chosen, sharding.world_size)[sharding.rank]
            batch = self._gathered(mine)
            yield RankBatch(batch, batch, len(chosen))

    def num_steps(self, epoch: int) -> int:
        """Return the same for every epoch; see `Feed`."""
        del epoch
        return self.sharding.num_steps(self.num_users)

    def training_parts(self) -> Iterator[tuple[HistoryArrays, IntArray]]:
        """Yield one part; see `Feed`."""
        yield self._train, own_rows(self._train, self.sharding)

    def valid_parts(self) -> Iterator[tuple[HistoryArrays, IntArray]]:
        """Yield one part; see `Feed`."""
        yield self._valid, own_rows(self._valid, self.sharding)


class _OnHost:
    def __init__(self, rows: HistoryArrays) -> None:
        self.rows = rows

    def gather(self, wanted_B: IntArray) -> Batch:
        return gather(self.rows, wanted_B)[0]


class _OnDevice:
    """Interactions as tensors on a device; gathers there, and sends four numbers a user.

    Where histories begin is on the host, too, so that it knows all sizes without a wait.
    """

    def __init__(self, rows: HistoryArrays, device: torch.device) -> None:
        self.number_B, self.pointer_P = rows.number_B, rows.pointer_P
        self.item_N, self.value_N = (
            torch.from_numpy(part.copy()).to(device) for part in (rows.item_N, rows.value_N)
        )

    def gather(self, wanted_B: IntArray) -> Batch:
        start_B = self.pointer_P[wanted_B]
        length_B = self.pointer_P[wanted_B + 1] - start_B
        pointer_P = np.concatenate([[0], np.cumsum(length_B)])
        parts = (self.number_B[wanted_B], pointer_P, start_B - pointer_P[:-1], length_B)
        joined = torch.from_numpy(np.concatenate(parts).astype(np.int64))
        count, device = len(wanted_B), self.item_N.device
        numbers, pointers, shift_B, lengths = sent(joined, device).split(
            [count, count + 1, count, count]
        )
        num_places = int(pointer_P[-1])
        place_N: Tensor = torch.arange(num_places, device=device)
        place_N += shift_B.repeat_interleave(lengths, output_size=num_places)
        return Batch(numbers, pointers, self.item_N[place_N].long(), self.value_N[place_N])
