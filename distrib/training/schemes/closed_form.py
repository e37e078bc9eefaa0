"""Closed-form models, computed from counts or from the Gram matrix of interactions."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from scipy.sparse import csr_array
from torch import Tensor

from distrib.data.feeds.base import Reads
from distrib.models import ModelConfig
from distrib.models.base import Model
from distrib.training.config import TrainingRun
from distrib.training.schemes.user_rows import tile_faults
from distrib.vocabulary import Vocabulary


@runtime_checkable
class SolvesGram(Protocol):
    """Configuration of a model that is solved from X^T X; others are built from counts."""

    def solve(self, gram: csr_array) -> dict[str, Tensor]:
        """Return the state of the model from X^T X of the binary interactions."""


@runtime_checkable
class CountsWindow(Protocol):
    """Configuration of a model that is built from the counts of the latest interactions."""

    window_days: float | None
    """None: of all."""


class ClosedForm:
    """See `Scheme`; makes no updates."""

    reads: Reads = "users"
    can_warm_start = False

    def faults(self, run: TrainingRun) -> Iterator[str]:
        """Refuse settings that need updates or GPUs; see `Scheme`."""
        found = []
        if run.objective is not None:
            found.append(f"objective {run.objective.name!r}: nothing is minimized; remove it")
        if run.train.warm_start:
            found.append("train.warm_start: there are no initial weights; remove it")
        if run.train.use_gpu:
            found.append("train.use_gpu = true: it is computed on CPUs; set it to false")
        yield from (f"model {run.model.name!r} has a closed form. {fault}" for fault in found)
        yield from tile_faults(run)

    def build(self, config: ModelConfig, vocabulary: Vocabulary) -> Model:
        """Build the model that scores; see `Scheme`."""
        return config.build(vocabulary.catalog)
