"""Ray job: remove people."""

from distrib.cli import Job
from distrib.forget import forget, preflight

JOB = Job(
    check=preflight,
    run=forget,
)
