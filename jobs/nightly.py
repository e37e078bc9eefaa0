"""Ray job: update a model nightly. ``python jobs/nightly.py --config my.toml``."""

import sys

from distrib.cli import job
from distrib.nightly import nightly, preflight


def main() -> int:
    """Check, then prepare, train, score and publish."""
    return job(
        "Ingest new log rows, warm-start training, score all users, publish.",
        check=preflight,
        run=nightly,
    )


if __name__ == "__main__":
    sys.exit(main())
