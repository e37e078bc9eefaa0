"""Training on tiles of users x items; the encoders of both sides feed each other."""

import itertools
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch

from distrib.batch import Batch
from distrib.checkpoint.bundle import restored
from distrib.data.feeds.base import BatchSharding, Feed, RankBatch, Reads
from distrib.data.feeds.tiles import Ratings, TileFeed
from distrib.data.history_arrays import HistoryArrays, by_item, empty_like
from distrib.models import ModelConfig
from distrib.models.base import Model
from distrib.objectives import Objective
from distrib.rng import CounterRng
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
from distrib.training.schemes.encoded_rows import RowEncoder, Tables, TrainsNetwork, network_of
from distrib.training.step import TrainStep
from distrib.vocabulary import Vocabulary


@runtime_checkable
class TwoSidedNetwork(Protocol):
    """A model whose encoders of users and of items read each other's latent vectors."""

    def encode_users(self, batch: Batch) -> Tables:
        """Encode histories of users, known or new."""

    def encode_items(self, batch: Batch) -> Tables:
        """Encode histories of items, known or new; ``item_N`` holds user numbers."""

    def feed_latents(self, users: Tables, items: Tables, rng: CounterRng) -> None:
        """Give each encoder what it reads of the other side from now on.

        Args:
            users: From `encode_users`, by user number; NaN for users without a training rating.
            items: From `encode_items`, by position; NaN for items without a training rating.
            rng: The epoch's randomness.
        """


class TwoSided:
    """See `Scheme`; VAE-BMF. The configuration `TrainsNetwork`, which is a `TwoSidedNetwork`."""

    counts = "ratings"
    reads: Reads = "both"
    exports_every_epoch = True
    needs_resident = True
    decodes_inputs = False
    extrapolates = False
    can_warm_start = False

    def faults(self, run: TrainingRun) -> Iterator[str]:
        """Refuse what tiles cannot do; see `Scheme`."""
        train, engine = run.train, run.engine
        found = []
        if train.feed == "streaming":
            found.append(
                "train.feed = 'streaming': tiles pair any users and items; set it to 'resident'"
            )
        if train.histories_on_gpu:
            found.append(
                "train.histories_on_gpu = true: tiles are built on the host; set it to false"
            )
        if engine.parallel == "items":
            found.append("engine.parallel = 'items': both sides are encoded; set it to 'data'")
        if engine.micro_batch_users:
            found.append(
                f"engine.micro_batch_users = {engine.micro_batch_users}: set it to 0, and "
                "limit memory with train.batch_users and train.tiles.items"
            )
        where = f"model {run.model.name!r} is trained on tiles of users x items"
        yield from (f"{where}. {fault}" for fault in found)

    def build(self, config: ModelConfig, vocabulary: Vocabulary) -> Model:
        """Build the model with the parts that only training needs; see `Scheme`."""
        return network_of(config, vocabulary)

    def open_feed(
        self,
        data: TrainingData,
        sharding: BatchSharding,
        run: TrainingRun,
        device: torch.device | None,
    ) -> Feed:
        """Open a feed of tiles, always resident; see `Scheme`."""
        del device
        rows = data.resident()
        ratings = Ratings(rows.train, rows.items, rows.num_columns)
        return TileFeed(ratings, rows.valid, sharding, run.train.tiles)

    def step(self, model: Model, objective: Objective, engine: EngineConfig) -> TrainStep:
        """Encode, decode and update once; see `IterativeScheme`."""
        return plain_step(model, objective, engine)

    def export(self, weights: State, context: ExportContext) -> State:
        """Encode all users and items, for scoring and for the next epoch; see `Scheme`."""
        config, network = context.run.model, context.trained
        assert isinstance(config, TrainsNetwork)
        assert isinstance(network, TwoSidedNetwork)
        vocabulary, feed = context.vocabulary, context.feed
        model = restored(config, vocabulary, config.scoring(weights)).to(context.device)
        assert isinstance(model, TwoSidedNetwork)
        encoder = RowEncoder(context)
        counts = vocabulary.user_index_size, len(vocabulary)
        users = encoder.encode(model.encode_users, feed.training_parts(), counts[0], is_sparse=True)
        rated = encoder.encode(model.encode_items, feed.item_parts(), counts[1], is_sparse=True)
        rng = CounterRng.of(context.run.seed, context.epoch)
        network.feed_latents(users, rated, rng)
        unrated = model.encode_items(Batch.from_lists([[]]).to(context.device))
        items = tuple(
            torch.where(part.isnan(), absent.cpu(), part)
            for part, absent in zip(rated, unrated, strict=True)
        )
        return config.scoring(weights, items)

    def sample_batches(
        self, run: TrainingRun, train: HistoryArrays, vocabulary: Vocabulary, workers: int
    ) -> Iterator[RankBatch]:
        """Repeat the tiles of some histories endlessly; see `Scheme`."""
        share = -(-run.train.batch_users // workers)
        columns = len(vocabulary), vocabulary.user_index_size
        ratings = Ratings(train, by_item(train), columns)
        sharding = BatchSharding(share, run.seed, 0, 1)
        feed = TileFeed(ratings, empty_like(train), sharding, run.train.tiles)
        for epoch in itertools.count():
            yield from feed.batches(epoch)

    def shape(self, run: TrainingRun, sizes: Sizes) -> Shape:
        """Return users, and the items of a tile; see `Scheme`."""
        return Shape(sizes.users, run.train.tiles.items)

    def steps_per_epoch(self, run: TrainingRun, sizes: Sizes) -> int:
        """Return the tiles of an epoch; see `Scheme`."""
        tiles = run.train.tiles
        users, items = -(-sizes.users // run.train.batch_users), -(-sizes.items // tiles.items)
        special = {
            "sequential": (users + items) // 2,
            "edges": -(-sizes.interactions // tiles.ratings),
        }
        return special.get(tiles.order, users * items)
