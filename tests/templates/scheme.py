"""Template of a training scheme: copy it to `distrib/training/schemes/`, and add it to `SCHEMES`.

A model names its scheme in its `ModelSpec`.
"""

from collections.abc import Iterator

import torch
from typing_extensions import override

from distrib.batch import Batch
from distrib.data.feeds.base import BatchSharding, Feed, RankBatch
from distrib.data.history_arrays import HistoryArrays, IntArray
from distrib.rng import CounterRng
from distrib.training.config import TrainingRun
from distrib.training.schemes.base import TrainingData
from distrib.training.schemes.user_rows import UserRows

_STREAM = 72


class HalfHistories(UserRows):
    """Training to decode whole histories from a random half, another half in each epoch."""

    decodes_inputs = False

    @override
    def open_feed(
        self,
        data: TrainingData,
        sharding: BatchSharding,
        run: TrainingRun,
        device: torch.device | None,
    ) -> Feed:
        return _HalfFeed(super().open_feed(data, sharding, run, device), run.seed)


class _HalfFeed:
    """See `Feed`."""

    def __init__(self, feed: Feed, seed: int) -> None:
        self.feed, self.seed, self.num_users = feed, seed, feed.num_users

    def num_steps(self, epoch: int) -> int:
        """Return the steps of the feed itself; see `Feed`."""
        return self.feed.num_steps(epoch)

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[RankBatch]:
        """Yield inputs of half the interactions; see `Feed`."""
        rng = CounterRng.of(self.seed, epoch)
        for inputs, target, count in self.feed.batches(epoch, first_step):
            assert isinstance(inputs, Batch)
            user_N = inputs.user_B[inputs.row_N]
            is_kept_N = rng.uniform(_STREAM, user_N, inputs.item_N) < 0.5
            yield RankBatch(inputs.keep(is_kept_N), target, count)

    def training_parts(self) -> Iterator[tuple[HistoryArrays, IntArray]]:
        """Return whole histories; see `Feed`."""
        return self.feed.training_parts()

    def valid_parts(self) -> Iterator[tuple[HistoryArrays, IntArray]]:
        """Return whole histories; see `Feed`."""
        return self.feed.valid_parts()
