"""What the end of an epoch costs beside its updates, at the size of MovieLens-20M's catalog.

``python -m tests.benchmarks.epoch_end``: Mult-VAE 600-200-600 over 20,108 items (98 MB of weights),
a few users, so that an epoch is one update. Each epoch ends with validation, the best epoch's
weights and a checkpoint. Nothing here asserts a figure.
"""

import argparse
import json
import sys
import tempfile
import time
from typing import Any

import ray

from distrib.cli import connected
from distrib.config import checked
from distrib.data.prepare.job import prepare
from distrib.events import table
from distrib.run_file import RunFile
from distrib.training.workers.alone import ENVIRONMENT
from distrib.training.workers.launch import launch_here

USERS, ITEMS = 120, 20_108


def run_file(folder: str, name: str, epochs: int, **train: Any) -> RunFile:
    """A run whose epochs are one update."""
    source = {"format": "synthetic", "num_users": USERS, "num_items": ITEMS}
    document = {
        "run": f"{folder}/{name}",
        "data": {
            "prepared": f"{folder}/data",
            "source": {**source, "num_interactions": 70 * USERS},
            "split": {"name": "entrywise"},
        },
        "model": {"name": "mult_vae"},
        "train": {"num_epochs": epochs, "batch_users": USERS, "num_workers": 1, **train},
    }
    return checked(RunFile, document, where="epoch_end")


def seconds(file: RunFile) -> float:
    """Train in this process; return the time."""
    started_s = time.perf_counter()
    launch_here(file.training())
    return time.perf_counter() - started_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--every", type=int, nargs="+", default=[1, 5])
    given = parser.parse_args()
    rows = []
    task = ray.remote(num_cpus=1, runtime_env={"env_vars": ENVIRONMENT})(seconds)
    with tempfile.TemporaryDirectory() as folder, connected():
        prepare(run_file(folder, "none", 1).data)
        ray.get(task.remote(run_file(folder, "warm-up", 1)))
        first_s = ray.get(task.remote(run_file(folder, "first", 1)))
        for every in given.every:
            train = {"validate_every_epochs": every} if every > 1 else {}
            file = run_file(folder, f"every-{every}", given.epochs + 1, **train)
            taken_s = ray.get(task.remote(file))
            rows.append([f"validated every {every}", f"{(taken_s - first_s) / given.epochs:.3f}"])
    table("Seconds of an epoch of one update", ["", "s"], rows)
    print(json.dumps(rows), file=sys.stdout)


if __name__ == "__main__":
    main()
