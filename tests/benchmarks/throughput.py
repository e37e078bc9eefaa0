"""Users per second, waiting for data and peak memory, of training and scoring, in one run.

``make bench``, or ``python -m tests.benchmarks.throughput --steps 30``. ML-1M is measured where
DISTRIB_DATA is set; the ML-20M-sized log is drawn here (138,000 x 27,000, 20M ratings).
Each line is measured in a process of its own, on one worker with all cores, through the engine,
feed and scorer that the jobs use. Nothing here asserts a figure.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import ray
import torch
import torch.distributed

from distrib.cli import connected
from distrib.data.config import DataConfig
from distrib.data.dataset import Dataset
from distrib.data.feeds.base import BatchSharding
from distrib.data.feeds.collate import gather
from distrib.data.feeds.loader import TrainingData, load_training_data
from distrib.data.logs.config import MovieLensSource, SyntheticLog
from distrib.data.prepare.job import prepare
from distrib.events import table
from distrib.models import Conv4RecConfig, MultVaeConfig
from distrib.objectives import MultinomialConfig, RatingClassesConfig
from distrib.rng import CounterRng
from distrib.scoring.scorer import Scorer
from distrib.training.engines.config import EngineConfig
from distrib.training.loop import TrainState, timed
from distrib.training.optimizer import OptimizerConfig
from distrib.training.step import TrainStep

MODELS = {
    "conv4rec": (Conv4RecConfig(), RatingClassesConfig()),
    "mult_vae": (MultVaeConfig(), MultinomialConfig()),
}
BATCH_USERS, K = 256, 100


class Figures(NamedTuple):
    """One line of the table."""

    log: str
    model: str
    train_users_per_s: float
    data_wait_share: float
    train_peak_mb: float
    score_users_per_s: float
    score_peak_mb: float
    cells: int


def data_configs(folder: str) -> dict[str, DataConfig]:
    found = {}
    if "DISTRIB_DATA" in os.environ:
        path = f"{os.environ['DISTRIB_DATA']}/ml-1m/ratings.rebuilt.dat.gz"
        found["ML-1M"] = DataConfig(prepared=f"{folder}/ml1m", source=MovieLensSource(path=path))
    large = SyntheticLog(num_users=138_000, num_items=27_000, num_interactions=20_000_000)
    found["ML-20M-sized"] = DataConfig(
        prepared=f"{folder}/ml20m_sized", source=large, num_shards=16
    )
    return found


@ray.remote(max_calls=1)
def measure_training(model: str, url: str, source: TrainingData, steps: int) -> dict[str, float]:
    """Train some steps in a fresh process; the first ones are not counted."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0", "RANK": "0"}
    from distrib.training.engines.deepspeed import DeepSpeedEngine

    torch.set_num_threads(os.cpu_count() or 1)
    meeting = tempfile.mkdtemp() + "/meeting"
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=0, world_size=1)
    vocabulary = Dataset.open(url).vocabulary
    config, objective = MODELS[model]
    built = config.build(vocabulary.catalog)
    step = TrainStep(built, objective.build(vocabulary.catalog), block_items=4096)
    engine = DeepSpeedEngine(
        step, OptimizerConfig(), EngineConfig(), batch_users=BATCH_USERS, device=torch.device("cpu")
    )
    feed = source.open_rows(BatchSharding(BATCH_USERS, 0, 0, 1), window_users=0)
    state, noise, warm_up = TrainState(seed=0), CounterRng.of(0, 0), 3
    for number, batch in enumerate(timed(feed.batches(0), state)):
        if number == warm_up:
            state.start_clocks()
        started_s = time.perf_counter()
        engine.train_batch(batch, noise, step=number)
        state.compute_s += time.perf_counter() - started_s
        state.timed_count += batch.size
        if number == steps + warm_up:
            break
    elapsed_s = state.data_s + state.compute_s
    return {
        "train_users_per_s": state.timed_count / elapsed_s,
        "data_wait_share": state.data_s / elapsed_s,
        "train_peak_mb": peak_mb(),
    }


@ray.remote(max_calls=1)
def measure_scoring(model: str, url: str, source: TrainingData, steps: int) -> dict[str, float]:
    """Make top-K lists in a fresh process."""
    torch.set_num_threads(os.cpu_count() or 1)
    vocabulary = Dataset.open(url).vocabulary
    built = MODELS[model][0].build(vocabulary.catalog).requires_grad_(False)
    scorer, rows = Scorer(built, vocabulary), ray.get(source.refs[0])
    started_s, num_users = time.perf_counter(), 0
    for number in range(steps):
        wanted = np.arange(number * BATCH_USERS, (number + 1) * BATCH_USERS) % rows.num_users
        batch, _ = gather(rows, wanted)
        scorer.recommend(batch, batch, K)
        num_users += BATCH_USERS
    elapsed_s = time.perf_counter() - started_s
    return {"score_users_per_s": num_users / elapsed_s, "score_peak_mb": peak_mb()}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(log: str, model: str, config: DataConfig, steps: int) -> Figures:
    url, cores = config.prepared, os.cpu_count()
    source = load_training_data(url, "resident")
    found: dict[str, float] = {}
    for task in (measure_training, measure_scoring):
        fresh = task.options(num_cpus=cores)
        found |= ray.get(fresh.remote(model, url, source, steps))
    cells = source.num_train * len(Dataset.open(url).vocabulary)
    return Figures(log=log, model=model, cells=cells, **found)


def measured(folder: str, steps: int) -> list[Figures]:
    lines = []
    for log, config in data_configs(folder).items():
        started_s = time.perf_counter()
        prepare(config)
        prepared_s = time.perf_counter() - started_s
        sys.stderr.write(f"{log}: prepared in {prepared_s:.0f} s (0 where it was already)\n")
        lines += [measure(log, model, config, steps) for model in MODELS]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--folder", default="runs/bench", help="prepared logs are kept here")
    given = parser.parse_args()
    with connected():
        lines = measured(str(Path(given.folder).absolute()), given.steps)
    rows = [
        [
            f"{line.log} {line.model}",
            f"{line.train_users_per_s:.0f}",
            f"{line.data_wait_share:.1%}",
            f"{line.train_peak_mb:.0f}",
            f"{line.score_users_per_s:.0f}",
            f"{line.score_peak_mb:.0f}",
            f"{line.cells / 1e6:.0f}",
        ]
        for line in lines
    ]
    memory_gb = psutil.virtual_memory().total / 2**30
    title = f"{os.cpu_count()} cores, {memory_gb:.0f} GB, batch {BATCH_USERS}, bf16, top {K}"
    columns = ["", "train users/s", "waiting", "peak MB", "score users/s", "peak MB", "M cells"]
    table(title, columns, rows)
    print(json.dumps([line._asdict() for line in lines]))


if __name__ == "__main__":
    main()
