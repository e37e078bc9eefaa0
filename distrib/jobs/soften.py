"""Ray job: make soft labels from a trained run."""

from distrib.cli import Job
from distrib.distill.job import plan, soften

JOB = Job(
    check=lambda file: plan(file.run, file.data.prepared, file.soften),
    run=lambda file: soften(file.run, file.data.prepared, file.soften),
)
