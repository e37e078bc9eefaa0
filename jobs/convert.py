"""Ray job: convert a log or histories. ``python jobs/convert.py --config my.toml``."""

import sys

from distrib.cli import job
from distrib.data.export import convert, preflight


def main() -> int:
    """Validate, convert, print the counts."""
    return job(
        "Write a rating log, or prepared histories, as RecBole, CSV or Parquet files.",
        check=lambda file: preflight(file.data, file.convert),
        run=lambda file: convert(file.data, file.convert),
    )


if __name__ == "__main__":
    sys.exit(main())
