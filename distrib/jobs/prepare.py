"""Ray job: prepare a rating log."""

from distrib.cli import Job
from distrib.data.prepare.job import preflight, prepare

JOB = Job(
    check=lambda file: preflight(file.data),
    run=lambda file: {
        "prepared": file.data.prepared,
        "counts": prepare(file.data).counts.to_json(),
    },
)
