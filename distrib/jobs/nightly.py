"""Ray job: update a model nightly."""

from distrib.cli import Job
from distrib.nightly import nightly, preflight

JOB = Job(
    check=preflight,
    run=nightly,
)
