"""Soft targets and their rivals: run files over seeds, one table.

``python -m tests.benchmarks.soft_target configs/diginetica_youtube_dnn.toml --seeds 0 1 2``. For
each seed a base run is trained, and soft labels are made from it. The strength of smoothing is
the best of its grid on validation with the first seed. What is done already is not done again.
"""

import argparse
import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distrib.cli import connected
from distrib.config import load
from distrib.distill.job import soften
from distrib.events import table
from distrib.run_file import RunFile
from tests.benchmarks.quality import measured, over_seeds

SMOOTHING = (0.05, 0.1, 0.2, 0.3, 0.5)
SHARE = 0.3


def variants(base: str) -> dict[str, list[dict[str, Any]]]:
    """Objectives by name; of several, validation with the first seed chooses."""
    labels, near = ({"kind": "stored", "path": f"{base}/{n}"} for n in ("soft_labels", "neighbors"))
    popular, uniform = {"kind": "popularity"}, {"kind": "uniform"}
    coupled = {"form": "coupled", "label_share": SHARE}
    return {
        "label smoothing": [
            {"label": uniform, "form": "coupled", "label_share": share} for share in SMOOTHING
        ],
        "popularity (POP+)": [{"label": popular, **coupled}],
        "neighbors (CSN)": [{"label": near, **coupled}],
        "soft label, coupled": [{"label": labels, **coupled}],
        "soft label, decoupled": [{"label": labels, "label_share": SHARE}],
    }


def inline(value: Any) -> str:
    """A value as inline TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {inline(part)}" for key, part in value.items()) + "}"
    return json.dumps(value)


def softened(
    path: str, settings: list[str], run: str, name: str, **changes: Any
) -> dict[str, float]:
    """Make soft labels from a base run, in a folder of it; return what they are like."""
    file = load(RunFile, path, overrides=settings, environment=os.environ)
    config = file.soften.model_copy(update={**changes, "output": f"{run}/{name}"})
    return soften(run, file.data.prepared, config).counts.statistics or {}


def study(path: str, given: argparse.Namespace) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the results over seeds of each objective."""
    found, chosen = dict[str, list[dict[str, Any]]](), dict[str, int]()
    for seed in given.seeds:
        folder = f"{given.runs}/base"
        found.setdefault("cross-entropy", []).append(measured(path, given.set, seed, folder))
        base = f"{folder}/{Path(path).stem}-{seed}"
        softened(path, given.set, base, "soft_labels")
        softened(path, given.set, base, "neighbors", method="neighbors")
        for name, choices in variants(base).items():
            if given.only and name not in given.only:
                continue
            if name in chosen:
                choices = [choices[chosen[name]]]
            tried = []
            for choice in choices:
                place = f"{given.runs}/{slug(name)}-{choice['label_share']}"
                settings = [*given.set, f"objective={inline({'name': 'soft_target', **choice})}"]
                tried.append(measured(path, settings, seed, place))
            best = max(range(len(tried)), key=lambda n: tried[n]["valid"]["ndcg@10"])
            chosen.setdefault(name, best)
            found.setdefault(name, []).append(tried[best])
    yield from found.items()


def slug(name: str) -> str:
    """A name of folders."""
    return "-".join(name.split(" (")[0].replace(",", "").split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", action="append", help="an objective by its name; may repeat")
    parser.add_argument("--set", action="append", default=["train.num_workers=1"])
    parser.add_argument("--runs", default="runs/soft_target", help="folder for the runs")
    given = parser.parse_args()
    rows, shown = [], ["recall@10", "ndcg@10", "recall@20", "ndcg@20"]
    with connected():
        for path in given.configs:
            for name, results in study(path, given):
                ahead = statistics.mean(result["valid"]["ndcg@10"] for result in results)
                cells = [over_seeds(results, metric) for metric in shown]
                rows.append([Path(path).stem, name, *cells, f"{ahead:.4f}"])
                print(json.dumps({"config": path, "objective": name, "results": results}))
    title = "Test metrics: mean (standard error over seeds; over users)"
    table(title, ["run file", "objective", *shown, "validation NDCG@10"], rows)


if __name__ == "__main__":
    main()
