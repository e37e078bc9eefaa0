"""Ray job: train a model."""

from distrib.cli import Job
from distrib.config import JsonObject
from distrib.report.summary import draw_curves
from distrib.run_file import RunFile
from distrib.training.preflight.checks import preflight
from distrib.training.workers.launch import launch


def train(file: RunFile) -> JsonObject:
    """Train, or resume training, and draw the curves."""
    result = launch(file.training())
    curves = draw_curves(file.run, result.best_epoch, file.train.compare_with)
    return {**result.to_json(), "curves": curves}


JOB = Job(
    check=lambda file: preflight(file.training()),
    run=train,
)
