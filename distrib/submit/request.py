"""The submitted job, and the sizes of its log for the estimate."""

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from distrib.config import Record
from distrib.data.dataset import MANIFEST, Dataset
from distrib.data.logs.config import SyntheticLog
from distrib.errors import ConfigError
from distrib.run_file import RunFile
from distrib.storage import Folder
from distrib.training.preflight.estimate import sizes_of_counts
from distrib.training.schemes.base import Sizes

JOBS = (
    *("prepare", "train", "soften", "evaluate", "score", "export", "search", "study"),
    *("pipeline", "nightly", "convert", "forget", "doctor"),
)
"""Jobs that take a run file and run to completion."""

_NAME = re.compile(r"^[a-z]([-a-z0-9]{0,45}[a-z0-9])?$")


class JobResult(Record):
    """What is known of a submitted job."""

    job: str
    """Name on the cluster."""

    status: str | None = None
    exit_code: int | None = None
    """None while the job is not followed to its end."""

    result: str | None = None
    """Last line of its output."""

    manifests: str | None = Field(default=None, exclude=True)
    """YAML of what a dry run would create."""


class Request(NamedTuple):
    """A job with its run file."""

    job: str
    run_file: str
    """Text of the run file; the cluster substitutes its variables."""

    settings: tuple[str, ...] = ()
    """Overrides, as in ``--set``."""

    name: str = ""
    uses_gpu: bool = False
    """Whether the run file requests GPUs."""

    @classmethod
    def of(cls, job: str, config: str, settings: list[str], name: str | None) -> "Request":
        """Read the run file; generate a job name if none is given; reject invalid names."""
        if job not in JOBS:
            raise ConfigError(f"job {job!r}: unknown; use one of {', '.join(JOBS)}")
        name = name or f"{job}-{time.strftime('%m%d-%H%M%S', time.gmtime())}"
        if not _NAME.match(name):
            raise ConfigError(
                f"--name {name!r}: use a lowercase letter, then lowercase letters, digits and "
                "dashes, at most 47 characters, no dash at the end"
            )
        return cls(job, Path(config).read_text(encoding="utf-8"), tuple(settings), name)

    def arguments(self, run_file: str) -> list[str]:
        """Return the arguments of ``distrib``, for the path of the run file."""
        sets = [part for setting in self.settings for part in ("--set", setting)]
        return [self.job, "--config", run_file, *sets]


def sizes_of(file: RunFile) -> Sizes | None:
    """Return the sizes of the log of a run, if they are available here.

    Args:
        file: The run file; variables that are unset here stay unexpanded.

    Returns:
        The sizes; None if the prepared data is unreachable or does not exist yet.
    """
    source = file.data.source
    if isinstance(source, SyntheticLog):
        return Sizes(source.num_users, source.num_items, source.num_interactions)
    prepared = file.data.prepared
    if "${" in prepared or not Folder(prepared).exists(MANIFEST):
        return None
    return sizes_of_counts(Dataset.open(prepared).manifest.counts)


def require_shared(file: RunFile) -> None:
    """Refuse paths that lead into the job's working folder, which Ray removes.

    Args:
        file: The run file, as read on the submitting machine.

    Raises:
        ConfigError: The run, its data or its log have a relative path; lists all.
    """
    logs = getattr(file.data.source, "path", [])  # one, or several
    paths = [("run", file.run), ("data.prepared", file.data.prepared)]
    paths += [("data.source.path", log) for log in ([logs] if isinstance(logs, str) else logs)]
    refuse_relative(paths)


def refuse_relative(paths: Sequence[tuple[str, str]]) -> None:
    """Refuse paths, by setting, that depend on the working folder of a process.

    Args:
        paths: Setting and path.

    Raises:
        ConfigError: Lists all that do.
    """
    wrong = [f"{key} = {path!r}" for key, path in paths if not _is_shared(path)]
    if wrong:
        raise ConfigError(
            f"{'; '.join(wrong)}: relative to the working folder of the job, which the cluster "
            "removes; use a URL, or an absolute path that all nodes share"
        )


def _is_shared(path: str) -> bool:
    return path.startswith(("/", "${")) or "://" in path
