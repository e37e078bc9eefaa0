"""Ray job: recommend to every user."""

from distrib.checkpoint.bundle import require_model
from distrib.cli import Job
from distrib.errors import run_checks
from distrib.report.summary import show_recommendations
from distrib.run_file import RunFile
from distrib.scoring.bulk.job import preflight, score
from distrib.scoring.commit import ScoreResult


def recommend(file: RunFile) -> ScoreResult:
    """Score all users and print the first lists."""
    result = score(file.run, file.data.prepared, file.score)
    show_recommendations(result.output)
    return result


JOB = Job(
    check=lambda file: run_checks(
        lambda: require_model(file.run, file.model.name),
        lambda: preflight(file.run, file.data.prepared, file.score),
    ),
    run=recommend,
)
