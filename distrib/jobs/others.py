"""Commands that take more than a run file."""

from distrib.cli import environment, through_endpoint
from distrib.settings import commands
from distrib.studies.command import comparison
from distrib.submit.command import plan_run, submission


def init(about: str, arguments: list[str]) -> int:
    """Look at a log, and write a run file for it."""
    return commands.init(about, arguments)


def plan(about: str, arguments: list[str]) -> int:
    """Estimate memory and time of a run."""
    return plan_run(about, environment(), arguments)


def submit(about: str, arguments: list[str]) -> int:
    """Submit a job to a cluster."""
    return submission(about, environment(), arguments)


def score_through(about: str, arguments: list[str]) -> int:
    """Score users through a server."""
    return through_endpoint(about, arguments)


def compare(about: str, arguments: list[str]) -> int:
    """Compare evaluated runs on the same data."""
    return comparison(about, arguments)
