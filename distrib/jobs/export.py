"""Ray job: export embeddings."""

from distrib.checkpoint.bundle import require_model
from distrib.cli import Job
from distrib.errors import run_checks
from distrib.scoring.export import export, preflight

JOB = Job(
    check=lambda file: run_checks(
        lambda: require_model(file.run, file.model.name),
        lambda: preflight(file.run, file.data.prepared, file.export, file.score),
    ),
    run=lambda file: export(file.run, file.data.prepared, file.export, file.score),
)
