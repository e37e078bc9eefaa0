"""Quality of models: run files over seeds, test metrics with their spread, one table.

``python -m tests.benchmarks.quality configs/ml1m_ease.toml configs/ml1m_elsa.toml --seeds 0 1 2``
"""

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

from distrib.cli import connected
from distrib.config import load
from distrib.data.prepare.job import prepare
from distrib.evaluation.job import evaluate
from distrib.events import table
from distrib.run_file import RunFile
from distrib.training.workers.launch import launch

Spread = tuple[float, float]


def measured(path: str, settings: list[str], seed: int, runs: str) -> dict[str, Any]:
    """Train and evaluate one seed of a run file; at once where that is done."""
    name = Path(path).stem
    overrides = [f"seed={seed}", f'run="{runs}/{name}-{seed}"', *settings]
    file = load(RunFile, path, overrides=overrides, environment=os.environ)
    done = Path(file.run) / "quality.json"
    settings_text = file.model_dump_json()
    if done.exists():
        found = json.loads(done.read_text())
        if RunFile.model_validate_json(found["settings"]) != file:  # settings may have been added
            raise SystemExit(f"{file.run} was measured with other settings; remove it")
        return found
    prepare(file.data)
    trained = launch(file.training())
    metrics = evaluate(file.run, file.data.prepared, file.evaluate).metrics
    result = {
        "config": name,
        "settings": settings_text,
        "seed": seed,
        "best_epoch": trained.best_epoch,
        "valid": trained.valid,
        "test": {key: value.mean for key, value in metrics["model"].items()},
        "error_of_users": {k: v.standard_error for k, v in metrics["model"].items()},
        "popularity": {key: value.mean for key, value in metrics["popularity"].items()},
    }
    done.write_text(json.dumps(result))
    return result


def over_seeds(results: list[dict[str, Any]], name: str) -> str:
    """Mean over seeds, standard error over seeds, and that over test users or cells."""
    values = [result["test"][name] for result in results if name in result["test"]]
    if not values:
        return "-"
    users = statistics.mean(result["error_of_users"][name] for result in results)
    mean, error = spread(values)
    return f"{mean:.4f} ({error:.4f}; {users:.4f})"


def spread(values: list[float]) -> Spread:
    """Mean over seeds, and its standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return statistics.mean(values), error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=["train.num_workers=1"])
    parser.add_argument("--runs", default="runs/quality", help="folder for the runs")
    given = parser.parse_args()
    found = {}
    with connected():
        for path in given.configs:
            found[path] = [measured(path, given.set, seed, given.runs) for seed in given.seeds]
            print(json.dumps(found[path]), flush=True)
    shown = list(dict.fromkeys(name for (first, *_) in found.values() for name in first["test"]))
    rows = [
        [Path(path).stem, *(over_seeds(results, name) for name in shown)]
        for path, results in found.items()
    ]
    title = "Test metrics: mean (standard error over seeds; over test users or cells)"
    table(title, ["run file", *shown], rows)


if __name__ == "__main__":
    main()
