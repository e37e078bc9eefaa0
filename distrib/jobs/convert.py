"""Ray job: convert a log or histories."""

from distrib.cli import Job
from distrib.data.export import convert, preflight

JOB = Job(
    check=lambda file: preflight(file.data, file.convert),
    run=lambda file: convert(file.data, file.convert),
)
