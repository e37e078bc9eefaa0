"""Where the host waits for a device in one update and in one scored batch, by `StandIn`."""

from collections import Counter

from distrib.rng import CounterRng
from distrib.scoring.scorer import Scorer
from distrib.training.engines.config import EngineConfig
from distrib.training.engines.local import LocalEngine
from distrib.training.schemes import iterative_scheme_of
from tests.device.cases import OPTIMIZER
from tests.device.stand_in import CUDA, StandIn, waits
from tests.in_process import feed_of, filled, network_of, run_of, vocabulary_of


def waits_of_an_update(config, small, *, block_items=64, update=LocalEngine.train_batch):
    """Count the waits of the second update; the first one also makes what is kept.

    Args:
        config: Of the model.
        small: The data, of 50 items.
        block_items: Items decoded at a time.
        update: Makes an update.

    Returns:
        A counter by operation and line.
    """
    run = run_of(config, batch_users=10)
    with StandIn():
        loss, settings = run.objective.build(small.catalog), EngineConfig(block_items=block_items)
        step = iterative_scheme_of(run).step(network_of(run, small), loss, settings)
        engine = LocalEngine(step.to(CUDA), OPTIMIZER)
        engine.begin_epoch(0)
        batches = feed_of(iterative_scheme_of(run), run, small).batches(0)
        first = next(batches)
        for number, batch in enumerate((first, next(batches, first))):
            waits.clear()
            update(engine, batch, CounterRng.of(0, 0), step=number)
        return Counter(waits)


def waits_of_a_scored_batch(config, small, *, block_items=64):
    """Count the waits of the second batch of lists, of users that are known.

    Args:
        config: Of the model.
        small: The data, of 50 items.
        block_items: Items decoded at a time.

    Returns:
        A counter by operation and line.
    """
    with StandIn():
        model, vocabulary = filled(config, small).to(CUDA), vocabulary_of(small)
        scorer = Scorer(model, vocabulary, device=CUDA, chunk_items=block_items)
        for _ in range(2):
            waits.clear()
            scorer.recommend(small.batch, small.batch, 7)
        return Counter(waits)
