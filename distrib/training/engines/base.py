"""The interface between the training loop and the engines."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

from distrib.checkpoint.state import SavedState, StatePiece
from distrib.data.feeds.base import RankBatch
from distrib.rng import CounterRng
from distrib.training.step import TrainStep


class Update(NamedTuple):
    """What one update did."""

    terms: dict[str, Tensor]
    """This rank's sums of the loss terms, detached."""

    gradient_norm: Tensor
    """Of the whole model, over all ranks, before clipping."""

    is_applied: bool = True
    """False where fp16 overflowed and the update was skipped."""

    recorded: Mapping[str, Tensor] = {}
    """What the objective recorded on this rank: sum and number of entries by name; see
    `Recorder`."""


class Engine(Protocol):
    """Makes updates, on one process or on many ranks."""

    step_module: TrainStep

    communication_share: float
    """Share of an update's time spent waiting for other ranks, as last measured."""

    def train_batch(self, batch: RankBatch, rng: CounterRng, *, step: int) -> Update:
        """Make one update.

        Args:
            batch: This rank's part of a global batch.
            rng: The epoch's randomness.
            step: Updates made so far.

        Returns:
            Losses and the size of the gradient.
        """

    def begin_epoch(self, epoch: int) -> None:
        """Prepare the model for an epoch; also called when training resumes within one."""

    def end_epoch(self, epoch: int) -> None:
        """Notify the model that an epoch has ended; every rank must call."""

    def weights(self) -> dict[str, Tensor]:
        """Return the model's weights, whole, float32, on the CPU; every rank must call."""

    def pieces(self) -> Iterator[StatePiece]:
        """Yield what this rank must save: over all ranks, everything, once. Views, not copies."""

    def facts(self) -> dict[str, float]:
        """Return what else is needed to continue; equal on all ranks."""

    def restore(self, saved: SavedState, facts: Mapping[str, float]) -> None:
        """Restore `pieces` and `facts` from any number of ranks; every rank must call."""


def add_up(sums: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    """Add to sums by name, in place.

    Args:
        sums: Is changed.
        more: What to add.
    """
    for name, value in more.items():
        sums[name] = sums[name] + value if name in sums else value
