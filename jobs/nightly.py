"""Ray job: last night's model, a day older. ``python jobs/nightly.py --config my.toml``."""

import sys

from distrib.cli import job
from distrib.nightly import nightly, preflight


def main() -> int:
    """Check, then prepare, train on, score and publish."""
    return job(
        "Add what came to the log, train on from the last night, score everyone.",
        check=preflight,
        run=nightly,
    )


if __name__ == "__main__":
    sys.exit(main())
