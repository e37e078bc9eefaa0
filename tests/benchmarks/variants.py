"""VAE-BMF and its variants on one log: the paper's ablation, and the curves of its figure 4.

``python -m tests.benchmarks.variants configs/ml1m_vae_bmf.toml --epochs 20 --batch 200``. The data
must be prepared (``jobs/prepare.py``). Each variant trains in this process, one thread, without
Ray: the feed, the step and the encoding are those of training, the optimizer is torch's. Draws
``variants.png`` into the folder of ``--out`` and writes ``variants.json`` beside it. Nothing here
asserts a figure.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch

from distrib.checkpoint.bundle import restored
from distrib.config import load
from distrib.data.dataset import Dataset
from distrib.data.feeds.base import BatchSharding
from distrib.data.feeds.collate import example
from distrib.data.feeds.tiles import Ratings, TileConfig, TileFeed
from distrib.data.history_arrays import (
    HistoryArrays,
    by_item,
    eval_rows,
    merge,
    training_rows,
)
from distrib.data.schema import Role
from distrib.events import table
from distrib.rng import CounterRng
from distrib.run_file import RunFile
from distrib.scoring.scorer import Scorer
from distrib.training.config import TrainConfig
from distrib.training.engines.local import LocalEngine
from distrib.training.optimizer import ScheduleConfig
from distrib.training.schemes import iterative_scheme_of
from distrib.training.schemes.base import ExportContext
from distrib.training.step import TrainStep

VARIANTS: dict[str, dict[str, Any]] = {
    "full (E)": {},
    "no attention (D)": {"attention": "none"},
    "no cross feedback (C)": {"latent": "none", "attention": "none"},
    "no data input": {"data": False, "centering": "none"},
    "A": {"latent": "none", "attention": "none", "branch_layers": 0},
    "B": {"attention": "none", "branch_layers": 0},
    "average": {"latent": "average"},
    "global": {"attention": "global"},
}


class Log(NamedTuple):
    """Prepared data in memory."""

    train: HistoryArrays
    held_out: dict[str, HistoryArrays]
    vocabulary: Any


def read(prepared: str) -> Log:
    """Read all shards of a prepared folder."""
    dataset = Dataset.open(prepared)
    train, held_out = [], {"valid": [], "test": []}
    for shard in dataset.manifest.shards:
        found = dataset.table(shard)
        rows = dataset.arrays(shard, found)
        train.append(training_rows(rows, found["subset"].to_numpy()))
        held_out["valid"].append(eval_rows(rows, Role.VALID_TARGET))
        held_out["test"].append(eval_rows(rows, Role.TEST_TARGET))
    merged = {name: merge(parts) for name, parts in held_out.items()}
    return Log(merge(train), merged, dataset.vocabulary)


def rmse(scorer: Scorer, rows: HistoryArrays, role: Role) -> float:
    """Measure on held-out ratings, cut to the scale."""
    asked = example(rows, np.arange(rows.num_users), role)
    found = scorer.predict(asked.source, asked.target)
    assert found is not None
    return float((found.rating_N - asked.target.value_N).square().mean().sqrt())


def curve(file: RunFile, changes: dict[str, Any], log: Log, train: TrainConfig) -> dict[str, Any]:
    """Train one variant; return its RMSE on validation by epoch, and on test at the best."""
    torch.manual_seed(file.seed)
    model_config = type(file.model)(**{**file.model.model_dump(), **changes})
    training = file.training().model_copy(update={"model": model_config, "train": train})
    columns = len(log.vocabulary), log.vocabulary.user_index_size
    sharding = BatchSharding(train.batch_users, file.seed, 0, 1)
    ratings = Ratings(log.train, by_item(log.train), columns)
    feed = TileFeed(ratings, log.train, sharding, train.tiles)
    assert training.objective is not None
    objective = training.objective.build(log.vocabulary.catalog)
    scheme = iterative_scheme_of(training)
    step = TrainStep(scheme.build(model_config, log.vocabulary), objective, block_items=4096)
    schedule = ScheduleConfig(name="linear", decay_steps=feed.num_steps(0) * train.num_epochs)
    engine = LocalEngine(step, file.optimizer.model_copy(update={"schedule": schedule}))
    context = ExportContext(
        training, log.vocabulary, feed, torch.device("cpu"), lambda mine: [mine], step.model, 0
    )
    found: dict[str, Any] = {"valid": [], "seconds": [], "steps": 0}
    best, started_s = float("inf"), time.perf_counter()
    for epoch in range(train.num_epochs):
        rng = CounterRng.of(file.seed, epoch)
        for batch in feed.batches(epoch):
            engine.train_batch(batch, rng, step=found["steps"])
            found["steps"] += 1
        engine.end_epoch(epoch)
        weights = scheme.export(engine.weights(), context._replace(epoch=epoch))
        scorer = Scorer(restored(model_config, log.vocabulary, weights), log.vocabulary)
        found["valid"].append(rmse(scorer, log.held_out["valid"], Role.VALID_TARGET))
        found["seconds"].append(time.perf_counter() - started_s)
        if found["valid"][-1] < best:
            best = found["valid"][-1]
            found["best_epoch"] = epoch + 1
            found["test"] = rmse(scorer, log.held_out["test"], Role.TEST_TARGET)
    return found


def draw(curves: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw validation RMSE over passes."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, found in curves.items():
        axes.plot(range(1, len(found["valid"]) + 1), found["valid"], label=name, linewidth=1.5)
    axes.set(xlabel="passes over all ratings", ylabel="validation RMSE")
    lowest = min(min(found["valid"]) for found in curves.values())
    axes.set_ylim(lowest - 0.003, lowest + 0.07)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(ncols=2, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=200, help="users and items of a block")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path("runs/variants"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    file = load(RunFile, given.config, overrides=given.set, environment=os.environ)
    log = read(file.data.prepared)
    train = TrainConfig(
        num_epochs=given.epochs,
        batch_users=given.batch,
        tiles=TileConfig(order=file.train.tiles.order, items=given.batch),
    )
    given.out.mkdir(parents=True, exist_ok=True)
    curves: dict[str, dict[str, Any]] = {}
    for name in given.variants:
        curves[name] = curve(file, VARIANTS[name], log, train)
        (given.out / "variants.json").write_text(json.dumps(curves, indent=2))
        draw(curves, given.out / "variants.png")
        print(json.dumps([name, min(curves[name]["valid"]), curves[name]["test"]]), flush=True)
    rows = [
        [
            name,
            f"{found['test']:.4f}",
            f"{min(found['valid']):.4f}",
            str(found["best_epoch"]),
            f"{found['steps']:,}",
            f"{1000 * found['seconds'][-1] / found['steps']:.1f}",
        ]
        for name, found in curves.items()
    ]
    head = ["variant", "test RMSE", "validation", "best pass", "steps", "ms a step"]
    table(f"{given.config.name}, blocks of {given.batch}, seed {file.seed}", head, rows)


if __name__ == "__main__":
    main()
