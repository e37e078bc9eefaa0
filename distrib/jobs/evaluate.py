"""Ray job: evaluate a trained model."""

from distrib.checkpoint.bundle import require_model
from distrib.cli import Job
from distrib.config import JsonObject
from distrib.errors import run_checks
from distrib.evaluation.job import evaluate, preflight
from distrib.report.run_page import draw_run
from distrib.report.summary import show_evaluation
from distrib.run_file import RunFile


def measure(file: RunFile) -> JsonObject:
    """Evaluate, print the table, draw the map and the page."""
    result = evaluate(file.run, file.data.prepared, file.evaluate)
    show_evaluation(result, file.model.spec.output, file.data.prepared)
    drawn = draw_run(file.run, file.data.prepared, result, file.model.spec.output)
    return {**result.to_json(), **drawn}


JOB = Job(
    check=lambda file: run_checks(
        lambda: require_model(file.run, file.model.name),
        lambda: preflight(file.run, file.data.prepared),
    ),
    run=measure,
)
