"""Ray job: a rating log to histories. ``python jobs/prepare.py --config configs/demo.toml``."""

import sys

from distrib.cli import job
from distrib.data.prepare.job import preflight, prepare


def main() -> int:
    """Check, prepare, print the manifest's counts."""
    return job(
        "Turn a rating log into sharded user histories.",
        check=lambda file: preflight(file.data),
        run=lambda file: {
            "prepared": file.data.prepared,
            "counts": prepare(file.data).counts.to_json(),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
