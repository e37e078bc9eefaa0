"""The study job: prepare, choose settings by trials, run what is missing, report."""

import difflib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from distrib.config import JsonObject
from distrib.data.prepare.job import read_plan
from distrib.errors import ConfigError, DistribError
from distrib.evaluation.protocol import DISTANCE
from distrib.events import emit
from distrib.fence import require_ours, take_over
from distrib.storage import Folder
from distrib.studies import plan
from distrib.studies.analysis import analyzed
from distrib.studies.config import StudyFile
from distrib.studies.export import export
from distrib.studies.plan import Cell
from distrib.studies.publish import publish, show
from distrib.studies.results import Row, StudyResult, Trial, label_of
from distrib.studies.run import environment, finished, now
from distrib.studies.run_pages import draw_runs
from distrib.studies.session import Session
from distrib.terminal import progress_bar
from distrib.toml_text import toml_text
from distrib.training.preflight.checks import check_run


class Given(NamedTuple):
    """A study and where it comes from."""

    file: StudyFile
    cells: Sequence[Cell]
    command: str


def given(file: StudyFile, command: str, variables: Mapping[str, str]) -> Given:
    """Return a study as it is run, with its combinations; see `plan.cells`."""
    file = file.sized()
    return Given(file, plan.cells(file, variables), command)


class Planned(NamedTuple):
    """What a study would do."""

    runs: int
    """Combinations with all seeds."""

    trials: int
    done: int
    """Of both, as far as their addresses are known: the others depend on data that are not
    prepared, on trials or on other runs."""

    hours: float | None
    """Time of one process for all that is not known to be done, at the mean of finished runs."""


def check(study: Given) -> None:
    """Check every run file and every log.

    Args:
        study: The study.

    Raises:
        ConfigError: Settings of runs conflict, logs are missing, or parents are left out; lists all
            faults.
    """
    plan.levels(study.cells)
    faults = dict.fromkeys(_metric_faults(study))
    logs = dict[str, str]()
    for cell in study.cells:
        run_file = cell.first_file
        log = run_file.data.model_dump_json()
        if log not in logs:
            logs[log] = _fault_of(lambda: read_plan(run_file.data))  # noqa: B023  called at once
        fault = logs[log]
        if not (fault or plan.needs_labels(run_file)):
            fault = _fault_of(lambda: check_run(run_file.training()))  # noqa: B023
        if fault:
            faults[f"{label_of(cell.options)}: {fault}"] = None
    if faults:
        raise ConfigError("\n".join(faults))


def _metric_faults(study: Given) -> list[str]:
    """Return which metrics no run can have."""
    file = study.file
    known = {name for cell in study.cells for name in cell.first_file.evaluate.test_metrics}
    wanted = [*file.metrics, *(name for one in file.figures for name in one.measured)]
    faults = []
    for name in dict.fromkeys(wanted):
        is_of_group = "recall@" in name and " of " in name  # groups are those of a file
        if name not in known and not is_of_group and not name.startswith(DISTANCE):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "set the cutoffs in evaluate"
            faults.append(f"metric {name!r}: no run measures it; {hint}")
    return faults


def _fault_of(action: Callable[[], object]) -> str:
    try:
        action()
    except DistribError as error:
        return str(error)
    return ""


def planned(study: Given) -> Planned:
    """Return what a study would do, without a cluster.

    Args:
        study: The study.

    Returns:
        Counts and a rough time.
    """
    file, cells, _ = study
    session = Session(file)
    trials = sum(cell.search.num_trials for cell in cells if cell.search is not None)
    num_done, seconds = 0, list[float]()
    for cell in cells:
        if cell.search is not None or cell.parents or not session.finds(cell):
            continue
        for seed in file.seeds:
            found = finished(session.task(cell, seed, {}).file, is_trial=False)
            if found is not None:
                num_done += 1
                seconds.append(found.cost.train_s + found.cost.evaluate_s)
    runs = len(cells) * len(file.seeds)
    left = runs + trials - num_done
    hours = left * sum(seconds) / len(seconds) / 3600 if seconds else None
    return Planned(runs, trials, num_done, hours)


def study(study: Given) -> JsonObject:
    """Run what a study needs and no study has run before, then report; Ray must be running.

    Args:
        study: The study.

    Returns:
        Counts, and where the page is.

    Raises:
        ConfigError: Every run failed.
        TakenOverError: A later start of the study writes its report.
    """
    file, output = study.file, Folder(study.file.output)
    token = take_over(output)
    rows, trials = _done(study)
    failed = [row for row in rows if row.run is None]
    if len(failed) == len(rows):
        raise ConfigError(f"every run failed, the first by: {failed[0].fault}")
    result = _result(study, rows, trials)
    analysis = analyzed(result)
    require_ours(output, token)
    if file.run_pages:
        draw_runs(result, {cell.key: cell.first_file.model.spec.output for cell in study.cells})
    text = toml_text(file.model_dump(mode="json", exclude_unset=True))
    page = publish(file.output, result, analysis, file.figures, text)
    if file.export is not None:
        export(output, result, file.export)
    show(result, analysis)
    emit("studied", runs=len(rows), failed=len(failed), page=page)
    return {"page": page, "runs": len(rows), "failed": len(failed), "folder": str(output)}


def _done(study: Given) -> tuple[list[Row], list[Trial]]:
    """Return a row for each combination and seed, those that failed with the reason, and trials."""
    file, cells, _ = study
    session = Session(file)
    rows: dict[tuple[str, int], Row] = {}
    with progress_bar("runs") as bar:
        session.begin(len(cells) * len(file.seeds), bar)
        for cell in cells:
            session.prepare(cell)
        for level in plan.levels(cells):
            rows |= session.run_level(level)
    return [rows[cell.key, seed] for cell in cells for seed in file.seeds], session.trials


def _result(study: Given, rows: Sequence[Row], trials: Sequence[Trial]) -> StudyResult:
    file = study.file
    return StudyResult(
        title=file.title,
        question=file.question,
        source=file.source,
        study=hashlib.sha256(file.model_dump_json().encode()).hexdigest()[:16],
        runs=file.runs,
        seeds=file.seeds,
        metrics=file.metrics,
        axes={axis: tuple(options) for axis, options in file.axes.items()},
        compared=file.compared_axis,
        baseline=file.baseline,
        published=file.published,
        user_groups=file.user_groups,
        rows=tuple(rows),
        trials=tuple(trials),
        environment=environment(),
        finished=now(),
        command=study.command,
    )
