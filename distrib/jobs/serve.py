"""Ray job: serve models over HTTP."""

from distrib.cli import Job
from distrib.serve.deployment import preflight, run_until_stopped

JOB = Job(
    check=lambda file: preflight(file.run, file.data.prepared, file.serve),
    run=lambda file: run_until_stopped(file.run, file.data.prepared, file.serve),
    when_stopped="requests in flight were answered; the server has ended",
)
