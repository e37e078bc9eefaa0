"""Training on histories of users; the model decodes what it reads."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch

from distrib.data.feeds.base import BatchSharding, Feed, RankBatch, Reads
from distrib.data.feeds.collate import gather
from distrib.data.feeds.tiles import TileConfig
from distrib.data.history_arrays import HistoryArrays
from distrib.models import ModelConfig
from distrib.models.base import Model
from distrib.objectives import Objective
from distrib.training.config import TrainingRun
from distrib.training.engines.config import EngineConfig
from distrib.training.schemes.base import (
    ExportContext,
    Shape,
    Sizes,
    State,
    TrainingData,
    plain_step,
)
from distrib.training.step import TrainStep
from distrib.vocabulary import Vocabulary


class UserRows:
    """See `Scheme`; the default of autoencoders."""

    counts = "users"
    reads: Reads = "users"
    exports_every_epoch = False
    needs_resident = False
    decodes_inputs = True
    extrapolates = True
    can_warm_start = True

    def faults(self, run: TrainingRun) -> Iterator[str]:
        """Refuse settings of tiles; see `Scheme`."""
        yield from tile_faults(run)

    def build(self, config: ModelConfig, vocabulary: Vocabulary) -> Model:
        """Build the model itself; see `Scheme`."""
        return config.build(vocabulary.catalog)

    def open_feed(
        self,
        data: TrainingData,
        sharding: BatchSharding,
        run: TrainingRun,
        device: torch.device | None,
    ) -> Feed:
        """Open a resident or streaming feed; see `Scheme`."""
        return data.open_rows(sharding, window_users=run.train.window_users, device=device)

    def step(self, model: Model, objective: Objective, engine: EngineConfig) -> TrainStep:
        """Encode, decode and update once; see `IterativeScheme`."""
        return plain_step(model, objective, engine)

    def export(self, weights: State, context: ExportContext) -> State:
        """Return the weights as they are; see `Scheme`."""
        del context
        return weights

    def sample_batches(
        self, run: TrainingRun, train: HistoryArrays, vocabulary: Vocabulary, workers: int
    ) -> Iterator[RankBatch]:
        """Slice the histories in turn; see `Scheme`."""
        del vocabulary
        return row_batches(run, train, workers)

    def shape(self, run: TrainingRun, sizes: Sizes) -> Shape:
        """Return users and items; see `Scheme`."""
        del run
        return Shape(sizes.users, sizes.items)

    def steps_per_epoch(self, run: TrainingRun, sizes: Sizes) -> int:
        """Return the batches of histories; see `Scheme`."""
        return -(-self.shape(run, sizes).rows // run.train.batch_users)


def tile_faults(run: TrainingRun) -> Iterator[str]:
    """Refuse settings of tiles in a run that has none."""
    if run.train.tiles != TileConfig():
        yield (
            f"[train.tiles] with model {run.model.name!r}, which is not trained on tiles of "
            "users x items; remove it"
        )


def row_batches(run: TrainingRun, train: HistoryArrays, workers: int) -> Iterator[RankBatch]:
    """Yield a worker's shares of batches of whole histories, endlessly."""
    share = -(-run.train.batch_users // workers)
    for step in itertools.count():
        wanted_B = (np.arange(share) + step * share) % train.num_users
        batch, _ = gather(train, wanted_B)
        yield RankBatch(batch, batch, share)
