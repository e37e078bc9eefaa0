"""What is submitted, and what it will cost as far as its run file tells."""

import re
import shlex
import time
from pathlib import Path
from typing import NamedTuple

from distrib.data.dataset import MANIFEST, Dataset
from distrib.data.logs.config import SyntheticLog
from distrib.errors import ConfigError
from distrib.run_file import RunFile
from distrib.storage import Folder
from distrib.train.preflight.estimate import sizes_of_counts
from distrib.train.schemes.base import Sizes

JOBS = (
    *("prepare", "train", "evaluate", "score", "export", "search"),
    *("pipeline", "nightly", "convert", "doctor"),
)
"""Jobs that take a run file and end by themselves."""

_NAME = re.compile(r"^[a-z]([-a-z0-9]{0,45}[a-z0-9])?$")


class Request(NamedTuple):
    """A job with its run file."""

    job: str
    run_file: str
    """Its text; variables in it are those of the cluster."""

    settings: tuple[str, ...] = ()
    """Overrides, as of ``--set``."""

    name: str = ""
    uses_gpu: bool = False
    """Whether the run file asks for GPUs."""

    @classmethod
    def of(cls, job: str, config: str, settings: list[str], name: str | None) -> "Request":
        """Read the run file, name the job where nobody did, and refuse what cannot be a name."""
        if job not in JOBS:
            raise ConfigError(f"job {job!r}: not known; one of {', '.join(JOBS)}")
        name = name or f"{job}-{time.strftime('%m%d-%H%M%S', time.gmtime())}"
        if not _NAME.match(name):
            raise ConfigError(
                f"--name {name!r}: give a letter, then letters, digits and dashes in lower case, "
                "47 at most"
            )
        return cls(job, Path(config).read_text(encoding="utf-8"), tuple(settings), name)

    def command(self, script: str, run_file: str) -> str:
        """Return the line that runs it, with the paths of the script and of the run file."""
        sets = [part for setting in self.settings for part in ("--set", setting)]
        return shlex.join(["python", script, "--config", run_file, *sets])


def sizes_of(file: RunFile) -> Sizes | None:
    """Find out how large the log of a run is, where that can be told from here.

    Args:
        file: The run file; variables that are not set here stand in it as they are.

    Returns:
        The sizes; None where the prepared data are out of reach or do not exist yet.
    """
    source = file.data.source
    if isinstance(source, SyntheticLog):
        return Sizes(source.num_users, source.num_items, source.num_interactions)
    prepared = file.data.prepared
    if "${" in prepared or not Folder(prepared).exists(MANIFEST):
        return None
    return sizes_of_counts(Dataset.open(prepared).manifest.counts)
