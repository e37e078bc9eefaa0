"""What a training scheme is: how training reads the log, and what it exports for scoring."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from distrib.data.dataset import Dataset
from distrib.data.feeds.base import BatchSharding, Feed, RankBatch, Reads, ResidentRows
from distrib.data.history_arrays import HistoryArrays
from distrib.models import ModelConfig
from distrib.models.base import Model
from distrib.objectives import Objective
from distrib.training.config import TrainingRun
from distrib.training.engines.config import EngineConfig
from distrib.training.step import TrainStep
from distrib.vocabulary import Vocabulary

State = dict[str, Tensor]
"""Parameters and buffers of a model by name, on the CPU."""


class Sizes(NamedTuple):
    """How large a log is."""

    users: int
    items: int
    interactions: int


class TrainingData(Protocol):
    """The histories of a prepared folder, as a rank reads them."""

    @property
    def dataset(self) -> Dataset:
        """The prepared folder."""

    def resident(self) -> ResidentRows:
        """Return all histories, in memory that the ranks of a node share."""

    def open_rows(
        self, sharding: BatchSharding, *, window_users: int, device: torch.device | None = None
    ) -> Feed:
        """Open a feed of whole histories, resident or streaming."""


class ExportContext(NamedTuple):
    """What a rank provides for `Scheme.export` at the end of an epoch."""

    run: TrainingRun
    vocabulary: Vocabulary
    feed: Any
    """The feed that the scheme opened."""

    device: torch.device
    gather: Callable[[Any], list[Any]]
    """Returns what each rank passed; every rank must call."""

    trained: Model
    epoch: int
    """The epoch that ended, from 0."""


class Scheme(Protocol):
    """One way to train; a model names its own in `ModelSpec`, an objective may bring another.

    Settings of a scheme are fields of the model or of the objective that names it.
    """

    reads: Reads
    """Whose histories training reads."""

    can_warm_start: bool
    """Whether training may start from an earlier model."""

    def faults(self, run: TrainingRun) -> Iterator[str]:
        """Yield what is wrong with a run file, each with its remedy."""

    def build(self, config: ModelConfig, vocabulary: Vocabulary) -> Model:
        """Build what training updates.

        Args:
            config: The model's configuration.
            vocabulary: The items, and the number of users.

        Returns:
            The untrained model.
        """


class Shape(NamedTuple):
    """Size of what training reads and decodes."""

    rows: int
    """Rows of histories."""

    columns: int
    """Columns that a step decodes at most."""


@runtime_checkable
class IterativeScheme(Scheme, Protocol):
    """A scheme in which an engine makes updates; others compute the model at once."""

    counts: str
    """What a step counts, and what losses are means over, in the plural; names the speed."""

    exports_every_epoch: bool
    """Whether `export` is part of training, rather than only needed for validation."""

    needs_resident: bool
    """Whether its feed is always in memory; see `TrainingData.resident`."""

    decodes_inputs: bool
    """Whether the target of a batch is what the model reads."""

    extrapolates: bool
    """Whether matrix products dominate a step: then its FLOPs follow from those of a small one."""

    def open_feed(
        self,
        data: TrainingData,
        sharding: BatchSharding,
        run: TrainingRun,
        device: torch.device | None,
    ) -> Feed:
        """Open a rank's feed.

        Args:
            data: The histories.
            sharding: The rank and the batch size.
            run: The run, for its settings.
            device: Where a resident feed should keep the rows, if not in the host's memory.

        Returns:
            The feed.
        """

    def step(self, model: Model, objective: Objective, engine: EngineConfig) -> TrainStep:
        """Make the module that computes the loss; gradients are of first order only."""

    def export(self, weights: State, context: ExportContext) -> State:
        """Return the state of the model that scores; every rank must call.

        Args:
            weights: Full weights of the trained model.
            context: What the rank provides.

        Returns:
            The state, equal on all ranks.
        """

    def sample_batches(
        self, run: TrainingRun, train: HistoryArrays, vocabulary: Vocabulary, workers: int
    ) -> Iterator[RankBatch]:
        """Yield a worker's shares of batches endlessly, from some histories, to time steps."""

    def shape(self, run: TrainingRun, sizes: Sizes) -> Shape:
        """Return the size of what training reads and decodes."""

    def steps_per_epoch(self, run: TrainingRun, sizes: Sizes) -> int:
        """Estimate the updates of an epoch from sizes, whose users are the training users."""


def plain_step(model: Model, objective: Objective, engine: EngineConfig) -> TrainStep:
    """Make the step of a scheme that encodes, decodes and updates once."""
    return TrainStep(
        model, objective, block_items=engine.chunk_items, keep_output_mb=engine.kept_mb
    )
