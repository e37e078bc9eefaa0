"""Ray job: can this run train here? ``python jobs/doctor.py --config configs/demo.toml``."""

import sys

from distrib.cli import job
from distrib.run_file import RunFile
from distrib.train.preflight.checks import preflight
from distrib.train.preflight.doctor import examine


def check(file: RunFile) -> None:
    """Run the checks that need no cluster."""
    preflight(file.training())


def main() -> int:
    """Check the nodes, run some updates, print the estimate."""
    return job(
        "Check every node and estimate memory and time of training before it starts.",
        check=check,
        run=lambda file: examine(file.training()),
    )


if __name__ == "__main__":
    sys.exit(main())
