"""Ray job: make soft labels from a trained run. ``python jobs/soften.py --config my.toml``."""

import sys

from distrib.cli import job
from distrib.distill.job import plan, soften


def main() -> int:
    """Check, embed, cluster, propagate, print the counts."""
    return job(
        "Write a soft label for each training user as Parquet.",
        check=lambda file: plan(file.run, file.data.prepared, file.soften),
        run=lambda file: soften(file.run, file.data.prepared, file.soften),
    )


if __name__ == "__main__":
    sys.exit(main())
