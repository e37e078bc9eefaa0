"""Objectives on likes, dislikes and unlabeled pairs: several seeds, errors, a paired test.

``python -m tests.benchmarks.inverse_learning configs/ml1m_gmf.toml configs/ml1m_neumf.toml --seeds
0 1 2 3 4``. The data must be prepared (``jobs/prepare.py``). Each run trains in a process of its
own, one thread, without Ray: feed, step and metrics are those of training. The epoch is the best
on validation; test figures are of that epoch. Results are kept in the folder of ``--out``, a file
for each run, so that a study that was cut off continues. Nothing here asserts a figure.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
import torch

from distrib.checkpoint.bundle import restored
from distrib.config import load
from distrib.data.dataset import Dataset
from distrib.data.feeds.base import BatchSharding, Feed, ResidentRows
from distrib.data.feeds.resident import ResidentFeed
from distrib.data.history_arrays import HistoryArrays, empty_like, merge, select
from distrib.data.schema import Role
from distrib.evaluation.measured import Measured
from distrib.evaluation.protocol import Measurer, selection_score
from distrib.events import table
from distrib.labeled_metrics import GAUC
from distrib.rng import CounterRng
from distrib.run_file import RunFile
from distrib.scoring.scorer import Scorer
from distrib.training.config import TrainingRun
from distrib.training.engines.local import LocalEngine
from distrib.training.schemes import iterative_scheme_of
from distrib.training.schemes.base import State

PAIRS: dict[str, dict[str, Any]] = {
    "labeled only": {"name": "labeled"},
    "sampled negatives": {"name": "sampled_negatives"},
    "BPR": {"name": "bpr"},
    "T-CE": {"name": "truncated", "drop_share": 0.1, "gradual_steps": 3000},
    "R-CE": {"name": "reweighted", "power": 0.2},
    "nnPU": {"name": "positive_unlabeled", "prior": 0.8},
    "IDL, p = 2": {"name": "inverse_dual"},
    "IDL, p = 1": {"name": "inverse_dual", "power": 1.0},
    "IG, SGD": {"name": "inverse_gradient"},
    "IG, sign": {"name": "inverse_gradient", "look_ahead": "sign", "look_ahead_rate": 1e-4},
    "IG, sketched": {"name": "inverse_gradient", "form": "sketched"},
}
ROWS: dict[str, dict[str, Any] | None] = {
    "own objective": None,
    "with IDL": {"name": "inverse_dual_rows"},
    "with IDL, weight 1": {"name": "inverse_dual_rows", "weight": 1.0},
    "with IG": {"name": "inverse_gradient_rows"},
}
RATES = {
    f"IG, rate {rate:g}": {"name": "inverse_gradient", "look_ahead_rate": rate}
    for rate in (0.001, 0.01, 0.1, 1.0)
}
RATIOS = {
    f"IG, ratio {ratio:g}": {"name": "inverse_gradient", "form": "first_order", "ratio": ratio}
    for ratio in (0.01, 0.1, 1.0)
}
VARIANTS = PAIRS | ROWS | RATES | RATIOS
PLAIN = ("labeled only", "own objective")
SHOWN = ("auc", "gauc", "labeled_ndcg@10", "labeled_mrr", "recall@20", "ndcg@100", "rmse")
_SHARE = 141  # random stream


class Task(NamedTuple):
    """One run of a study."""

    config: str
    variant: str
    seed: int
    label_share: float
    settings: tuple[str, ...]
    out: str

    @property
    def path(self) -> Path:
        kind = hashlib.sha256(repr(self.settings).encode()).hexdigest()[:6]
        name = f"{Path(self.config).stem}-{self.label_share:g}-{self.variant}-{self.seed}-{kind}"
        return Path(self.out) / f"{name.replace(' ', '_').replace(',', '')}.json"


class Memory:
    """See `TrainingData`."""

    def __init__(self, url: str, label_share: float, seed: int = 0) -> None:
        self.dataset = Dataset.open(url)
        manifest = self.dataset.manifest
        parts = [self.dataset.train_and_valid(entry) for entry in manifest.shards]
        train, valid = (merge([part[place] for part in parts]) for place in (0, 1))
        if label_share < 1.0:
            train = _thinned(train, label_share, seed)
        columns = (manifest.counts.items, manifest.user_index_size)
        feedback = manifest.made_from.feedback
        self.rows = ResidentRows(train, valid, empty_like(train), columns, feedback)

    def resident(self) -> ResidentRows:
        return self.rows

    def open_rows(self, sharding: BatchSharding, **_: object) -> Feed:
        return ResidentFeed(self.rows.train, self.rows.valid, sharding)

    def held_out(self, role: Role) -> HistoryArrays:
        if role == Role.VALID_TARGET:
            return self.rows.valid
        shards = self.dataset.manifest.shards
        return merge([self.dataset.held_out(entry, role) for entry in shards])


def _thinned(rows: HistoryArrays, share: float, seed: int) -> HistoryArrays:
    """Keep a share of the training interactions, by a hash of seed and pair: nested for shares."""
    user_N = np.repeat(rows.number_B, np.diff(rows.pointer_P))
    keys = torch.from_numpy(user_N), torch.from_numpy(rows.item_N)
    kept_N = (CounterRng.of(seed, 0).uniform(_SHARE, *keys) < share).numpy()
    before = np.concatenate([[0], kept_N.cumsum()])
    return select(rows, kept_N, np.diff(before[rows.pointer_P]) > 0)


def run_of(task: Task) -> TrainingRun:
    """The run of a task: the run file with another objective."""
    file = load(RunFile, task.config, overrides=task.settings, environment=os.environ)
    document = json.loads(file.training().model_dump_json())
    variant = VARIANTS[task.variant]
    if variant is not None:
        base = {"base": document["objective"]} if task.variant in ROWS else {}
        document["objective"] = {**base, **variant}
    document["seed"] = task.seed
    return TrainingRun.model_validate_json(json.dumps(document))


def trained(engine: LocalEngine, feed: Feed, seed: int, epoch: int, step: int) -> dict[str, float]:
    """Train for an epoch; return the means of what the objective recorded."""
    recorded: dict[str, torch.Tensor] = {}
    engine.begin_epoch(epoch)
    for place, batch in enumerate(feed.batches(epoch)):
        update = engine.train_batch(batch, CounterRng.of(seed, epoch), step=step + place)
        for name, sums in update.recorded.items():
            recorded[name] = recorded.get(name, 0.0) + sums
    engine.end_epoch(epoch)
    return {name: float(sums[0] / sums[1]) for name, sums in recorded.items() if sums[1]}


def measured(task: Task) -> dict[str, Any]:
    """Train and measure; at once where that is done."""
    if task.path.exists():
        return json.loads(task.path.read_text())
    torch.set_num_threads(1)
    run = run_of(task)
    data = Memory(run.prepared, task.label_share, task.seed)
    scheme, vocabulary = iterative_scheme_of(run), data.dataset.vocabulary
    torch.manual_seed(run.seed)
    network = scheme.build(run.model, vocabulary)
    objective = run.objective.build(vocabulary.catalog)
    engine = LocalEngine(scheme.step(network, objective, run.engine), run.optimizer)
    feed = scheme.open_feed(data, BatchSharding(run.train.batch_users, run.seed, 0, 1), run, None)
    best: tuple[float, int, State] | None = None
    history, step = [], 0

    def found(role: Role, weights: State) -> Measured:
        scorer = Scorer(restored(run.model, vocabulary, weights), vocabulary)
        measurer, rows = Measurer({"model": scorer}, role, run.evaluate), data.held_out(role)
        return measurer.added(measurer.nothing(), rows, np.arange(rows.num_users))["model"]

    for epoch in range(run.train.num_epochs):
        recorded = trained(engine, feed, run.seed, epoch, step)
        step += feed.num_steps(epoch)
        weights = engine.weights()
        valid = found(Role.VALID_TARGET, weights).means()
        selection = selection_score(valid, run.selection)
        history.append({"valid": valid, "recorded": recorded})
        if best is None or selection > best[0]:
            best = selection, epoch + 1, weights
        elif run.train.patience and epoch + 1 - best[1] >= run.train.patience:
            break
    assert best is not None  # there is at least one epoch
    test = found(Role.TEST_TARGET, best[2])
    result = {
        "task": task._asdict(),
        "epoch": best[1],
        "test": test.means(),
        "gauc": test.by_user[GAUC].tolist(),
        "history": history,
    }
    task.path.parent.mkdir(parents=True, exist_ok=True)
    task.path.write_text(json.dumps(result))
    return result


def lines(results: dict[str, list[dict[str, Any]]]) -> Iterator[list[str]]:
    """Rows of the table: means, errors over seeds, and the difference from the plain objective."""
    plain = next((name for name in PLAIN if name in results), None)
    for name, found in results.items():
        cells = []
        for metric in SHOWN:
            values = [run["test"][metric] for run in found if metric in run["test"]]
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.4f} ({error:.4f})" if values else "-")
        yield [name, *cells, _against(found, results[plain]) if plain not in {None, name} else ""]


def _against(found: list[dict[str, Any]], plain: list[dict[str, Any]]) -> str:
    """The difference in AUC of each seed (paired t), and in GAUC of each user (Wilcoxon)."""
    pairs = [(a, b) for a in found for b in plain if a["task"]["seed"] == b["task"]["seed"]]
    aucs = np.array([[a["test"]["auc"], b["test"]["auc"]] for a, b in pairs])
    users = np.array([[a["gauc"], b["gauc"]] for a, b in pairs], dtype=float).mean(0)
    users = users[:, ~np.isnan(users).any(0)]
    of_seeds = scipy.stats.ttest_rel(*aucs.T).pvalue if len(aucs) > 1 else np.nan
    of_users = scipy.stats.wilcoxon(*users).pvalue
    return f"{(aucs[:, 0] - aucs[:, 1]).mean():+.4f} (p {of_seeds:.1g}; users {of_users:.1g})"


def draw(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw curves of the first seed: AUC, decisions, and the weights of unlabeled pairs."""
    figure, (curves, decisions, weights) = plt.subplots(1, 3, figsize=(16, 4), layout="constrained")
    for name, (first, *_) in results.items():
        auc = [epoch["valid"]["auc"] for epoch in first["history"]]
        style = {"color": "black", "linestyle": "--"} if name in PLAIN else {"marker": "."}
        curves.plot(range(1, len(auc) + 1), auc, label=name, **style)
        recorded = [epoch["recorded"] for epoch in first["history"]]
        if "share direct" in recorded[-1] and not decisions.lines:
            for kind in ("direct", "inverse", "stay"):
                share = [epoch[f"share {kind}"] for epoch in recorded]
                decisions.plot(range(1, len(share) + 1), share, marker=".", label=kind)
            decisions.set_title(f"share of decisions: {name}")
        bins = [key for key in recorded[-1] if " from " in key]
        if bins and not weights.images and "share direct" not in recorded[-1]:
            shares = np.array([[epoch.get(key, np.nan) for key in bins] for epoch in recorded]).T
            extent = (0.5, len(recorded) + 0.5, 0.0, 1.0)
            image = weights.imshow(shares, origin="lower", aspect="auto", extent=extent)
            figure.colorbar(image, label="share of unlabeled pairs")
            weights.set_title(f'weight of the label "like": {name}')
    curves.set_title("AUC on validation")
    for axes in (curves, decisions):
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        axes.grid(visible=True, alpha=0.3)
    for axes in (curves, decisions, weights):
        axes.set_xlabel("epoch")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--variants", nargs="+", help="by default all that fit the model")
    parser.add_argument("--label-share", nargs="+", type=float, default=[1.0])
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--out", default="runs/inverse_learning")
    given = parser.parse_args()
    tasks = []
    for share in given.label_share:
        for config in given.configs:
            file = load(RunFile, config, overrides=given.set, environment=os.environ)
            fitting = PAIRS if file.model.spec.scheme == "pairs" else ROWS
            tasks += [
                Task(config, variant, seed, share, tuple(given.set), given.out)
                for seed in given.seeds
                for variant in given.variants or fitting
            ]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, mp_context=spawn) as pool:
        done = list(pool.map(measured, tasks))
    groups: dict[tuple[str, float], dict[str, list[dict[str, Any]]]] = {}
    for task, result in zip(tasks, done, strict=True):
        group = groups.setdefault((Path(task.config).stem, task.label_share), {})
        group.setdefault(task.variant, []).append(result)
    for (name, share), results in groups.items():
        title = f"{name}, {share:.0%} of the training labels: test mean (error over seeds)"
        table(title, ["", *SHOWN, "AUC less plain"], list(lines(results)))
        draw(results, Path(given.out) / f"{name}-{share:g}.png")


if __name__ == "__main__":
    main()
