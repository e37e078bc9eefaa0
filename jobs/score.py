"""Ray job: recommend to every user. ``python jobs/score.py --config configs/demo.toml``."""

import sys

from distrib.cli import job
from distrib.report.summary import show_recommendations
from distrib.run_file import RunFile
from distrib.score.bulk.job import preflight, score
from distrib.score.commit import ScoreResult


def recommend(file: RunFile) -> ScoreResult:
    """Score all users and print the first lists."""
    result = score(file.run, file.data.prepared, file.score)
    show_recommendations(result.output)
    return result


def main() -> int:
    """Check, score, print the counts."""
    return job(
        "Write every user's recommendations as Parquet.",
        check=lambda file: preflight(file.run, file.data.prepared, file.score),
        run=recommend,
    )


if __name__ == "__main__":
    sys.exit(main())
