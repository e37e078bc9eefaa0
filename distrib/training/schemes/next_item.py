"""Training on sequences: what a model reads comes before what it decodes."""

from collections.abc import Iterator

import torch
from typing_extensions import override

from distrib.data.feeds.base import BatchSharding, Feed, RankBatch
from distrib.data.feeds.sequences import SequenceFeed, split_off_targets
from distrib.data.history_arrays import HistoryArrays
from distrib.models.sequential.config import SequenceConfig
from distrib.objectives import SoftmaxConfig
from distrib.training.config import TrainingRun
from distrib.training.schemes.base import TrainingData
from distrib.training.schemes.user_rows import UserRows
from distrib.vocabulary import Vocabulary


class NextItem(UserRows):
    """See `Scheme`; a step is of whole users, whose losses are sums over their targets."""

    decodes_inputs = False

    @override
    def faults(self, run: TrainingRun) -> Iterator[str]:
        """Refuse a last layer that is split over ranks; see `Scheme`."""
        yield from super().faults(run)
        if run.engine.parallel == "items":
            yield (
                f"engine.parallel = 'items' with model {run.model.name!r}: a user has a state for "
                "each target; set it to 'data'"
            )
        objective = run.objective
        in_batch = isinstance(objective, SoftmaxConfig) and objective.against == "batch"
        if in_batch and not _config_of(run).every:
            yield (
                "objective.against = 'batch' with model.targets = 'last': the correction takes "
                "the popularity of all interactions, not of last ones; set model.targets to "
                "'every', or objective.against to 'sampled'"
            )

    @override
    def open_feed(
        self,
        data: TrainingData,
        sharding: BatchSharding,
        run: TrainingRun,
        device: torch.device | None,
    ) -> Feed:
        """Open a feed of histories, and split each into input and targets; see `Scheme`."""
        config = _config_of(run)
        whole = super().open_feed(data, sharding, run, device)
        return SequenceFeed(whole, config.max_length, every=config.every, rank=sharding.rank)

    @override
    def sample_batches(
        self, run: TrainingRun, train: HistoryArrays, vocabulary: Vocabulary, workers: int
    ) -> Iterator[RankBatch]:
        """Slice the histories in turn; see `Scheme`."""
        config = _config_of(run)
        for whole in super().sample_batches(run, train, vocabulary, workers):
            yield split_off_targets(whole, config.max_length, every=config.every)


def _config_of(run: TrainingRun) -> SequenceConfig:
    assert isinstance(run.model, SequenceConfig)
    return run.model
