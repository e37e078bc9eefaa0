"""Training on histories of items; `export` derives the model that scores users."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from distrib.data.feeds.base import BatchSharding, Feed, RankBatch, Reads
from distrib.data.history_arrays import HistoryArrays
from distrib.models.base import Model
from distrib.train.config import TrainingRun
from distrib.train.schemes.base import Counted, ExportContext, Sizes, State, TrainingData
from distrib.train.schemes.encoded_rows import RowEncoder
from distrib.train.schemes.user_rows import row_batches, tile_faults
from distrib.vocabulary import Vocabulary


class ItemRows:
    """See `Scheme`; I-AutoRec. The model's configuration has ``network`` and ``scoring``."""

    counts: Counted = "users"
    reads: Reads = "items"
    is_iterative = True
    exports_every_epoch = False
    can_warm_start = False

    def faults(self, run: TrainingRun) -> Iterator[str]:
        """Refuse settings of tiles; see `Scheme`."""
        yield from tile_faults(run)

    def build(self, config: Any, vocabulary: Vocabulary) -> Model:
        """Build the network whose columns are users; see `Scheme`."""
        network: Model = config.network(vocabulary.catalog, vocabulary.users)
        return network

    def open_feed(
        self,
        data: TrainingData,
        sharding: BatchSharding,
        run: TrainingRun,
        device: torch.device | None,
    ) -> Feed:
        """Open a resident or streaming feed; see `Scheme`."""
        return data.open_rows(sharding, window_users=run.train.window_users, device=device)

    def export(self, weights: State, context: ExportContext) -> State:
        """Encode all items, each on one rank; see `Scheme`."""
        config: Any = context.run.model
        network = self.build(config, context.vocabulary)
        network.load_state_dict(weights)
        network.to(context.device)
        encoder = RowEncoder(context)
        parts, count = context.feed.training_parts(), len(context.vocabulary)
        (latent_IZ,) = encoder.encode(network.encode, parts, count)
        found: dict[str, Tensor] = config.scoring(weights, latent_IZ)
        return found

    def sample_batches(
        self, run: TrainingRun, train: HistoryArrays, vocabulary: Vocabulary, workers: int
    ) -> Iterator[RankBatch]:
        """Slice the histories in turn; see `Scheme`."""
        del vocabulary
        return row_batches(run, train, workers)

    def shape(self, run: TrainingRun, sizes: Sizes) -> tuple[int, int]:
        """Return items and users; see `Scheme`."""
        del run
        return sizes.items, sizes.users

    def steps_per_epoch(self, run: TrainingRun, sizes: Sizes) -> int:
        """Return the batches of items; see `Scheme`."""
        return -(-sizes.items // run.train.batch_users)
