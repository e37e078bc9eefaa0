"""The jobs as functions, for notebooks and scripts; the same engine as the command line.

Ray starts on this machine unless it runs already; errors are raised as `DistribError`.
"""

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
import ray

from distrib.checkpoint.bundle import require_model
from distrib.cli import connect, environment
from distrib.config import JsonObject, checked, load
from distrib.data.dataset import DatasetManifest
from distrib.data.prepare import job as preparation
from distrib.errors import ConfigError, DataError
from distrib.evaluation import job as evaluation
from distrib.evaluation.job import Evaluation
from distrib.frames import Frame, to_arrow
from distrib.run_file import RunFile
from distrib.scoring.bulk import job as bulk
from distrib.scoring.commit import ScoreResult
from distrib.settings.guess import guess
from distrib.settings.starter import Purpose, measure, name_of, run_file
from distrib.storage import Folder, parquet_bytes
from distrib.terminal import readable_lines
from distrib.toml_text import inline
from distrib.training.preflight.checks import preflight
from distrib.training.records import RunResult
from distrib.training.workers.launch import launch

if TYPE_CHECKING:
    from distrib.studies.compare import RunComparison

RunSettings: TypeAlias = RunFile | str | Path | None
"""A run file, read or by its path; None where its sections are given by name."""


def init(
    log: Frame | str,
    *,
    run: str | None = None,
    purpose: Purpose = "research",
    columns: Mapping[str, str] = MappingProxyType({}),
    **sections: Any,
) -> RunFile:
    """Look at a log, and describe a run for it, as ``distrib init`` does.

    Args:
        log: Path or URL of a file, folder, pattern or table; or a pandas, Polars or Arrow table,
            which is written beside the run folder.
        run: Run folder; by default named after the log, in ``runs``.
        purpose: ``research``: a part is held out to measure; ``nightly``: all of it trains.
        columns: Your names of ``user``, ``item``, ``rating`` and ``time``, where they are not
            found, such as ``{"user": "account", "item": "sku"}``.
        **sections: Sections of the run file, such as ``model="ease"`` or
            ``train={"num_epochs": 5}``; they replace single settings.

    Returns:
        The run file, for `prepare`, `train`, `evaluate` and `score`.

    Raises:
        DataError: No columns of users and items are found.
        ConfigError: A setting is invalid.
    """
    table = to_arrow(log)
    url = str(log) if table is None else _written(table, run)
    try:
        found = guess(url, columns)
    except DataError as error:
        names = f"the table has columns {table.column_names}; " if table is not None else ""
        hint = 'name them, such as columns={"user": "account", "item": "sku"}'
        raise DataError(f"{error}; {names}{hint}") from error
    name = name_of(url if run is None else run)
    plain = _plain(sections)
    model = plain.get("model", {}).get("name")
    document = tomllib.loads(run_file(found, measure(found), purpose, name, model))
    if run is not None:
        document["run"], document["data"]["prepared"] = run, f"{run}-data"
    return checked(RunFile, _merged(document, plain), where="distrib.init")


def prepare(file: RunSettings = None, /, **sections: Any) -> DatasetManifest:
    """Convert a log to sharded user histories, as ``distrib prepare`` does.

    Args:
        file: A run file, read or by its path.
        **sections: The sections of a run, such as ``run="runs/a", data={...}, model={...}``; with
            a file, settings that replace its own.

    Returns:
        The manifest of the prepared data, with the count of every row.

    Raises:
        ConfigError: A setting is invalid.
        DataError: The log is not usable.
    """
    found = _run(file, sections)
    preparation.preflight(found.data)
    with readable_lines():
        _connect()
        return preparation.prepare(found.data)


def train(file: RunSettings = None, /, **sections: Any) -> RunResult:
    """Train a model on prepared data, or resume training, as ``distrib train`` does.

    Args:
        file: See `prepare`.
        **sections: See `prepare`.

    Returns:
        The best epoch and its metrics.

    Raises:
        DistribError: See `distrib.training.workers.launch.launch`.
    """
    found = _run(file, sections)
    preflight(found.training())
    with readable_lines():
        _connect()
        return launch(found.training())


def evaluate(file: RunSettings = None, /, **sections: Any) -> Evaluation:
    """Measure a trained model on held-out interactions, as ``distrib evaluate`` does.

    Args:
        file: See `prepare`.
        **sections: See `prepare`.

    Returns:
        Metrics with standard errors.

    Raises:
        DataError: Nothing is held out.
        ConfigError: The model was trained on other data.
    """
    found = _run(file, sections)
    require_model(found.run, found.model.name)
    evaluation.preflight(found.run, found.data.prepared)
    with readable_lines():
        _connect()
        return evaluation.evaluate(found.run, found.data.prepared, found.evaluate)


def score(file: RunSettings = None, /, **sections: Any) -> ScoreResult:
    """Write every user's recommendations, as ``distrib score`` does.

    Args:
        file: See `prepare`.
        **sections: See `prepare`.

    Returns:
        Folder of the lists, and counts.

    Raises:
        DataError: The histories are not valid.
        ConfigError: A setting is invalid.
    """
    found = _run(file, sections)
    require_model(found.run, found.model.name)
    bulk.preflight(found.run, found.data.prepared, found.score)
    with readable_lines():
        _connect()
        return bulk.score(found.run, found.data.prepared, found.score)


def compare(*runs: RunFile | str | Path, metrics: Sequence[str] = ()) -> "RunComparison":
    """Compare evaluated runs on the same data, user by user, as ``distrib compare`` does.

    Args:
        *runs: Run folders, or run files that name them; the others are tested against the first.
        metrics: Which test metrics; by default all that every run has.

    Returns:
        Means with intervals, paired tests, and the users that change most.

    Raises:
        ConfigError: Fewer than two runs, a run that was not evaluated, or different data or users.
    """
    from distrib.studies import compare as studies  # its statistics take a second

    folders = [run.run if isinstance(run, RunFile) else str(run) for run in runs]
    return studies.compare(folders, metrics)


def _run(file: RunSettings, sections: Mapping[str, Any]) -> RunFile:
    given = _plain(sections)
    if file is None:
        return checked(RunFile, given, where="the arguments")
    if isinstance(file, RunFile):
        document = file.model_dump(mode="json", exclude_unset=True)
        return checked(RunFile, _merged(document, given), where="the arguments")
    settings = [f"{path}={inline(value)}" for path, value in _leaves(given)]
    return load(RunFile, file, overrides=settings, environment=environment())


def _plain(sections: Mapping[str, Any]) -> JsonObject:
    """Return sections as JSON; a model by its name alone is one with default settings."""
    unknown = [name for name in sections if name not in RunFile.model_fields]
    if unknown:
        raise ConfigError(f"unknown section(s) {unknown}; there are {list(RunFile.model_fields)}")
    model = sections.get("model")
    return {**sections, "model": {"name": model}} if isinstance(model, str) else {**sections}


def _merged(document: JsonObject, changes: Mapping[str, Any]) -> JsonObject:
    """Return a document with some values replaced; a table with another name as a whole."""
    found = {**document}
    for key, value in changes.items():
        old = found.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            is_same = value.get("name", old.get("name")) == old.get("name")
            found[key] = _merged(old, value) if is_same else value
        else:
            found[key] = value
    return found


def _leaves(node: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return values by dotted name; a table with a name replaces the one of the file."""
    found: list[tuple[str, Any]] = []
    for key, value in node.items():
        is_whole = not isinstance(value, Mapping) or "name" in value or "format" in value
        inner = [(prefix + key, value)] if is_whole else _leaves(value, f"{prefix}{key}.")
        found += inner
    return found


def _written(table: pa.Table, run: str | None) -> str:
    """Write a table once, under a name that follows from its content; return the path."""
    content, place = parquet_bytes(table), f"{run or 'runs/log'}-log"
    name = f"{hashlib.sha256(content).hexdigest()[:16]}.parquet"
    folder = Folder(place)
    if not folder.exists(name):
        folder.write(name, content)
    return f"{place}/{name}"


def _connect() -> None:
    if not ray.is_initialized():
        connect()
