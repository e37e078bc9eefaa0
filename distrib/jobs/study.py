"""Ray job: run and report a study."""

import shlex
from collections.abc import Sequence

from distrib.cli import Job, environment
from distrib.config import load
from distrib.studies.config import StudyFile
from distrib.studies.job import Given, check, given, study


def read(path: str, settings: Sequence[str]) -> Given:
    """Read a study file, and the run files that it starts from."""
    file = load(StudyFile, path, overrides=settings, environment=environment())
    quoted = (f"--set {shlex.quote(text)}" for text in settings)
    command = " ".join(["distrib study --config", shlex.quote(path), *quoted])
    return given(file, command, environment())


JOB = Job(
    check=check,
    run=study,
    read=read,
)
