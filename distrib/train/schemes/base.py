"""What a training scheme is: how training reads the log, and what it leaves for scoring."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from distrib.data.dataset import Dataset
from distrib.data.feeds.base import BatchSharding, Feed, RankBatch, Reads, ResidentRows
from distrib.data.history_arrays import HistoryArrays
from distrib.models.base import Model
from distrib.train.config import TrainingRun
from distrib.vocabulary import Vocabulary

State = dict[str, Tensor]
"""Parameters and buffers of a model by name, on the CPU."""


Counted = Literal["users", "ratings"]


class Sizes(NamedTuple):
    """How large a log is."""

    users: int
    items: int
    interactions: int


class TrainingData(Protocol):
    """The histories of a prepared folder, as a rank gets at them."""

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
    """What a rank has at hand at the end of an epoch."""

    run: TrainingRun
    vocabulary: Vocabulary
    feed: Any
    """The scheme's own."""

    device: torch.device
    gather: Callable[[Any], list[Any]]
    """Returns what each rank passed; every rank must call."""

    trained: Model
    epoch: int
    """That ended, from 0."""


class Scheme(Protocol):
    """One way to train; a model names its own in `ModelSpec.scheme`."""

    counts: Counted
    """What a step counts, and losses are means over."""

    reads: Reads
    """Whose histories training reads."""

    is_iterative: bool
    """Whether an engine makes updates; otherwise the model is solved for at once."""

    exports_every_epoch: bool
    """Whether `export` is part of training, rather than only wanted for validation."""

    can_warm_start: bool
    """Whether training may begin with an earlier model."""

    def faults(self, run: TrainingRun) -> Iterator[str]:
        """Yield what is wrong with a run file, each with its remedy."""

    def build(self, config: Any, vocabulary: Vocabulary) -> Model:
        """Build what training updates.

        Args:
            config: Of the model, a member of `ModelConfig`.
            vocabulary: Items, and how many users.

        Returns:
            The untrained model.
        """

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
            sharding: Which rank, and how much at a time.
            run: Its settings.
            device: Where a resident feed should keep the rows, if not in the host's memory.

        Returns:
            The feed.
        """

    def export(self, weights: State, context: ExportContext) -> State:
        """Return the state of the model that scores; every rank must call.

        Args:
            weights: Of the model that is trained, whole.
            context: What the rank has at hand.

        Returns:
            The state, equal on all ranks.
        """

    def sample_batches(
        self, run: TrainingRun, train: HistoryArrays, vocabulary: Vocabulary, workers: int
    ) -> Iterator[RankBatch]:
        """Yield a worker's shares of batches, without end, from some histories, to time steps."""

    def shape(self, run: TrainingRun, sizes: Sizes) -> tuple[int, int]:
        """Return how many rows training reads, and how many columns a step decodes at most."""

    def steps_per_epoch(self, run: TrainingRun, sizes: Sizes) -> int:
        """Return the updates of an epoch, as near as sizes allow; users are those of training."""
