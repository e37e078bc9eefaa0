"""The train loop: epochs of batches through an engine."""

import time
from collections.abc import Callable, Iterator
from typing import Annotated, Protocol

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from distrib.batch import Batch
from distrib.config import Config
from distrib.noise import Noise
from distrib.train.engine import Engine


class LoopConfig(Config):
    """How long, how much at a time, on how many workers."""

    num_epochs: PositiveInt = 20
    """Passes over all training users. May be raised to train a finished run further."""

    batch_users: PositiveInt = 256
    """Users of a global batch, over all workers; the result does not depend on the workers."""

    num_workers: PositiveInt = 1
    """Ray Train workers; on GPUs one each."""

    cpus_per_worker: PositiveInt = 1
    """CPU cores, and threads, of a worker."""

    use_gpu: bool = False
    """Whether each worker takes a GPU."""

    max_failures: NonNegativeInt = 8
    """Lost workers to survive; each costs the time since the last checkpoint."""

    num_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Checkpoints to keep: the best, and the latest besides."""

    select_by: tuple[str, ...] = ()
    """Metrics that choose the best epoch (geometric mean; errors inverted). Without it: the first
    NDCG for scores, the second Recall and RMSE together for outcomes."""

    warm_start: str | None = None
    """Run folder of an earlier model of the same kind to begin with, e.g. before the data grew."""

    log_every_s: PositiveFloat = 10.0
    """Seconds between lines of progress in a job log."""


class TrainState:
    """Where training stands."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.epoch = 0
        self.step = 0
        self.data_s = 0.0
        self.compute_s = 0.0
        self.num_users = 0

    def start_epoch(self) -> None:
        """Set the clocks and counts of an epoch to 0."""
        self.data_s = self.compute_s = 0.0
        self.num_users = 0


class BatchFeed(Protocol):
    """What the loop asks of a feed."""

    def batches(self, epoch: int) -> Iterator[tuple[Batch, int]]:
        """Yield a rank's part of each global batch, and the global number of users."""


StepListener = Callable[[TrainState, dict[str, Tensor]], None]
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
    """Train until ``num_epochs`` are done or a listener has had enough.

    Args:
        state: Where to begin; kept up to date.
        engine: Makes the updates.
        feed: Gives the batches.
        num_epochs: Where to end.
        on_step: Called after each update with this rank's sums of the loss terms.
        on_epoch: Called after each epoch; False ends training.
    """
    going = True
    while going and state.epoch < num_epochs:
        state.start_epoch()
        noise = Noise.of(state.seed, state.epoch)
        for batch, num_users in timed(feed.batches(state.epoch), state):
            started_s = time.perf_counter()
            terms = engine.train_batch(batch, batch, noise, step=state.step, num_users=num_users)
            state.compute_s += time.perf_counter() - started_s
            state.step += 1
            state.num_users += num_users
            on_step(state, terms)
        state.epoch += 1
        going = on_epoch(state)


def timed(batches: Iterator[tuple[Batch, int]], state: TrainState) -> Iterator[tuple[Batch, int]]:
    """Pass batches on and add the time spent waiting for them to ``state.data_s``."""
    while True:
        started_s = time.perf_counter()
        batch = next(batches, None)
        state.data_s += time.perf_counter() - started_s
        if batch is None:
            return
        yield batch
