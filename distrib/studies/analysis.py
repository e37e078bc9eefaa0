"""From rows to what a study says: intervals, comparisons, ranks."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from distrib.config import Record
from distrib.evaluation.job import BY_USER, HISTORY
from distrib.evaluation.measured import PAIRS, SUM
from distrib.evaluation.protocol import is_lower_better
from distrib.metrics import ROOTS
from distrib.storage import Folder
from distrib.studies.results import Row, StudyResult
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

    unpaired: tuple[str, ...]
    """Options whose test users differ from those of the others, so that no test pairs them."""

    @property
    def name(self) -> str:
        """The options as people read them."""
        return ", ".join(self.options.values()) or "all runs"


class Analysis(Record):
    """A study, analyzed."""

    blocks: tuple[Block, ...]
    ranks: dict[str, Ranks]
    """By metric."""


class _Vectors(NamedTuple):
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
    vectors = {name: _vectors(result, found) for name, found in by_option.items()}
    aligned, unpaired = _aligned(vectors)
    intervals: dict[str, dict[str, Interval]] = {}
    comparisons: dict[str, tuple[Comparison, ...]] = {}
    for metric in result.metrics:
        samples = {
            name: found.by_metric[metric]
            for name, found in aligned.items()
            if metric in found.by_metric
        }
        draw_RM = resampled([*samples.values()], num_draws, seed=0) if samples else None
        draws = {} if draw_RM is None else dict(zip(samples, draw_RM.T, strict=True))
        intervals[metric] = {
            name: interval(samples[name], draws[name])
            if name in samples
            else _of_records(found, metric)
            for name, found in by_option.items()
            if name in samples or found[0].run.mean(metric) is not None  # type: ignore[union-attr]
        }
        if len(samples) > 1:
            against = _against(
                result, metric, {n: i.mean for n, i in intervals[metric].items() if n in samples}
            )
            comparisons[metric] = tuple(compared(samples, draws, against))
    return Block(
        options=options,
        intervals=intervals,
        comparisons=comparisons,
        by_activity=_by_activity(aligned, result.metrics[0]),
        unpaired=tuple(unpaired),
    )


def _against(result: StudyResult, metric: str, means: Mapping[str, float]) -> str:
    """Return the option that others are tested against: the baseline, or the best."""
    if result.baseline in means:
        return str(result.baseline)
    return best_of(metric, means)


def best_of(metric: str, means: Mapping[str, float]) -> str:
    """Return the option with the best value of a metric."""
    choose = min if is_lower_better(metric) else max
    return choose(means, key=lambda name: means[name])


def _vectors(result: StudyResult, rows: Sequence[Row]) -> _Vectors:
    """Read the metrics of each user of one option."""
    frames = [_by_user(Folder(result.runs) / "runs" / row.address) for row in rows]
    first = frames[0]
    if any(list(frame.index) != list(first.index) for frame in frames):
        return _Vectors([], np.zeros(0), {})
    found: dict[str, Samples] = {}
    for metric in result.metrics:
        summed = f"model_{_SUMS.get(metric, metric)}{SUM}"
        if metric in _SUMS and summed in first:
            sum_SU = np.stack([frame[summed].to_numpy() for frame in frames])
            count_U = first[f"model_{PAIRS}"].to_numpy()
            found[metric] = Samples(sum_SU, count_U, is_root=metric in ROOTS.values())
        elif f"model_{metric}" in first:
            value_SU = np.stack([frame[f"model_{metric}"].to_numpy() for frame in frames])
            found[metric] = Samples.of(value_SU)
    return _Vectors(list(first.index), first[HISTORY].to_numpy(), found)


def _by_user(run: Folder) -> pd.DataFrame:
    folder = run / BY_USER
    parts = []
    for name in folder.files(".parquet"):
        table = folder.read_parquet(name)
        if len(table):
            frame = table.drop_columns(["user"]).to_pandas()
            frame.index = pd.Index(pc.cast(table["user"], "string").to_pylist())
            parts.append(frame)
    return pd.concat(parts).sort_index()


def _aligned(vectors: Mapping[str, _Vectors]) -> tuple[dict[str, _Vectors], list[str]]:
    """Return the options with the same users as most, and the others."""
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
    seeds = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    return Interval(
        mean=mean,
        low=mean - 1.96 * error,
        high=mean + 1.96 * error,
        error_of_users=error,
        error_of_seeds=seeds,
        users=0 if run is None else run.users,
    )


_GROUPS = 4


def _by_activity(
    aligned: Mapping[str, _Vectors], metric: str
) -> dict[str, dict[str, tuple[float, ...]]]:
    """Return a metric in four groups of users by length of history."""
    having = {name: found for name, found in aligned.items() if metric in found.by_metric}
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


def _mean(samples: Samples, group: np.ndarray) -> float:
    part = Samples(samples.sum_SU[:, group], samples.count_U[group], samples.is_root)
    return float(part.by_seed.mean())


def _ranks(result: StudyResult, blocks: Sequence[Block]) -> dict[str, Ranks]:
    found = {}
    for metric in result.metrics:
        rows = {
            block.name: {name: one.mean for name, one in block.intervals.get(metric, {}).items()}
            for block in blocks
        }
        ranked = ranks(pd.DataFrame(rows).T, lower_is_better=is_lower_better(metric))
        if ranked is not None:
            found[metric] = ranked
    return found
