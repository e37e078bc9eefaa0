"""Closed-form models, computed from counts or from the Gram matrix of interactions."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from scipy.sparse import csr_array
from torch import Tensor

from distrib.data.feeds.base import BatchSharding, Feed, RankBatch, Reads
from distrib.data.history_arrays import HistoryArrays
from distrib.errors import ConfigError
from distrib.models import ModelConfig
from distrib.models.base import Model
from distrib.train.config import TrainingRun
from distrib.train.schemes.base import ExportContext, Sizes, State, TrainingData
from distrib.vocabulary import Vocabulary


@runtime_checkable
class SolvesGram(Protocol):
    """Configuration of a model that is solved from X^T X; others are built from counts."""

    def solve(self, gram: csr_array) -> dict[str, Tensor]:
        """Return the state of the model from X^T X of the binary interactions."""


class ClosedForm:
    """See `Scheme`; makes no updates."""

    counts = "users"
    reads: Reads = "users"
    is_iterative = False
    exports_every_epoch = False
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

    def build(self, config: ModelConfig, vocabulary: Vocabulary) -> Model:
        """Build the model that scores; see `Scheme`."""
        return config.build(vocabulary.catalog)

    def open_feed(
        self,
        data: TrainingData,
        sharding: BatchSharding,
        run: TrainingRun,
        device: torch.device | None,
    ) -> Feed:
        """Refuse: there are no updates; see `Scheme`."""
        del data, sharding, device
        raise _no_updates(run)

    def export(self, weights: State, context: ExportContext) -> State:
        """Return the weights as they are; see `Scheme`."""
        del context
        return weights

    def sample_batches(
        self, run: TrainingRun, train: HistoryArrays, vocabulary: Vocabulary, workers: int
    ) -> Iterator[RankBatch]:
        """Refuse: there are no updates; see `Scheme`."""
        del train, vocabulary, workers
        raise _no_updates(run)

    def shape(self, run: TrainingRun, sizes: Sizes) -> tuple[int, int]:
        """Return users and items; see `Scheme`."""
        del run
        return sizes.users, sizes.items

    def steps_per_epoch(self, run: TrainingRun, sizes: Sizes) -> int:
        """Refuse: there are no updates; see `Scheme`."""
        del sizes
        raise _no_updates(run)


def _no_updates(run: TrainingRun) -> ConfigError:
    return ConfigError(
        f"model {run.model.name!r} is computed in closed form, in memory that grows with items "
        "squared; there are no updates to estimate or to try"
    )
