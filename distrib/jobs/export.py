"""Ray job: export embeddings."""

from distrib.cli import Job
from distrib.scoring.export import export, preflight

JOB = Job(
    check=lambda file: preflight(file.run, file.data.prepared, file.export, file.score),
    run=lambda file: export(file.run, file.data.prepared, file.export, file.score),
)
