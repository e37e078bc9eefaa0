"""Ray job: the whole way in one go. ``python jobs/pipeline.py --config configs/demo.toml``."""

import sys
from typing import Any

from distrib.cli import job
from distrib.data.prepare.job import preflight, prepare
from distrib.evaluate.job import check_split, evaluate
from distrib.report.summary import draw_curves, draw_map, show_evaluation, show_recommendations
from distrib.run_file import RunFile
from distrib.score.bulk.job import check_histories, score
from distrib.train.preflight.checks import check_choice
from distrib.train.workers.launch import launch


def check(file: RunFile) -> None:
    """Find faults of the configuration and the log."""
    check_choice(file.training())
    check_split(file.data.split)
    check_histories(file.score)
    preflight(file.data)


def pipeline(file: RunFile) -> dict[str, Any]:
    """Prepare, train, evaluate, score."""
    run, prepared = file.run, file.data.prepared
    prepare(file.data)
    result = {"trained": launch(file.training())}
    plots = [draw_curves(run, result["trained"]["best_epoch"]), draw_map(run, prepared)]
    result["evaluated"] = evaluate(run, prepared, file.evaluate)
    result["scored"] = score(run, prepared, file.score)
    show_evaluation(result["evaluated"])
    show_recommendations(result["scored"]["output"])
    return {**result, "plots": plots}


if __name__ == "__main__":
    sys.exit(job("Prepare, train, evaluate and score.", check=check, run=pipeline))
