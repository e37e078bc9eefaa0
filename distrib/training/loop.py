"""The training loop: epochs of batches through an engine."""

import time
from collections.abc import Callable, Iterator
from typing import Protocol

from distrib.config import JsonObject
from distrib.data.feeds.base import RankBatch
from distrib.rng import CounterRng
from distrib.training.engines.base import Engine, Update


class TrainState:
    """Position and clocks of training."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.epoch = 0
        """Epochs done."""

        self.epoch_step = 0
        """Global batches done of the current epoch."""

        self.step = 0
        """Global batches done."""

        self.updates = 0
        """Updates made: ``step`` less those that fp16 skipped. Schedules count these."""

        self.count = 0
        """What the scheme counts, users or ratings, in the current epoch so far, over all ranks."""

        self.start_clocks()

    def start_clocks(self) -> None:
        """Set the clocks to 0."""
        self.data_s = self.compute_s = self.checkpoint_s = 0.0
        self.timed_count = 0

    def position(self) -> dict[str, int]:
        """Return what is needed to continue from here, as JSON."""
        return {
            "epoch": self.epoch,
            "epoch_step": self.epoch_step,
            "step": self.step,
            "updates": self.updates,
            "num_users": self.count,
        }

    def go_to(self, position: JsonObject) -> None:
        """Restore what `position` returned."""
        self.epoch, self.epoch_step = position["epoch"], position["epoch_step"]
        self.step, self.updates = position["step"], position["updates"]
        self.count = position["num_users"]

    @property
    def elapsed_s(self) -> float:
        """Seconds on the clocks."""
        return self.data_s + self.compute_s + self.checkpoint_s


class BatchFeed(Protocol):
    """What the loop requires of a feed."""

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[RankBatch]:
        """Yield a rank's part of each global batch."""


StepListener = Callable[[TrainState, Update], bool]
EpochListener = Callable[[TrainState], bool]


def run_epochs(
    state: TrainState,
    engine: Engine,
    feed: BatchFeed,
    *,
    num_epochs: int,
    on_step: StepListener,
    on_epoch: EpochListener,
) -> None:
    """Train until ``num_epochs`` are done or a listener ends it.

    Args:
        state: Where to begin, maybe within an epoch; kept up to date.
        engine: Makes the updates.
        feed: Gives the batches.
        num_epochs: Where to end.
        on_step: Called after each update; False ends training.
        on_epoch: Called after each epoch; False ends training.
    """
    going = True
    while going and state.epoch < num_epochs:
        rng = CounterRng.of(state.seed, state.epoch)
        engine.begin_epoch(state.epoch)
        for batch in timed(feed.batches(state.epoch, state.epoch_step), state):
            started_s = time.perf_counter()
            update = engine.train_batch(batch, rng, step=state.updates)
            state.compute_s += time.perf_counter() - started_s
            state.step += 1
            state.epoch_step += 1
            state.updates += int(update.is_applied)
            state.count += batch.size
            state.timed_count += batch.size
            if not on_step(state, update):
                return
        engine.end_epoch(state.epoch)
        state.epoch += 1
        state.epoch_step = state.count = 0
        going = on_epoch(state)


def timed(batches: Iterator[RankBatch], state: TrainState) -> Iterator[RankBatch]:
    """Yield the batches and add the time spent waiting for them to ``state.data_s``."""
    while True:
        started_s = time.perf_counter()
        batch = next(batches, None)
        state.data_s += time.perf_counter() - started_s
        if batch is None:
            return
        yield batch
