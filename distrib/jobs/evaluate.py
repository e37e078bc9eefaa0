"""Ray job: evaluate a trained model."""

from distrib.cli import Job
from distrib.config import JsonObject
from distrib.evaluation.job import evaluate, preflight
from distrib.report.summary import draw_map, show_evaluation
from distrib.run_file import RunFile


def measure(file: RunFile) -> JsonObject:
    """Evaluate, print the table, plot the map."""
    result = evaluate(file.run, file.data.prepared, file.evaluate)
    show_evaluation(result, file.model.spec.output, file.data.prepared)
    return {**result.to_json(), "map": draw_map(file.run, file.data.prepared)}


JOB = Job(
    check=lambda file: preflight(file.run, file.data.prepared),
    run=measure,
)
