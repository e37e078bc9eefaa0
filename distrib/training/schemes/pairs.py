"""Training on labeled user-item pairs, and on unlabeled items sampled for them."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from typing_extensions import override

from distrib.batch import Batch, TrainInput
from distrib.data.feeds.base import BatchSharding, Feed, RankBatch, Reads, ResidentRows
from distrib.data.feeds.pairs import PairFeed, PairInput, Phase, labeled_places
from distrib.data.history_arrays import HistoryArrays, empty_like
from distrib.models import ModelConfig
from distrib.models.base import Model
from distrib.objectives import Objective
from distrib.objectives.signed_pairs import SamplesUnlabeled
from distrib.rng import CounterRng
from distrib.training.config import TrainingRun
from distrib.training.engines.config import EngineConfig
from distrib.training.schemes.base import ExportContext, Shape, Sizes, State, TrainingData
from distrib.training.schemes.user_rows import tile_faults
from distrib.training.step import TrainStep
from distrib.vocabulary import Vocabulary


class PairStep(TrainStep):
    """The step of a batch of pairs."""

    @override
    def forward(
        self, inputs: TrainInput, target: Batch, rng: CounterRng, step: int
    ) -> dict[str, Tensor]:
        """Encode the users of the pairs, without the phase; see `TrainStep`."""
        assert isinstance(inputs, PairInput)
        return super().forward(inputs.users, target, rng, step)


class Pairs:
    """See `Scheme`; models with a row for each user. The objective says what is sampled."""

    counts = "pairs"
    reads: Reads = "users"
    exports_every_epoch = False
    needs_resident = True
    decodes_inputs = False
    extrapolates = True
    can_warm_start = False

    def faults(self, run: TrainingRun) -> Iterator[str]:
        """Refuse what a feed of pairs cannot do; see `Scheme`."""
        yield from tile_faults(run)
        train, found = run.train, []
        if train.feed == "streaming":
            found.append(
                "train.feed = 'streaming': an epoch draws pairs from all histories; set it to "
                "'resident'"
            )
        if train.histories_on_gpu:
            found.append(
                "train.histories_on_gpu = true: pairs are drawn on the host; set it to false"
            )
        if run.engine.parallel == "items":
            found.append(
                "engine.parallel = 'items': pairs are decoded one by one; set it to 'data'"
            )
        where = f"model {run.model.name!r} is trained on pairs"
        yield from (f"{where}. {fault}" for fault in found)

    def build(self, config: ModelConfig, vocabulary: Vocabulary) -> Model:
        """Build the model itself; see `Scheme`."""
        return config.build(vocabulary.catalog)

    def phases(self, run: TrainingRun, rows: ResidentRows) -> list[Phase]:
        """Return the parts of an epoch: all labeled pairs at once."""
        return [Phase(labeled_places(rows), sampling_of(run)[0])]

    def open_feed(
        self,
        data: TrainingData,
        sharding: BatchSharding,
        run: TrainingRun,
        device: torch.device | None,
    ) -> Feed:
        """Open a feed of pairs, always resident; see `Scheme`."""
        del device
        return self._feed(run, data.resident(), sharding)

    def _feed(self, run: TrainingRun, rows: ResidentRows, sharding: BatchSharding) -> PairFeed:
        return PairFeed(rows, sharding, self.phases(run, rows), sampling_of(run)[1])

    def step(self, model: Model, objective: Objective, engine: EngineConfig) -> TrainStep:
        """Decode pairs; see `IterativeScheme`."""
        return PairStep(
            model, objective, block_items=engine.chunk_items, keep_output_mb=engine.kept_mb
        )

    def export(self, weights: State, context: ExportContext) -> State:
        """Return the weights as they are; see `Scheme`."""
        del context
        return weights

    def sample_batches(
        self, run: TrainingRun, train: HistoryArrays, vocabulary: Vocabulary, workers: int
    ) -> Iterator[RankBatch]:
        """Repeat the pairs of some histories endlessly; see `Scheme`."""
        feed = self.feed_of_sample(run, train, vocabulary, -(-run.train.batch_users // workers))
        for epoch in itertools.count():
            yield from feed.batches(epoch)

    def feed_of_sample(
        self, run: TrainingRun, train: HistoryArrays, vocabulary: Vocabulary, share: int
    ) -> PairFeed:
        """Return a feed of some histories, for one worker's share of a batch."""
        nothing, columns = empty_like(train), (len(vocabulary), vocabulary.user_index_size)
        rows = ResidentRows(train, nothing, nothing, columns, vocabulary.facts.feedback)
        return self._feed(run, rows, BatchSharding(share, run.seed, 0, 1))

    def shape(self, run: TrainingRun, sizes: Sizes) -> Shape:
        """Return users and items; see `Scheme`."""
        del run
        return Shape(sizes.users, sizes.items)

    def steps_per_epoch(self, run: TrainingRun, sizes: Sizes) -> int:
        """Return the batches of interactions, as if all were labeled; see `Scheme`."""
        return -(-sizes.interactions // run.train.batch_users)


def sampling_of(run: TrainingRun) -> tuple[int, float]:
    """Return how many items are sampled for each labeled pair, and by which power of counts."""
    objective = run.objective
    if not isinstance(objective, SamplesUnlabeled):
        return 0, 0.0
    return objective.num_sampled, objective.sampling_power
