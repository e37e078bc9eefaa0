"""Steps on likes, dislikes and unlabeled pairs: ratios of time in one run, and bytes communicated.

``python -m tests.benchmarks.pairs configs/ml1m_gmf.toml --recbole .recbole/bin/python``. The data
must be prepared. Engines of all objectives make a step each in turn, one thread, so that noise
meets all alike. Nothing here asserts a figure.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distrib.config import load
from distrib.data.feeds.base import BatchSharding, RankBatch
from distrib.events import table
from distrib.models import Conv4RecConfig, GmfConfig, MultVaeConfig, NeuMfConfig
from distrib.objectives import (
    InverseDualConfig,
    InverseDualRowsConfig,
    InverseGradientConfig,
    InverseGradientRowsConfig,
    LabeledConfig,
    MultinomialConfig,
    RatingClassesConfig,
    SampledNegativesConfig,
)
from distrib.rng import CounterRng
from distrib.run_file import RunFile
from distrib.training.config import TrainingRun
from distrib.training.engines.local import LocalEngine
from distrib.training.schemes import iterative_scheme_of
from distrib.training.schemes.meta import MetaStep
from distrib.training.schemes.meta_rows import MetaRowsStep
from tests.benchmarks.inverse_learning import Memory
from tests.benchmarks.recbole_settings import run_recbole

WARM_UP = 5
PAIRS = {
    "labeled pairs only": LabeledConfig(),
    "sampled negatives": SampledNegativesConfig(),
    "IDL": InverseDualConfig(),
    "IG, exact": InverseGradientConfig(),
    "IG, first order": InverseGradientConfig(form="first_order"),
    "IG, sketched": InverseGradientConfig(form="sketched"),
}


class Timed:
    """An engine, and batches for it without end; of the inverse gradient, those that look ahead."""

    def __init__(self, run: TrainingRun, data: Memory, batch: int) -> None:
        torch.manual_seed(0)
        scheme, vocabulary = iterative_scheme_of(run), data.dataset.vocabulary
        network = scheme.build(run.model, vocabulary)
        objective = run.objective.build(vocabulary.catalog)
        self.step = scheme.step(network, objective, run.engine)
        self.engine = LocalEngine(self.step, run.optimizer)
        feed = scheme.open_feed(data, BatchSharding(batch, 0, 0, 1), run, None)
        found = [b for b in itertools.islice(feed.batches(0), 1000) if _is_timed(self.step, b)]
        self.batches, self.seconds = itertools.cycle(found), list[float]()

    def make_step(self, number: int) -> None:
        batch = next(self.batches)
        started_s = time.perf_counter()
        self.engine.train_batch(batch, CounterRng.of(0, 0), step=1000 + number)
        self.seconds.append(time.perf_counter() - started_s)

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds[WARM_UP:])

    @property
    def extra_bytes(self) -> int:
        if not isinstance(self.step, MetaStep | MetaRowsStep):
            return 0
        return self.step.look_ahead.extra_bytes(sum(p.numel() for p in self.step.parameters()))


def _is_timed(step: torch.nn.Module, batch: RankBatch) -> bool:
    return not isinstance(step, MetaStep) or batch.inputs.phase == 1


def compared(
    run: TrainingRun, data: Memory, variants: dict[str, Any], batches: dict[str, int], steps: int
) -> list[list[str]]:
    """Rows of the table; the first variant is what the others are compared with."""
    timed = {
        name: Timed(run.model_copy(update={"objective": objective}), data, batches[name])
        for name, objective in variants.items()
    }
    for number in range(steps + WARM_UP):
        for each in timed.values():
            each.make_step(number)
    first = next(iter(timed.values())).median_s
    return [
        [run.model.name, name, batches[name], f"{1000 * each.median_s:.2f}",
         f"{each.median_s / first:.2f}", f"{each.extra_bytes:,}"]
        for name, each in timed.items()
    ]  # fmt: skip


def recbole(python: str, data: Memory, parts: str) -> float:
    """Pairs per second of RecBole on the same labeled pairs."""
    train = data.rows.train
    user_N = np.repeat(train.number_B, np.diff(train.pointer_P))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.inter"
        lines = zip(user_N.tolist(), train.item_N.tolist(), train.value_N.tolist(), strict=True)
        text = "\n".join(f"{user}\t{item}\t{value:g}" for user, item, value in lines)
        path.write_text(f"user_id:token\titem_id:token\trating:float\n{text}\n")
        sizes = {"batch_rows": 1024, "batches": 300}
        return run_recbole(python, path.absolute(), parts, threads=1, **sizes)


def ours(run: TrainingRun, data: Memory, steps: int = 300) -> float:
    """Pairs per second of the whole loop on one process: feed, step, optimizer."""
    scheme, vocabulary = iterative_scheme_of(run), data.dataset.vocabulary
    network = scheme.build(run.model, vocabulary)
    objective = run.objective.build(vocabulary.catalog)
    engine = LocalEngine(scheme.step(network, objective, run.engine), run.optimizer)
    feed = scheme.open_feed(data, BatchSharding(1024, 0, 0, 1), run, None)
    batches = itertools.chain.from_iterable(feed.batches(epoch) for epoch in itertools.count())
    for number, batch in enumerate(itertools.islice(batches, WARM_UP)):
        engine.train_batch(batch, CounterRng.of(0, 0), step=number)
    pairs, started_s = 0, time.perf_counter()
    for number, batch in enumerate(itertools.islice(batches, steps)):
        engine.train_batch(batch, CounterRng.of(0, 0), step=number)
        pairs += batch.size
    return pairs / (time.perf_counter() - started_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--recbole", help="Python of a venv with RecBole")
    given = parser.parse_args()
    torch.set_num_threads(1)
    file = load(RunFile, given.config, overrides=given.set, environment=os.environ)
    run = file.training()
    data = Memory(run.prepared, 1.0)
    rows = []
    for model in (GmfConfig(), NeuMfConfig()):
        # Equal numbers of pairs in a step: half as many labeled ones where as many are sampled.
        sizes = {name: 2048 if name.startswith("labeled") else 1024 for name in PAIRS}
        changed = run.model_copy(update={"model": model})
        rows += compared(changed, data, PAIRS, sizes, given.steps)
    for model, base in (
        (MultVaeConfig(), MultinomialConfig()),
        (Conv4RecConfig(), RatingClassesConfig()),
    ):
        variants = {
            "own objective": base,
            "with IDL": InverseDualRowsConfig(base=base),
            "with IG, sketched": InverseGradientRowsConfig(base=base),
        }
        changed = run.model_copy(update={"model": model})
        rows += compared(changed, data, variants, dict.fromkeys(variants, 256), given.steps // 2)
    columns = ["model", "objective", "labels or users a step", "ms", "ratio", "extra bytes a step"]
    table("A step in turns, one thread; medians", columns, rows)
    if given.recbole:
        speeds = []
        for parts, model in (("gmf", GmfConfig()), ("neumf", NeuMfConfig())):
            own = ours(run.model_copy(update={"model": model, "objective": LabeledConfig()}), data)
            peer = recbole(given.recbole, data, parts)
            speeds.append([parts, f"{own:,.0f}", f"{peer:,.0f}", f"{own / peer:.1f}"])
        columns = ["model", "ours", "RecBole NeuMF", "ratio"]
        table("Labeled pairs per second, batches of 1,024, one thread", columns, speeds)


if __name__ == "__main__":
    main()
