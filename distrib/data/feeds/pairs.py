"""A feed of labeled user-item pairs, each with sampled unlabeled items of the same user."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from distrib.batch import Batch
from distrib.data.feeds.base import (
    BatchSharding,
    RankBatch,
    ResidentRows,
    ahead,
    own_rows,
)
from distrib.data.feeds.epoch_order import LazyOrder
from distrib.data.feeds.negatives import UnlabeledSampler
from distrib.data.history_arrays import HistoryArrays, IntArray
from distrib.feedback import sign_of
from distrib.rng import CounterRng

_BLOCK_PAIRS = 1 << 15
"""Labeled pairs whose samples are drawn at once, if a batch has fewer."""

_BLOCKS_AHEAD = 2


class PairInput(NamedTuple):
    """What a model reads of some pairs: their users, and which phase of the epoch they are of."""

    users: Batch
    """A row for each pair, without history."""

    phase: int
    """Position among the phases."""

    @property
    def num_rows(self) -> int:
        """Rows; see `TrainInput`."""
        return self.users.num_rows

    def to(self, device: torch.device | str) -> "PairInput":
        """Return it on a device; see `TrainInput`."""
        return PairInput(self.users.to(device), self.phase)

    def split(self, num_parts: int) -> list["PairInput"]:
        """Split the rows; see `TrainInput`."""
        return [PairInput(part, self.phase) for part in self.users.split(num_parts)]


class Phase(NamedTuple):
    """Batches of an epoch that are of one kind."""

    place_M: IntArray
    """Labeled interactions among those of the training histories."""

    num_sampled: int
    """Unlabeled items for each of them."""

    counts_sampled: bool = True
    """Whether losses are means over the sampled pairs, too, not over the labeled ones only."""


class PairFeed:
    """See `Feed`. Batches are slices of a permutation of the labeled pairs of each phase.

    A row of the target is a labeled pair and the items sampled for it, whose value is NaN.

    Args:
        rows: All training histories, and those of validation users.
        sharding: Rank, and the labeled pairs of a global batch.
        phases: Kinds of batches of an epoch.
        power: See `UnlabeledSampler`.
        mixes_phases: Whether the batches of each phase are spread evenly over the epoch; otherwise
            phases follow each other.
    """

    def __init__(
        self,
        rows: ResidentRows,
        sharding: BatchSharding,
        phases: Sequence[Phase],
        power: float,
        *,
        mixes_phases: bool = False,
    ) -> None:
        self.sharding, self.phases, self.mixes_phases = sharding, phases, mixes_phases
        self._train, self._valid = rows.train, rows.valid
        self.num_users = rows.train.num_users
        is_sampled = any(phase.num_sampled for phase in phases)
        self._sampler = (
            UnlabeledSampler(rows.train, rows.num_columns[0], power) if is_sampled else None
        )

    def num_steps(self, epoch: int) -> int:
        """Return the batches of all phases; see `Feed`."""
        del epoch
        return sum(self._steps_of(phase) for phase in self.phases)

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[RankBatch]:
        """Yield the batches of all phases; see `Feed`."""
        phase_S = self._phase_of_steps()
        made_K = np.bincount(phase_S[:first_step], minlength=len(self.phases))
        coming = [
            itertools.chain.from_iterable(ahead(self._blocks(epoch, number, made), _BLOCKS_AHEAD))
            for number, made in enumerate(made_K.tolist())
        ]
        for number in phase_S[first_step:].tolist():
            yield next(coming[number])

    def _steps_of(self, phase: Phase) -> int:
        return self.sharding.num_steps(len(phase.place_M))

    def _phase_of_steps(self) -> IntArray:
        """Return the phase of each step of an epoch."""
        steps = [self._steps_of(phase) for phase in self.phases]
        phase_S = np.repeat(np.arange(len(steps)), steps)
        if not self.mixes_phases:
            return phase_S
        place_S = np.concatenate([(np.arange(number) + 0.5) / number for number in steps])
        return phase_S[np.argsort(place_S, kind="stable")]

    def _blocks(self, epoch: int, number: int, first_step: int) -> Iterator[list[RankBatch]]:
        """Yield the batches of a phase, those of some steps at once."""
        size, rng = self.sharding.batch_users, CounterRng.of(self.sharding.seed, epoch)
        phase = self.phases[number]
        num_steps = self._steps_of(phase)
        order = LazyOrder(len(phase.place_M), self.sharding.seed, epoch, number)
        together = max(1, _BLOCK_PAIRS // size)
        for step in range(first_step, num_steps, together):
            stop = min(step + together, num_steps)
            yield self._block(order.part(step * size, stop * size), number, rng)

    def _block(self, order_M: IntArray, number: int, rng: CounterRng) -> list[RankBatch]:
        """Return the batches of some steps, whose pairs are drawn at once to save time."""
        phase, sharding = self.phases[number], self.sharding
        chosen = phase.place_M[order_M]
        starts = range(0, len(chosen), sharding.batch_users)
        steps = [chosen[start : start + sharding.batch_users] for start in starts]
        shares = [np.array_split(step, sharding.world_size)[sharding.rank] for step in steps]
        whole = self._drawn(np.concatenate(shares), number, rng)
        batches, low = [], 0
        for step, share in zip(steps, shares, strict=True):
            high = low + len(share)
            users, target = (part.slice(low, high) for part in whole)
            count = len(step) * (1 + phase.num_sampled * phase.counts_sampled)
            batches.append(RankBatch(PairInput(users, number), target, count))
            low = high
        return batches

    def _drawn(self, place_M: IntArray, number: int, rng: CounterRng) -> tuple[Batch, Batch]:
        """Return the users of some labeled pairs, and the pairs with the items drawn for them."""
        train, num_sampled = self._train, self.phases[number].num_sampled
        row_M = np.searchsorted(train.pointer_P, place_M, side="right") - 1
        user_M, item_M = train.number_B[row_M], train.item_N[place_M].astype(np.int64)
        items, values = item_M[:, None], train.value_N[place_M][:, None]
        if num_sampled:
            assert self._sampler is not None
            drawn = self._sampler.draw(rng, row_M, user_M, item_M, num_sampled)
            items = np.concatenate([items, drawn], axis=1)
            values = np.concatenate([values, np.full(drawn.shape, np.nan, np.float32)], axis=1)
        is_there = items >= 0
        pointer_P = np.concatenate([[0], is_there.sum(1).cumsum()])
        user_B = torch.from_numpy(user_M)
        nothing = torch.zeros(0, dtype=torch.int64)
        no_history = torch.zeros(len(user_M) + 1, dtype=torch.int64)
        target = Batch(
            user_B,
            torch.from_numpy(pointer_P),
            torch.from_numpy(items[is_there]),
            torch.from_numpy(values[is_there]),
        )
        users = Batch(user_B, no_history, nothing, torch.zeros(0))
        return users, target

    def training_parts(self) -> Iterator[tuple[HistoryArrays, IntArray]]:
        """Yield one part; see `Feed`."""
        yield self._train, own_rows(self._train, self.sharding)

    def valid_parts(self) -> Iterator[tuple[HistoryArrays, IntArray]]:
        """Yield one part; see `Feed`."""
        yield self._valid, own_rows(self._valid, self.sharding)


def labeled_places(rows: ResidentRows) -> IntArray:
    """Return which interactions of the training histories are likes or dislikes."""
    return np.flatnonzero(sign_of(rows.feedback, rows.train.value_N))
