"""Compare runs on the same data: paired tests, and the users that change most."""

from collections.abc import Sequence

import numpy as np

from distrib.config import Record, read_record
from distrib.errors import ConfigError
from distrib.evaluation.config import INTERACTIONS
from distrib.evaluation.job import RESULT, Evaluation
from distrib.events import table, table_text
from distrib.report.page import Section, Table, TableRow, page
from distrib.storage import Folder, last_part
from distrib.studies.analysis import Vectors, aligned, assessed, vectors_of
from distrib.studies.publish import DIFFERENCE, difference_cells
from distrib.studies.results import MEASURED
from distrib.studies.statistics import Comparison, Interval, star

_SHOWN_USERS = 20
_TITLE = "Test metrics (standard error over users); * differs significantly from the first"


class ChangedUser(Record):
    """A user whose metric differs most between two runs."""

    user: str
    history: float
    """Interactions before the targets."""

    values: dict[str, float]
    """By run."""

    difference: float


class RunComparison(Record):
    """Runs on the same data."""

    data: str
    runs: dict[str, str]
    """Folder by name; the others are tested against the first."""

    intervals: dict[str, dict[str, Interval]]
    comparisons: dict[str, tuple[Comparison, ...]]
    changed: dict[str, tuple[ChangedUser, ...]]
    """By run: users that gain or lose most against the first run, by the first metric."""

    def __str__(self) -> str:
        """Return the metrics as a table."""
        return f"{_TITLE}\n{table_text(['', *self.runs], _rows(self))}"


def compare(runs: Sequence[str], metrics: Sequence[str] = ()) -> RunComparison:
    """Compare evaluated runs, user by user.

    Args:
        runs: Their folders; the others are tested against the first.
        metrics: Which test metrics, the first of which decides which users are named; by default
            all that every run has.

    Returns:
        The comparison.

    Raises:
        ConfigError: Fewer than two runs, or different data or users.
        DataError: A run was not evaluated.
    """
    if len(runs) < 2:
        raise ConfigError(f"compare needs two runs or more, but got {len(runs)}")
    names = _measured(_names(runs))
    found = {}
    for name, run in names.items():
        folder = Folder(run)
        if not folder.exists(RESULT):
            raise ConfigError(
                f"{folder}: was not evaluated, or not as the others; run distrib evaluate, or name "
                "a folder of measured/"
            )
        found[name] = read_record(Evaluation, folder.read_json(RESULT), folder / RESULT)
    data = {one.data for one in found.values()}
    if len(data) > 1:
        listing = ", ".join(f"{names[name]}: {one.data[:12]}" for name, one in found.items())
        raise ConfigError(f"the runs were evaluated on different data ({listing})")
    first = next(iter(found.values()))
    shared = [
        name
        for name in first.metrics["model"]
        if name not in INTERACTIONS and all(name in one.metrics["model"] for one in found.values())
    ]
    wanted = list(metrics) or shared
    vectors = {name: vectors_of([Folder(run)], wanted) for name, run in names.items()}
    paired, unpaired = aligned(vectors)
    if unpaired:
        raise ConfigError(f"the test users of {unpaired} differ from those of the others")
    base = next(iter(names))
    intervals, comparisons = assessed(paired, wanted, base)
    unknown = [metric for metric in metrics if metric not in intervals]
    if unknown:
        raise ConfigError(f"--metric {unknown}: not measured by user; there are {shared}")
    decisive = next(iter(intervals), None)
    changed = {}
    if decisive is not None:
        changed = {n: _changed(paired, decisive, base, n) for n in names if n != base}
    return RunComparison(
        data=data.pop(),
        runs=names,
        intervals=intervals,
        comparisons=comparisons,
        changed=changed,
    )


def _measured(runs: dict[str, str]) -> dict[str, str]:
    """Return where runs were measured: runs of studies in a folder inside, alike where they can."""
    of_studies = {
        name: {*(Folder(run) / MEASURED).folders()}
        for name, run in runs.items()
        if not Folder(run).exists(RESULT)
    }
    common = sorted(set.intersection(*of_studies.values())) if of_studies else []
    if not common:
        return runs
    places = {name: str(Folder(runs[name]) / MEASURED / common[0]) for name in of_studies}
    return runs | places


def _names(runs: Sequence[str]) -> dict[str, str]:
    """Name runs by the last part of their folders where these differ."""
    short = [last_part(run) for run in runs]
    is_clear = len(set(short)) == len(runs)
    if len({str(Folder(run)) for run in runs}) < len(runs):
        raise ConfigError("compare names a run twice")
    return dict(zip(short if is_clear else runs, runs, strict=True))


def _changed(
    vectors: dict[str, Vectors], metric: str, base: str, other: str
) -> tuple[ChangedUser, ...]:
    one, two = (vectors[name].by_metric[metric] for name in (base, other))
    value_RU = np.stack([part.mean_U / np.maximum(part.count_U, 1.0) for part in (one, two)])
    difference_U = value_RU[1] - value_RU[0]
    order = np.argsort(-np.abs(difference_U), kind="stable")[:_SHOWN_USERS]
    known = vectors[base]
    return tuple(
        ChangedUser(
            user=known.user_U[place],
            history=float(known.history_U[place]),
            values={base: float(value_RU[0, place]), other: float(value_RU[1, place])},
            difference=float(difference_U[place]),
        )
        for place in order
        if difference_U[place]
    )


def show(found: RunComparison) -> None:
    """Print the comparison."""
    table(_TITLE, ["", *found.runs], _rows(found))


def _rows(found: RunComparison) -> list[list[str]]:
    return [
        [metric, *(_text(found, metric, name) for name in found.runs)] for metric in found.intervals
    ]


def _text(found: RunComparison, metric: str, name: str) -> str:
    one = found.intervals[metric].get(name)
    if one is None:
        return "-"
    mark = star(found.comparisons.get(metric, ()), name)
    return f"{one.mean:.4f}{mark} ({one.error_of_users or 0.0:.4f})"


def page_of(found: RunComparison) -> str:
    """Return the comparison as a page."""
    differences: list[TableRow] = [
        [f"{one.option}: {metric}", *difference_cells(one)]
        for metric, tests in found.comparisons.items()
        for one in tests
    ]
    base, *others = found.runs
    users = [
        Table(
            f"{name} against {base}",
            ["user", "interactions before", base, name, "difference"],
            [
                [
                    one.user,
                    f"{one.history:g}",
                    *(f"{value:.4f}" for value in one.values.values()),
                    f"{one.difference:+.4f}",
                ]
                for one in found.changed.get(name, ())
            ],
        )
        for name in others
    ]
    sections = [
        Section("Metrics", [Table("", ["", *found.runs], _rows(found))]),
        Section(f"Differences to {base}", [Table("", ["", *DIFFERENCE], differences)]),
        Section("Users that change most", users),
    ]
    return page("Runs compared", f"Data {found.data[:12]}.", sections)
