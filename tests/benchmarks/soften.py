"""Soft labels of many users: users per second, memory of all processes, and a training step.

``python -m tests.benchmarks.soften --users 100000 1000000``. An untrained YoutubeDNN of 64
dimensions on a synthetic log, clusters of 5,000 users, on all cores. A step with soft labels is
compared with one of the plain softmax in turns. Nothing here asserts a figure.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from distrib.batch import Batch
from distrib.checkpoint.bundle import BUNDLE, BundleFacts, write_bundle
from distrib.cli import connected
from distrib.data.config import DataConfig
from distrib.data.dataset import Dataset
from distrib.data.feeds.base import RankBatch
from distrib.data.logs.config import SyntheticLog
from distrib.data.prepare.job import prepare
from distrib.data.splits.rules import LeaveLastSplit
from distrib.distill.config import SoftenConfig
from distrib.distill.job import soften
from distrib.events import table
from distrib.models import YoutubeDnnConfig
from distrib.objectives import SoftmaxConfig, SoftTargetConfig
from distrib.rng import CounterRng
from distrib.sequences import with_targets
from distrib.soft_labels import SoftLabels
from distrib.storage import Folder
from distrib.training.engines.config import EngineConfig
from distrib.training.engines.local import LocalEngine
from distrib.training.optimizer import OptimizerConfig
from distrib.training.schemes.next_item import NextItem
from tests.world import ANY_LABEL

ITEMS, A_USER, WARM_UP = 20_000, 12, 3
MODEL = YoutubeDnnConfig(max_length=20, latent_width=64)


class AllProcesses:
    """Highest memory of this process and all that it started, each page counted once, MiB."""

    def __enter__(self) -> "AllProcesses":
        self.peak_mb, self._is_over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._is_over.wait(1.0):
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue  # it has ended
            self.peak_mb = max(self.peak_mb, total / 2**20)

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


def measured(num_users: int, folder: Path) -> dict[str, Any]:
    """Prepare, write an untrained bundle, and time the job."""
    source = SyntheticLog(num_users=num_users, num_items=ITEMS, num_interactions=A_USER * num_users)
    prepared = str(folder / f"soften-{num_users}")
    prepare(
        DataConfig(prepared=prepared, source=source, split=LeaveLastSplit(count=2), num_shards=16)
    )
    dataset, run = Dataset.open(prepared), str(folder / f"soften-{num_users}-run")
    torch.manual_seed(0)
    model = MODEL.build(dataset.vocabulary.catalog)
    facts = BundleFacts(data=dataset.hash)
    write_bundle(Folder(run) / BUNDLE, model.state_dict(), MODEL, dataset.vocabulary, facts)
    config = SoftenConfig(scale="relative", temperature=0.1, **ANY_LABEL)
    with tempfile.TemporaryDirectory(dir=folder) as output, AllProcesses() as memory:
        started_s = time.perf_counter()
        found = soften(run, prepared, config.model_copy(update={"output": output}))
        elapsed_s = time.perf_counter() - started_s
    return {
        "users": found.counts.users,
        "seconds": elapsed_s,
        "users_per_s": found.counts.users / elapsed_s,
        "peak_mb": memory.peak_mb,
        "labels": found.counts.statistics,
    }


def step_ratio(item_count: int, users: int, steps: int) -> float:
    """Time of a step with sparse soft labels over that of a step of the plain softmax."""
    torch.set_num_threads(1)
    from distrib.vocabulary import Catalog

    counts = torch.ones(item_count, 1, dtype=torch.int64).numpy()
    catalog, generator = Catalog(item_count, (1.0,), counts, users), torch.Generator()
    items = torch.randint(item_count, (users, 13), generator=generator).tolist()
    inputs, target = with_targets(Batch.from_lists(items, users=range(users)), 20, every=False)
    soft = torch.stack(
        [torch.randperm(item_count, generator=generator)[:64].sort().values for _ in range(users)]
    )
    weights = torch.rand(users, 64, generator=generator)
    labels = Batch.from_lists(soft.tolist(), weights.tolist())
    labels = labels._replace(user_B=torch.arange(users))
    plain = SoftmaxConfig().build(catalog)
    with_labels = SoftTargetConfig(label={"kind": "uniform"}).build(catalog)
    with_labels.prior_I, with_labels.labels = None, SoftLabels(labels)
    config, seconds = EngineConfig(precision="fp32", zero_stage=0, keep_output_mb=4096), {}
    engines = {}
    for name, objective in (("plain", plain), ("soft", with_labels)):
        step = NextItem().step(MODEL.build(catalog), objective, config)
        engines[name], seconds[name] = LocalEngine(step, OptimizerConfig()), list[float]()
    for number, (name, engine) in itertools.product(range(steps + WARM_UP), engines.items()):
        started_s = time.perf_counter()
        batch = RankBatch(inputs, target, users)
        engine.train_batch(batch, CounterRng.of(0, 0), step=number)
        seconds[name].append(time.perf_counter() - started_s)
    soft_s, plain_s = (statistics.median(seconds[name][WARM_UP:]) for name in ("soft", "plain"))
    return soft_s / plain_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--folder", default="runs/bench", help="prepared logs are kept here")
    given = parser.parse_args()
    folder = Path(given.folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    ratio = step_ratio(ITEMS, 256, given.steps)
    with connected():
        found = [measured(users, folder) for users in given.users]
    rows = [
        [f"{each['users']:,}", f"{each['seconds']:.0f}", f"{each['users_per_s']:,.0f}",
         f"{each['peak_mb']:,.0f}"]
        for each in found
    ]  # fmt: skip
    columns = ["users", "seconds", "users/s", "peak MB of all processes"]
    table(f"Soft labels, 64 dimensions, {psutil.cpu_count()} cores", columns, rows)
    print(f"a step with soft labels takes {ratio:.2f} of the plain softmax", file=sys.stderr)
    json.dump({"soften": found, "step_ratio": ratio}, sys.stdout)


if __name__ == "__main__":
    main()
