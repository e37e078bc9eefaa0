"""The train loop: epochs of batches through an engine."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from distrib.batch import Read
from distrib.config import Config
from distrib.data.block_feed import BlockConfig
from distrib.noise import Noise
from distrib.train.engine import Engine, Update


class CheckpointConfig(Config):
    """When checkpoints are written, and how many stay.

    One falls on every epoch that is better than all before, and on the last, besides.
    """

    every_epochs: NonNegativeInt = 1
    """Epochs after which one is written; 0 for never. Where epochs take a second, write fewer."""

    every_steps: NonNegativeInt = 0
    """Global batches after which one is written within an epoch; 0 for never."""

    every_s: NonNegativeFloat = 600.0
    """Seconds after which one is written within an epoch; 0 for never."""

    keep: PositiveInt = 2
    """How many of the newest stay; the best epoch's weights stay besides."""

    in_background: bool = True
    """Whether training goes on while one is written; costs a copy of the state in memory."""

    retry_s: NonNegativeFloat = 120.0
    """Seconds for which a store that fails is tried again, before training stops."""


class LoopConfig(Config):
    """How long, how much at a time, on how many workers."""

    num_epochs: PositiveInt = 20
    """Passes over all training users. May be raised to train a finished run further."""

    patience: NonNegativeInt = 0
    """Epochs without a better one after which training ends early; 0 for never."""

    batch_users: PositiveInt = 256
    """Users of a global batch, over all workers; the result does not depend on the workers."""

    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    """Ray Train workers; on GPUs one each. ``[min, max]``: as many as the cluster has room for,
    while it shrinks and grows."""

    cpus_per_worker: PositiveInt = 1
    """CPU cores, and threads, of a worker."""

    use_gpu: bool = False
    """Whether each worker takes a GPU."""

    room_s: NonNegativeFloat = 1200.0
    """Seconds for which a cluster that may grow is given time to find room for the workers."""

    feed: Literal["auto", "resident", "streaming"] = "auto"
    """``resident``: all histories in the memory of each node; ``streaming``: read from the prepared
    folder, window by window. ``auto`` takes resident where it fits; both are world-size-free, but
    their orders of users differ."""

    window_users: PositiveInt = 1_000_000
    """Users that a streaming feed shuffles at a time."""

    blocks: BlockConfig = Field(default_factory=BlockConfig)

    rows_on_gpu: bool = False
    """Whether a resident feed keeps the histories in each GPU's memory."""

    max_failures: NonNegativeInt = 8
    """Lost workers to survive; each costs the time since the last checkpoint."""

    resize_s: PositiveFloat = 60.0
    """Seconds between looks whether the cluster has room for more workers, given a range."""

    hang_s: PositiveFloat = 600.0
    """Seconds without progress after which a worker tells which ranks are missing, and ends."""

    check_steps: PositiveInt = 10
    """Global batches after which ranks agree: on finite losses, on stopping, on a checkpoint."""

    max_skipped: NonNegativeInt = 0
    """Losses in a row that may be not finite under fp16; their updates are left out and counted."""

    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)

    select_by: tuple[str, ...] = ()
    """Metrics that choose the best epoch (geometric mean; errors inverted). Without it: the first
    NDCG for scores, the second Recall and RMSE together for outcomes."""

    warm_start: str | None = None
    """Run folder of an earlier model of the same kind to begin with, e.g. before the data grew."""

    log_every_s: PositiveFloat = 10.0
    """Seconds between lines of progress in a job log."""

    tensorboard: bool = False
    """Whether curves for TensorBoard go into the run folder; needs distrib[tensorboard]."""

    mlflow: str | None = None
    """Tracking URI of the MLflow server that hears of every epoch; needs distrib[mlflow]."""

    @model_validator(mode="after")
    def _workers_are_a_range(self) -> "LoopConfig":
        if self.min_workers > self.max_workers:
            raise ValueError(
                f"num_workers = {list(self.worker_range)}: the first is the least, the second the "
                "most; exchange them"
            )
        return self

    @property
    def worker_range(self) -> tuple[int, int]:
        """Least and most workers."""
        found = self.num_workers
        return (found, found) if isinstance(found, int) else found

    @property
    def min_workers(self) -> int:
        """Workers without which training does not begin."""
        return self.worker_range[0]

    @property
    def max_workers(self) -> int:
        """Workers that are asked for."""
        return self.worker_range[1]


class TrainState:
    """Where training stands."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.epoch = 0
        """Epochs done."""

        self.epoch_step = 0
        """Global batches done of the epoch under way."""

        self.step = 0
        """Global batches done."""

        self.updates = 0
        """Updates made: ``step`` less those that fp16 left out. Schedules count these."""

        self.num_users = 0
        """Users seen in the epoch under way, over all ranks."""

        self.start_clocks()

    def start_clocks(self) -> None:
        """Set the clocks to 0."""
        self.data_s = self.compute_s = self.checkpoint_s = 0.0
        self.timed_users = 0

    def position(self) -> dict[str, int]:
        """Return what is needed to go on from here, as JSON."""
        return {name: getattr(self, name) for name in _POSITION}

    def go_to(self, position: dict[str, Any]) -> None:
        """Stand where `position` was taken."""
        for name in _POSITION:
            setattr(self, name, int(position[name]))

    @property
    def elapsed_s(self) -> float:
        """Seconds on the clocks."""
        return self.data_s + self.compute_s + self.checkpoint_s


_POSITION = ("epoch", "epoch_step", "step", "updates", "num_users")


class BatchFeed(Protocol):
    """What the loop asks of a feed."""

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Read, int]]:
        """Yield a rank's part of each global batch, and the global number of users."""


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
    """Train until ``num_epochs`` are done or a listener has had enough.

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
        noise = Noise.of(state.seed, state.epoch)
        engine.begin_epoch(state.epoch)
        for batch, num_users in timed(feed.batches(state.epoch, state.epoch_step), state):
            started_s = time.perf_counter()
            update = engine.train_batch(
                batch, batch, noise, step=state.updates, num_users=num_users
            )
            state.compute_s += time.perf_counter() - started_s
            state.step += 1
            state.epoch_step += 1
            state.updates += int(update.is_applied)
            state.num_users += num_users
            state.timed_users += num_users
            if not on_step(state, update):
                return
        engine.end_epoch(state.epoch)
        state.epoch += 1
        state.epoch_step = state.num_users = 0
        going = on_epoch(state)


def timed(batches: Iterator[tuple[Read, int]], state: TrainState) -> Iterator[tuple[Read, int]]:
    """Pass batches on and add the time spent waiting for them to ``state.data_s``."""
    while True:
        started_s = time.perf_counter()
        batch = next(batches, None)
        state.data_s += time.perf_counter() - started_s
        if batch is None:
            return
        yield batch
