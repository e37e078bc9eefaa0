"""What a submitted study needs: its file as a whole, and places that outlast the job."""

import tomllib
from pathlib import Path

from distrib.config import JsonObject
from distrib.errors import ConfigError
from distrib.studies.config import StudyFile
from distrib.submit.request import refuse_relative
from distrib.toml_text import toml_text


def whole_text(text: str) -> str:
    """Return a study file with the run files that it starts from in it.

    Args:
        text: The study file; names of run files are relative to the working folder.

    Returns:
        TOML; variables stay, for the cluster.

    Raises:
        ConfigError: A run file does not exist.
    """
    document = tomllib.loads(text)
    options = [document.get("common", {})]
    options += [one for axis in document.get("axes", {}).values() for one in axis.values()]
    for option in options:
        if isinstance(option.get("base"), str):
            option["base"] = _read(option["base"])
    return toml_text(document)


def _read(path: str) -> JsonObject:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"base = {path!r}: cannot be read ({error})") from error


def require_shared_study(study: StudyFile) -> None:
    """Refuse folders inside the job's working folder, which Ray removes.

    Args:
        study: The study, as read on the submitting machine.

    Raises:
        ConfigError: The output or the runs have a relative path.
    """
    refuse_relative([("output", study.output), ("runs", study.runs)])
