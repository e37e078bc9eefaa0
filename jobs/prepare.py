"""Ray job: prepare a rating log. ``python jobs/prepare.py --config configs/demo.toml``."""

import sys

from distrib.cli import job
from distrib.data.prepare.job import preflight, prepare


def main() -> int:
    """Check, prepare, print the manifest's counts."""
    return job(
        "Convert a rating log to sharded user histories.",
        check=lambda file: preflight(file.data),
        run=lambda file: {
            "prepared": file.data.prepared,
            "counts": prepare(file.data).counts.to_json(),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
