"""Ray job: recommend to every user. ``python jobs/score.py --config configs/demo.toml``."""

import sys

from distrib.cli import job
from distrib.score.bulk import preflight, score


def main() -> int:
    """Check, score, print the counts."""
    return job(
        "Write every user's recommendations as Parquet.",
        check=lambda file: preflight(file.run, file.data.prepared, file.score),
        run=lambda file: score(file.run, file.data.prepared, file.score)["counts"],
    )


if __name__ == "__main__":
    sys.exit(main())
