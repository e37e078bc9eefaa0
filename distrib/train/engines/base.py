"""What the loop asks of an engine, and the one-process engine that defines the right answer."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from distrib.checkpoint.state import SavedState, StatePiece
from distrib.rng import CounterRng
from distrib.tiles import TrainInput
from distrib.train.step import TrainStep


class Update(NamedTuple):
    """What one update did."""

    terms: dict[str, Tensor]
    """This rank's sums of the loss terms, detached."""

    gradient_norm: Tensor
    """Of the whole model, over all ranks, before clipping."""

    is_applied: bool = True
    """False where fp16 overflowed and the update was left out."""


class Engine(Protocol):
    """One update on the cluster, whatever does it."""

    step_module: TrainStep

    communication_share: float
    """Share of the time of an update that goes into waiting for other ranks, as last measured."""

    def train_batch(
        self,
        inputs: TrainInput,
        target: TrainInput,
        rng: CounterRng,
        *,
        step: int,
        num_users: int,
    ) -> Update:
        """Make one update from this rank's part of a global batch.

        Args:
            inputs: What the model reads; may hold no users.
            target: What it should decode.
            rng: The epoch's randomness.
            step: Updates made so far.
            num_users: Users of the global batch, over all ranks; what losses are a mean over.

        Returns:
            Losses and the size of the gradient.
        """

    def begin_epoch(self, epoch: int) -> None:
        """Let the model get ready; also where training goes on within an epoch."""

    def end_epoch(self, epoch: int) -> None:
        """Let the model take note of an epoch's end; every rank must call."""

    def weights(self) -> dict[str, Tensor]:
        """Return the model's weights, whole, float32, on the CPU; every rank must call."""

    def pieces(self) -> Iterator[StatePiece]:
        """Yield what this rank must save: over all ranks, everything, once. Views, not copies."""

    def facts(self) -> dict[str, Any]:
        """Return what else is needed to go on, as JSON; equal on all ranks."""

    def restore(self, saved: SavedState, facts: dict[str, Any]) -> None:
        """Take up what `pieces` and `facts` gave, of however many ranks; every rank must call."""
