"""From rows to what a study says: intervals, comparisons, ranks."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from distrib.config import Record
from distrib.data.groups import read_groups
from distrib.errors import DataError
from distrib.evaluation.job import BY_USER, HISTORY
from distrib.evaluation.job import RESULT as EVALUATION
from distrib.evaluation.measured import PAIRS, SUM
from distrib.evaluation.protocol import is_lower_better, is_neutral
from distrib.metrics import ROOTS
from distrib.storage import Folder
from distrib.studies.results import Row, StudyResult, label_of, measured_folder
from distrib.studies.statistics import (
    Comparison,
    FloatArray,
    Interval,
    Ranks,
    Samples,
    compared,
    interval,
    ranks,
    resampled,
)

DATA = "data"
"""Name of the axis over whose options ranks are taken."""

_DRAWS = 1000
_SUMS = {root: name for name, root in ROOTS.items()} | {"mae": "mae"}
"""Metrics that are means over pairs, and the name of what is summed by user."""


class Block(Record):
    """What options are compared on: the same data and the same other options."""

    options: dict[str, str]
    """By axis, without the compared one."""

    intervals: dict[str, dict[str, Interval]]
    """By metric and option."""

    comparisons: dict[str, tuple[Comparison, ...]]
    """By metric."""

    by_activity: dict[str, dict[str, tuple[float, ...]]]
    """Of the first metric, in four groups of users by length of history: ``history``, the longest
    of each group, and ``means`` by option."""

    by_group: dict[str, dict[str, float]]
    """Mean of the first metric by group of users and option, where groups are given."""

    unpaired: tuple[str, ...]
    """Options whose test users differ from those of the others, so that no test pairs them."""

    @property
    def name(self) -> str:
        """The options as people read them."""
        return label_of(self.options) or "all runs"


class Analysis(Record):
    """A study, analyzed."""

    blocks: tuple[Block, ...]
    ranks: dict[str, Ranks]
    """By metric."""


class Vectors(NamedTuple):
    """The metrics of each test user, over the seeds of one option."""

    user_U: list[str]
    history_U: FloatArray
    by_metric: Mapping[str, Samples]


def analyzed(result: StudyResult, num_draws: int = _DRAWS) -> Analysis:
    """Analyze a study.

    Args:
        result: The study; its runs must be readable.
        num_draws: Resamples of users.

    Returns:
        The analysis.
    """
    blocks = [_block(result, options, rows, num_draws) for options, rows in _rows_by_block(result)]
    return Analysis(blocks=tuple(blocks), ranks=_ranks(result, blocks))


def _rows_by_block(result: StudyResult) -> list[tuple[dict[str, str], list[Row]]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    others = [axis for axis in result.axes if axis != result.compared]
    for row in result.rows:
        found.setdefault(tuple(row.options[axis] for axis in others), []).append(row)
    return [(dict(zip(others, key, strict=True)), rows) for key, rows in found.items()]


def _block(
    result: StudyResult, options: dict[str, str], rows: Sequence[Row], num_draws: int
) -> Block:
    by_option: dict[str, list[Row]] = {}
    for row in rows:
        if row.run is not None:
            by_option.setdefault(row.options[result.compared], []).append(row)
    seeds = [{row.seed for row in found} for found in by_option.values()]
    common = set.intersection(*seeds) if seeds else set[int]()
    if common:  # the others failed for some option, and would be compared with nothing
        by_option = {n: [r for r in found if r.seed in common] for n, found in by_option.items()}
    vectors = {
        name: vectors_of([measured_folder(result.runs, row) for row in found], result.metrics)
        for name, found in by_option.items()
    }
    paired, unpaired = aligned(vectors)
    intervals, comparisons = assessed(paired, result.metrics, result.baseline, num_draws)
    for metric in result.metrics:
        found_there = intervals.setdefault(metric, {})
        for name, found in by_option.items():
            is_known = found[0].run is not None and found[0].run.mean(metric) is not None
            if name not in found_there and is_known:
                found_there[name] = _of_records(found, metric)
    return Block(
        options=options,
        intervals=intervals,
        comparisons=comparisons,
        by_activity=_by_activity(paired, result.metrics[0]),
        by_group=_by_group(paired, result.metrics[0], result.user_groups),
        unpaired=tuple(unpaired),
    )


def assessed(
    vectors: Mapping[str, Vectors],
    metrics: Sequence[str],
    baseline: str | None,
    num_draws: int = _DRAWS,
) -> tuple[dict[str, dict[str, Interval]], dict[str, tuple[Comparison, ...]]]:
    """Return intervals and paired comparisons by metric.

    Args:
        vectors: By option, all of the same users.
        metrics: Which metrics.
        baseline: Option to test against; the best one where None, or where it lacks the metric.
        num_draws: Resamples of users.

    Returns:
        By metric: intervals by option, and comparisons.
    """
    intervals: dict[str, dict[str, Interval]] = {}
    comparisons: dict[str, tuple[Comparison, ...]] = {}
    for metric in metrics:
        samples = _of_common_users(
            {n: v.by_metric[metric] for n, v in vectors.items() if metric in v.by_metric}
        )
        if not samples:
            continue
        draw_RM = resampled([*samples.values()], num_draws, seed=0)
        draws = dict(zip(samples, draw_RM.T, strict=True))
        intervals[metric] = {name: interval(one, draws[name]) for name, one in samples.items()}
        means = {name: one.mean for name, one in intervals[metric].items()}
        against = baseline if baseline in means else best_of(metric, means) or next(iter(means))
        if len(samples) > 1:
            is_lower = is_lower_better(metric)
            found = compared(samples, draws, str(against), lower_is_better=is_lower)
            comparisons[metric] = tuple(found)
    return intervals, comparisons


def _of_common_users(samples: Mapping[str, Samples]) -> dict[str, Samples]:
    """Return samples over the users of which all have the metric, less options without any."""
    having = {name: one for name, one in samples.items() if one.count_U.any()}
    if not having:
        return {}
    is_common_U = np.all([one.count_U > 0 for one in having.values()], axis=0)
    return {
        name: one._replace(sum_SU=one.sum_SU * is_common_U, count_U=one.count_U * is_common_U)
        for name, one in having.items()
    }


def best_of(metric: str, means: Mapping[str, float]) -> str | None:
    """Return the option with the best value of a metric; None where no value is good by itself."""
    if is_neutral(metric):
        return None
    choose = min if is_lower_better(metric) else max
    return choose(means, key=lambda name: means[name])


def vectors_of(runs: Sequence[Folder], metrics: Sequence[str]) -> Vectors:
    """Read the metrics of each test user of runs that differ by seed alone.

    Args:
        runs: Folders of evaluated runs.
        metrics: Which metrics.

    Returns:
        The metrics; none where the runs have different users.
    """
    frames = [_by_user(run) for run in runs]
    first = frames[0]
    if any(list(frame.index) != list(first.index) for frame in frames):
        return Vectors([], np.zeros(0), {})
    found: dict[str, Samples] = {}
    for metric in metrics:
        summed = f"model_{_SUMS.get(metric, metric)}{SUM}"
        if metric in _SUMS and summed in first:
            sum_SU = np.stack([frame[summed].to_numpy() for frame in frames])
            count_U = first[f"model_{PAIRS}"].to_numpy()
            found[metric] = Samples(sum_SU, count_U, is_root=metric in ROOTS.values())
        elif f"model_{metric}" in first:
            value_SU = np.stack([frame[f"model_{metric}"].to_numpy() for frame in frames])
            found[metric] = Samples.of(value_SU)
    return Vectors(list(first.index), first[HISTORY].to_numpy(), found)


def _by_user(run: Folder) -> pd.DataFrame:
    folder = run / BY_USER
    parts = []
    for name in folder.files(".parquet"):
        table = folder.read_parquet(name)
        if HISTORY not in table.column_names:
            raise DataError(
                f"{folder}: of an earlier version, without sums by user; remove "
                f"{run / EVALUATION} and evaluate again"
            )
        if len(table):
            frame = table.drop_columns(["user"]).to_pandas()
            frame.index = pd.Index(pc.cast(table["user"], "string").to_pylist())
            parts.append(frame)
    if not parts:
        raise DataError(f"{run}: holds no metrics of users; evaluate it first")
    return pd.concat(parts).sort_index()


def aligned(vectors: Mapping[str, Vectors]) -> tuple[dict[str, Vectors], list[str]]:
    """Return the options with the same users as most, and the names of the others."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, found in vectors.items():
        groups.setdefault(tuple(found.user_U), []).append(name)
    groups.pop((), None)
    if not groups:
        return {}, list(vectors)
    chosen = max(groups.values(), key=len)
    return {name: vectors[name] for name in chosen}, [n for n in vectors if n not in chosen]


def _of_records(rows: Sequence[Row], metric: str) -> Interval:
    """Return an interval from the means that runs recorded, for what is no mean over users."""
    values = np.array([row.run.mean(metric) for row in rows if row.run is not None], dtype=float)
    run = rows[0].run
    summary = None if run is None else (run.metrics or {}).get("model", {}).get(metric)
    error = 0.0 if summary is None else summary.standard_error
    mean = float(values.mean())
    reach = 1.96 * error if error else None  # a share of the catalog has no error over users
    seeds = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    return Interval(
        mean=mean,
        low=None if reach is None else mean - reach,
        high=None if reach is None else mean + reach,
        error_of_users=error or None,
        error_of_seeds=seeds,
        users=0 if run is None else run.users,
    )


_GROUPS = 4


def _by_activity(
    paired: Mapping[str, Vectors], metric: str
) -> dict[str, dict[str, tuple[float, ...]]]:
    """Return a metric in four groups of users by length of history."""
    having = {name: found for name, found in paired.items() if metric in found.by_metric}
    if not having:
        return {}
    history_U = next(iter(having.values())).history_U
    if len(history_U) < _GROUPS:
        return {}
    order = np.argsort(history_U, kind="stable")
    groups = np.array_split(order, _GROUPS)
    longest = tuple(float(history_U[group].max()) for group in groups)
    means = {
        name: tuple(_mean(f.by_metric[metric], g) for g in groups) for name, f in having.items()
    }
    return {"history": {"at most": longest}, "means": means}


def _by_group(
    paired: Mapping[str, Vectors], metric: str, path: str | None
) -> dict[str, dict[str, float]]:
    """Return a metric by group of users; users without a group take no part."""
    having = {name: found for name, found in paired.items() if metric in found.by_metric}
    if path is None or not having:
        return {}
    group_of = _groups_of(path)
    groups = pd.Series([group_of.get(user) for user in next(iter(having.values())).user_U])
    places = groups.groupby(groups).indices
    return {
        str(group): {name: _mean(one.by_metric[metric], place) for name, one in having.items()}
        for group, place in places.items()
    }


def _groups_of(path: str) -> dict[str, str]:
    users, groups = read_groups(path, "user", "user_groups")
    pairs = zip(pc.cast(users, "string").to_pylist(), groups.to_pylist(), strict=True)
    return {user: group for user, group in pairs if group is not None}


def _mean(samples: Samples, group: np.ndarray) -> float:
    part = Samples(samples.sum_SU[:, group], samples.count_U[group], samples.is_root)
    return float(part.by_seed.mean())


def _ranks(result: StudyResult, blocks: Sequence[Block]) -> dict[str, Ranks]:
    """Rank over the options of an axis named ``data``: others of one log are not independent."""
    if DATA not in result.axes or result.compared == DATA:
        return {}
    found = {}
    for metric in [name for name in result.metrics if not is_neutral(name)]:
        rows = [
            {DATA: block.options[DATA], **{name: one.mean for name, one in of_metric.items()}}
            for block in blocks
            if (of_metric := block.intervals.get(metric, {}))
        ]
        if not rows:
            continue
        means = pd.DataFrame(rows).groupby(DATA).mean()
        ranked = ranks(means, lower_is_better=is_lower_better(metric))
        if ranked is not None:
            found[metric] = ranked
    return found
