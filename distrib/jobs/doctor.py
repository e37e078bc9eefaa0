"""Ray job: can this run train here?"""

from distrib.cli import Job
from distrib.run_file import RunFile
from distrib.training.preflight.checks import preflight
from distrib.training.preflight.doctor import examine


def check(file: RunFile) -> None:
    """Run the checks that need no cluster."""
    preflight(file.training())


JOB = Job(
    check=check,
    run=lambda file: examine(file.training()),
)
