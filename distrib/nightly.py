"""Nightly run: ingest new log rows, warm-start training, score, publish lists and model."""

import itertools
import time
from collections.abc import Collection, Sequence

from distrib.checkpoint.bundle import BUNDLE, copy_bundle
from distrib.config import PlainName, Record, read_record, sealed
from distrib.data.dataset import DatasetManifest
from distrib.data.prepare.job import preflight as check_log
from distrib.data.prepare.job import prepare
from distrib.data.schema import Role
from distrib.distill.job import soften
from distrib.errors import ConfigError, run_checks
from distrib.events import emit
from distrib.fence import require_ours, take_over
from distrib.objectives.label_config import ReadsLabels, StoredLabel
from distrib.run_file import RunFile
from distrib.scoring.bulk.job import check_histories, score
from distrib.scoring.commit import ScoreResult
from distrib.scoring.policy import ScoreConfig
from distrib.storage import Folder
from distrib.training.preflight.checks import check_run
from distrib.training.records import RunResult
from distrib.training.schemes import can_warm_start
from distrib.training.workers.launch import launch

NIGHTLY_RUNS = "nights.json"
"""In the run folder: the nightly runs kept; the last one may be unfinished."""

_KEPT = 3
"""Number of nightly runs whose folders are kept for rollback."""


class NightResult(Record):
    """Result of a nightly run."""

    night: str
    new: bool
    """False if the log has no new rows since the previous run."""

    trained: RunResult | None = None
    scored: ScoreResult | None = None


class NightlyRun(Record):
    """One entry of ``nights.json``."""

    name: PlainName
    """Start date, UTC."""

    data: str | None = None
    """Digest of its training data; None until prepared."""

    is_done: bool = False


def preflight(file: RunFile) -> None:
    """Check the configuration and the log.

    Args:
        file: The run file.

    Raises:
        ConfigError: Settings conflict.
        DataError: The log or the histories to score are missing.
    """
    run_checks(
        lambda: check_run(file.training()),
        lambda: _check_labels(file),
        lambda: check_histories(file.score),
        lambda: check_log(file.data),
    )


class _NightlyRuns(Record):
    """Content of ``nights.json``."""

    runs: tuple[NightlyRun, ...]


def nightly(file: RunFile, today: str | None = None) -> NightResult:
    """Prepare, train in a folder of its own, score, and publish lists and model.

    Training warm-starts from the previous nightly run where the model can (``train.warm_start``).
    Lists go to ``score.output``, or ``recommendations`` in the run folder. The bundle goes to the
    run folder, where a server loads it without downtime. Until then both are from the previous run;
    a server keeps its model while the bundle is replaced. An interrupted run is finished under its
    own name before a new one starts; it restarts if the log has grown meanwhile. A run without new
    rows trains nothing; it makes the lists again if their rules have changed.

    Args:
        file: The run file; with ``data.extend = true`` each run adds the new files.
        today: Name of a new run; today's date (UTC) by default.

    Returns:
        The result of the run.

    Raises:
        TakenOverError: Another attempt of the job has started since; that one continues.
    """
    folder = Folder(file.run)
    token = take_over(folder)
    nightly_runs = _nightly_runs(folder)
    if not nightly_runs or nightly_runs[-1].is_done:
        nightly_runs.append(NightlyRun(name=today or time.strftime("%Y-%m-%d", time.gmtime())))
    nightly_run, before = nightly_runs[-1], nightly_runs[:-1]
    prepared = prepare(file.data)
    data = prepared.hash
    _report_held_out(file, prepared)
    if before and before[-1].data == data:
        emit("nothing_new", night=nightly_run.name, since=before[-1].name)
        # Rules may have changed; otherwise the lists are found to be up to date.
        scored = score(str(_place(folder, before[-1])), file.data.prepared, _lists(file, folder))
        return NightResult(night=before[-1].name, new=False, scored=scored)
    nightly_run = nightly_run.model_copy(
        update={"name": _free(nightly_run.name, {earlier.name for earlier in before})}
    )
    place = _place(folder, nightly_run)
    require_ours(folder, token)
    if nightly_run.data not in {None, data}:
        place.remove()  # the log has grown since the interruption; that training data is outdated
    nightly_runs[-1] = nightly_run.model_copy(update={"data": data})
    _note(folder, nightly_runs)
    tonight = _tonight(file, place, _earlier(file, folder, before, prepared.forgets))
    trained = launch(tonight.training())
    lists = _lists(file, folder)
    scored = score(tonight.run, file.data.prepared, lists)
    require_ours(folder, token)
    copy_bundle(place / BUNDLE, folder / BUNDLE)
    nightly_runs[-1] = nightly_runs[-1].model_copy(update={"is_done": True})
    for old in nightly_runs[:-_KEPT]:
        _place(folder, old).remove()
    _note(folder, nightly_runs[-_KEPT:])
    emit("night_done", night=nightly_run.name, run=tonight.run, lists=lists.output)
    return NightResult(night=nightly_run.name, new=True, trained=trained, scored=scored)


def _report_held_out(file: RunFile, prepared: DatasetManifest) -> None:
    """Say how much the model does not learn from; a split is for measuring, not for a night."""
    held_out = prepared.counts.interactions(Role.VALID_TARGET, Role.TEST_TARGET)
    if held_out:
        advice = 'to train on all, set data.split = { name = "none" } and another data.prepared'
        emit("holds_out", split=file.data.split.name, interactions=held_out, advice=advice)


def _lists(file: RunFile, folder: Folder) -> ScoreConfig:
    output = file.score.output or str(folder / "recommendations")
    return file.score.model_copy(update={"output": output})


def _tonight(file: RunFile, place: Folder, earlier: str | None) -> RunFile:
    """Return the run of a night; makes its soft labels first, if it learns from any."""
    train = file.train.model_copy(update={"warm_start": earlier})
    tonight = file.model_copy(update={"run": str(place), "train": train})
    return _softened(tonight) if tonight.soften.nightly else tonight


def _softened(tonight: RunFile) -> RunFile:
    """Train a base run with the model's own objective, and make the labels that tonight's needs.

    The base starts from last night's base, not from the run that soft labels have trained.
    """
    train, last = tonight.train, f"{tonight.train.warm_start}/base"
    if train.warm_start is not None and (Folder(last) / BUNDLE).exists():
        train = train.model_copy(update={"warm_start": last})
    changes = {"run": f"{tonight.run}/base", "objective": None, "train": train}
    base = tonight.model_copy(update=changes)
    launch(base.training())
    settings = tonight.soften.model_copy(update={"output": f"{tonight.run}/soft_labels"})
    made = soften(base.run, tonight.data.prepared, settings)
    assert tonight.objective is not None  # `preflight` has checked that it reads labels
    label = StoredLabel(path=made.output)
    objective = tonight.objective.model_copy(update={"label": label})
    return tonight.model_copy(update={"objective": objective})


def _check_labels(file: RunFile) -> None:
    if not file.soften.nightly:
        return
    label = file.objective.label if isinstance(file.objective, ReadsLabels) else None
    if not isinstance(label, StoredLabel):
        raise ConfigError(
            "soften.nightly = true, but the objective has no stored label; set objective.label = "
            "{ kind = 'stored', path = '...' }, or soften.nightly = false"
        )


def _free(name: str, taken: set[str]) -> str:
    """Return the name, numbered if a run of that day exists."""
    names = (f"{name}-{number}" if number else name for number in itertools.count())
    return next(found for found in names if found not in taken)


def _nightly_runs(folder: Folder) -> list[NightlyRun]:
    if not folder.exists(NIGHTLY_RUNS):
        return []
    found = folder.read_json(NIGHTLY_RUNS)
    if isinstance(found, list):  # as before 0.2
        found = {"runs": found}
    return list(read_record(_NightlyRuns, found, folder / NIGHTLY_RUNS).runs)


def _note(folder: Folder, nightly_runs: Sequence[NightlyRun]) -> None:
    runs = [entry.model_dump() for entry in nightly_runs]
    folder.write_json(NIGHTLY_RUNS, sealed({"runs": runs}))


def _place(folder: Folder, nightly_run: NightlyRun) -> Folder:
    return folder / f"nights/{nightly_run.name}"


def _earlier(
    file: RunFile, folder: Folder, before: list[NightlyRun], forgets: Collection[str]
) -> str | None:
    """Return the run to warm-start from, or None if the model cannot warm-start.

    A model of people who have been removed since is none to start from.
    """
    if not can_warm_start(file.training()):
        return None
    if before and before[-1].data in forgets:
        emit("not_warm_started", night=before[-1].name, why="people were removed from its data")
        return None
    return str(_place(folder, before[-1])) if before else file.train.warm_start
