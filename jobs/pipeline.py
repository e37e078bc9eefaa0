"""Ray job: the whole way in one go. ``python jobs/pipeline.py --config configs/demo.toml``."""

import sys
from typing import Any

from distrib.cli import job
from distrib.data.prepare import preflight, prepare
from distrib.evaluate.run import evaluate
from distrib.report.summary import draw_curves, draw_map, show_evaluation
from distrib.run_file import RunFile
from distrib.score.bulk import score
from distrib.train.launch import check_choice, launch


def check(file: RunFile) -> None:
    """Find faults of the configuration and the log."""
    check_choice(file.training())
    preflight(file.data)


def pipeline(file: RunFile) -> dict[str, Any]:
    """Prepare, train, evaluate, score."""
    counts = prepare(file.data)["counts"]
    trained = launch(file.training())
    curves = draw_curves(file.run, trained["best_epoch"])
    measured = evaluate(file.run, file.data.prepared, file.evaluate)
    scored = score(file.run, file.data.prepared, file.score)["counts"]
    show_evaluation(measured)
    plots = [curves, draw_map(file.run, file.data.prepared)]
    return {
        "prepared": counts,
        "trained": trained,
        "evaluated": measured,
        "scored": scored,
        "plots": plots,
    }


if __name__ == "__main__":
    sys.exit(job("Prepare, train, evaluate and score.", check=check, run=pipeline))
