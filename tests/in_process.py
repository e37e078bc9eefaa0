"""Training in one process by the scheme that a model names: no cluster, no prepared folder."""

import pyarrow as pa
import torch

from distrib.checkpoint.bundle import restored
from distrib.data.dataset import Dataset
from distrib.data.feeds.base import BatchSharding, Feed, RankBatch, Reads, ResidentRows
from distrib.data.feeds.resident import ResidentFeed
from distrib.data.history_arrays import by_item, empty_like
from distrib.evaluation.config import EvaluateConfig
from distrib.models import ModelConfig
from distrib.models.base import Model
from distrib.objectives import ObjectiveConfig
from distrib.training.config import TrainConfig, TrainingRun
from distrib.training.engines.config import EngineConfig
from distrib.training.optimizer import OptimizerConfig
from distrib.training.schemes import is_iterative, iterative_scheme_of, scheme_of
from distrib.training.schemes.base import ExportContext, IterativeScheme, State
from distrib.training.schemes.closed_form import SolvesGram
from distrib.training.schemes.gram import partial_gram
from distrib.training.step import TrainStep
from distrib.vocabulary import LogFacts, Vocabulary
from tests.conftest import LEVELS, Small, rows_of

CPU = torch.device("cpu")


def vocabulary_of(small: Small) -> Vocabulary:
    """The items under ids that are not their positions."""
    item_count, _, counts, num_users, index_size, feedback = small.catalog
    ids = pa.array(range(100, 100 + item_count))
    return Vocabulary(ids, LEVELS, counts, num_users, index_size, LogFacts(feedback))


class MemoryData:
    """See `TrainingData`; everyone is also a validation user."""

    def __init__(self, small: Small, reads: Reads) -> None:
        users = rows_of(small.batch)
        items = by_item(users)
        self.rows = ResidentRows(
            train=items if reads == "items" else users,
            valid=users,
            items=items if reads == "both" else empty_like(items),
            num_columns=(small.catalog.item_count, small.catalog.user_index_size),
            feedback=small.catalog.feedback,
        )

    @property
    def dataset(self) -> Dataset:
        raise NotImplementedError("there is no prepared folder")

    def resident(self) -> ResidentRows:
        return self.rows

    def open_rows(
        self, sharding: BatchSharding, *, window_users: int, device: torch.device | None = None
    ) -> Feed:
        del window_users
        return ResidentFeed(self.rows.train, self.rows.valid, sharding, device)


def run_of(
    config: ModelConfig, objective: ObjectiveConfig | None = None, **train: object
) -> TrainingRun:
    """A run with the default objective of a model, unless another is given."""
    return TrainingRun(
        run="run",
        prepared="data",
        seed=0,
        model=config,
        objective=objective or config.spec.objective,
        optimizer=OptimizerConfig(),
        engine=EngineConfig(),
        train=TrainConfig(**{"batch_users": 1000} | train),
        evaluate=EvaluateConfig(),
    )


def feed_of(
    scheme: IterativeScheme, run: TrainingRun, small: Small, rank: int = 0, world_size: int = 1
) -> Feed:
    """The feed of a rank."""
    sharding = BatchSharding(run.train.batch_users, run.seed, rank, world_size)
    return scheme.open_feed(MemoryData(small, scheme.reads), sharding, run, None)


def network_of(run: TrainingRun, small: Small) -> Model:
    """What training updates."""
    torch.manual_seed(0)
    return scheme_of(run).build(run.model, vocabulary_of(small))


def step_of(run: TrainingRun, small: Small, block_items: int = 17) -> TrainStep:
    """The step that a run's scheme makes."""
    assert run.objective is not None
    engine = EngineConfig(block_items=block_items)
    objective = run.objective.build(small.catalog)
    return iterative_scheme_of(run).step(network_of(run, small), objective, engine)


def whole_batch(run: TrainingRun, small: Small) -> RankBatch:
    """A batch of everything, as the model's scheme feeds it."""
    return next(feed_of(iterative_scheme_of(run), run, small).batches(0))


def exported(
    run: TrainingRun,
    small: Small,
    network: Model,
    weights: State | None = None,
    *,
    device: torch.device = CPU,
    epoch: int = 0,
) -> State:
    """The state that scores, as the model's scheme derives it after an epoch."""
    if not is_iterative(run):
        return network.state_dict()
    scheme = iterative_scheme_of(run)
    feed = feed_of(scheme, run, small)
    context = ExportContext(
        run, vocabulary_of(small), feed, device, lambda mine: [mine], network, epoch
    )
    return scheme.export(network.state_dict() if weights is None else weights, context)


def filled(config: ModelConfig, small: Small) -> Model:
    """A model that scores, with something to say."""
    vocabulary, run = vocabulary_of(small), run_of(config)
    if isinstance(config, SolvesGram):
        state = config.solve(partial_gram(rows_of(small.batch), len(vocabulary)))
    else:
        state = exported(run, small, network_of(run, small))
    return restored(config, vocabulary, state)
