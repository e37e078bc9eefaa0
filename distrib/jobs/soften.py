"""Ray job: make soft labels from a trained run."""

from distrib.checkpoint.bundle import require_model
from distrib.cli import Job
from distrib.distill.job import plan, soften
from distrib.errors import run_checks

JOB = Job(
    check=lambda file: run_checks(
        lambda: require_model(file.run, file.model.name),
        lambda: plan(file.run, file.data.prepared, file.soften),
    ),
    run=lambda file: soften(file.run, file.data.prepared, file.soften),
)
