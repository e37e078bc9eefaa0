"""The charts of a study."""

from collections.abc import Iterator, Sequence

import numpy as np

from distrib.evaluation.ratings import RELIABILITY
from distrib.evaluation.truth import interaction_rating_map
from distrib.report.charts import AnyChart, Chart, HeatMap, Number, RankChart, Series
from distrib.report.rating_charts import map_chart, rating_tables_of, reliability_chart
from distrib.studies.analysis import Analysis, Block
from distrib.studies.config import (
    Curves,
    Figure,
    LikelyAndLiked,
    Lines,
    Reliability,
    Scatter,
    Surface,
)
from distrib.studies.results import Row, StudyResult, data_folder, measured_folder, run_folder
from distrib.studies.statistics import Interval
from distrib.training.records import EpochRecord, history_of
from distrib.training.run_folder import HISTORY

_MOST_BLOCKS = 6
"""Blocks with charts of their own."""

_INTERVALS = "Bars are 95 % intervals over users, by resampling."


def charts(
    result: StudyResult, analysis: Analysis, figures: Sequence[Figure]
) -> Iterator[AnyChart]:
    """Yield the charts of a study.

    Args:
        result: The study.
        analysis: Its analysis.
        figures: Those that its file names.

    Yields:
        For each metric the results and, over several data sets, the ranks; then the figures of the
        study, and the first metric by length of history.
    """
    for figure in figures:
        yield from _of_figure(result, analysis, figure)
    for metric in result.metrics:
        if any(block.intervals.get(metric) for block in analysis.blocks):
            yield _results(result, analysis, metric)
        ranked = analysis.ranks.get(metric)
        if ranked is not None:
            yield RankChart(
                f"ranks-{_file(metric)}",
                f"Mean ranks by {metric} over {ranked.blocks} data sets",
                ranked.mean_ranks,
                ranked.critical_difference,
                note=f"Friedman test: p = {ranked.p_friedman:.3g}. Options whose bars overlap do "
                "not differ significantly (Nemenyi, level .05).",
            )
    for number, block in enumerate(analysis.blocks[:_MOST_BLOCKS]):
        if block.by_activity:
            yield _activity(result, block, number)
        if block.by_group:
            yield _groups(result, block, number)


def _results(result: StudyResult, analysis: Analysis, metric: str) -> Chart:
    """Return a chart of options, a series for each combination that they are compared on."""
    series = []
    for block in analysis.blocks:
        found = block.intervals.get(metric, {})
        names = [option for option in result.axes[result.compared] if option in found]
        values = [found[name] for name in names]
        if names:
            series.append(_series(block.name, names, values, has_line=False))
    return Chart(f"results-{_file(metric)}", metric, "", metric, series, note=_INTERVALS)


def _activity(result: StudyResult, block: Block, number: int) -> Chart:
    metric = result.metrics[0]
    places = [f"at most {most:g}" for most in block.by_activity["history"]["at most"]]
    series = [Series(name, places, means) for name, means in block.by_activity["means"].items()]
    return Chart(
        f"activity-{number}",
        f"{block.name}: {metric} by length of history",
        "interactions before the targets, in four groups of users",
        metric,
        series,
    )


def _groups(result: StudyResult, block: Block, number: int) -> Chart:
    metric, names = result.metrics[0], sorted(block.by_group)
    options = [*block.by_group[names[0]]]
    series = [
        Series(o, names, [block.by_group[name][o] for name in names], has_line=False)
        for o in options
    ]
    title = f"{block.name}: {metric} by group of users"
    return Chart(f"groups-{number}", title, "group", metric, series)


def _of_figure(result: StudyResult, analysis: Analysis, figure: Figure) -> Iterator[AnyChart]:
    if isinstance(figure, Lines):
        for metric in figure.metrics or result.metrics:
            yield from _lines(result, analysis, figure, metric)
    elif isinstance(figure, Curves):
        yield from _curves(result, figure)
    elif isinstance(figure, Surface):
        yield from _surfaces(result, figure)
    elif isinstance(figure, Scatter):
        yield from _scatters(result, figure)
    elif isinstance(figure, Reliability):
        yield from _reliabilities(result)
    else:
        yield from _maps(result, figure)


def _lines(result: StudyResult, analysis: Analysis, figure: Lines, metric: str) -> Iterator[Chart]:
    """Yield a chart for each combination of the axes that are neither x nor compared."""
    if figure.x == result.compared:
        yield from _lines_of_compared(analysis, figure, metric)
        return
    groups: dict[str, list[Block]] = {}
    for block in analysis.blocks:
        rest = [name for axis, name in block.options.items() if axis != figure.x]
        groups.setdefault(", ".join(rest), []).append(block)
    for group, blocks in groups.items():
        blocks = sorted(blocks, key=lambda block: float(block.options[figure.x]))
        series = [
            _line(option, blocks, metric, figure.x) for option in result.axes[result.compared]
        ]
        title = f"{group}: {metric} by {figure.x}" if group else f"{metric} by {figure.x}"
        name = f"lines-{_file(figure.x)}-{_file(metric)}-{_file(group)}"
        shown = [one for one in series if len(one.x)]
        yield Chart(name, title, figure.x, metric, shown, figure.log_x, note=_INTERVALS)


def _line(option: str, blocks: Sequence[Block], metric: str, axis: str) -> Series:
    found = [
        (float(block.options[axis]), block.intervals[metric][option])
        for block in blocks
        if option in block.intervals.get(metric, {})
    ]
    values = [one for _, one in found]
    return _series(option, [x for x, _ in found], values)


def _lines_of_compared(analysis: Analysis, figure: Lines, metric: str) -> Iterator[Chart]:
    """Yield one chart whose lines are the blocks."""
    series = []
    for block in analysis.blocks:
        found = block.intervals.get(metric, {})
        names = sorted(found, key=float)
        values = [found[name] for name in names]
        series.append(_series(block.name, [float(name) for name in names], values))
    name = f"lines-{_file(figure.x)}-{_file(metric)}"
    title = f"{metric} by {figure.x}"
    yield Chart(name, title, figure.x, metric, series, figure.log_x, note=_INTERVALS)


def _curves(result: StudyResult, figure: Curves) -> Iterator[Chart]:
    """Yield validation metrics by epoch, of the first seed."""
    for group, found in _first_seed(result).items():
        histories = {row.options[result.compared]: _history(result, row) for row in found}
        wanted = figure.metrics or result.metrics
        names = [name for name in wanted if any(name in h[0].valid for h in histories.values())]
        longest = max((history[-1].epoch for history in histories.values()), default=1)
        for metric in names:
            series = [
                _curve(option, history, metric, longest)
                for option, history in histories.items()
                if metric in history[0].valid
            ]
            title = f"{group}: validation {metric} by epoch"
            name = f"curves-{_file(metric)}-{_file(group)}"
            yield Chart(name, title, "epoch", metric, series, note=f"Seed {result.seeds[0]}.")


def _curve(option: str, history: Sequence[EpochRecord], metric: str, longest: int) -> Series:
    """Return a metric by epoch; a level for a model in closed form."""
    values = [record.valid[metric] for record in history]
    if len(values) == 1:
        return Series(option, [1, longest], values * 2)
    return Series(option, [record.epoch for record in history], values)


def _history(result: StudyResult, row: Row) -> list[EpochRecord]:
    folder = run_folder(result.runs, row.address)
    return history_of(folder.read_json(HISTORY), folder / HISTORY)


def _by_block(result: StudyResult, rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        names = [name for axis, name in row.options.items() if axis != result.compared]
        found.setdefault(", ".join(names) or result.title, []).append(row)
    return found


def _first_seed(result: StudyResult) -> dict[str, list[Row]]:
    """Return the runs of the first seed by what they are compared on."""
    rows = [row for row in result.rows if row.run is not None and row.seed == result.seeds[0]]
    return _by_block(result, rows)


def _reliabilities(result: StudyResult) -> Iterator[Chart]:
    for group, rows in _first_seed(result).items():
        tables = {
            row.options[result.compared]: found[RELIABILITY]
            for row in rows
            if RELIABILITY in (found := rating_tables_of(measured_folder(result.runs, row)))
        }
        if tables:
            yield reliability_chart(tables, f"reliability-{_file(group)}", f"{group}: ")


def _maps(result: StudyResult, figure: LikelyAndLiked) -> Iterator[HeatMap]:
    for group, rows in _first_seed(result).items():
        for row in rows:
            if row.options[result.compared] != figure.option or row.run is None:
                continue
            run = str(run_folder(result.runs, row.address))
            prepared = str(data_folder(result.runs, row.run.prepared))
            found = interaction_rating_map(run, prepared)
            if found is not None:
                name, title = f"likely-and-liked-{_file(group)}", f"{group}, {figure.option}: "
                yield map_chart(found, name, title)


def _surfaces(result: StudyResult, figure: Surface) -> Iterator[HeatMap]:
    """Yield a map of means over seeds for each combination of the other axes."""
    groups: dict[str, dict[tuple[float, float], list[float]]] = {}
    for row in result.rows:
        value = None if row.run is None else row.run.mean(figure.metric)
        rest = [name for axis, name in row.options.items() if axis not in (figure.x, figure.y)]
        if value is not None:
            place = float(row.options[figure.x]), float(row.options[figure.y])
            groups.setdefault(", ".join(rest), {}).setdefault(place, []).append(value)
    for group, cells in groups.items():
        xs, ys = (sorted({place[n] for place in cells}) for n in (0, 1))
        value_YX = [
            [float(np.mean(cells[x, y])) if (x, y) in cells else None for x in xs] for y in ys
        ]
        title = f"{group}: {figure.metric}" if group else figure.metric
        yield HeatMap(
            f"surface-{_file(figure.metric)}-{_file(group)}",
            f"{title} by {figure.x} and {figure.y}",
            figure.x,
            figure.y,
            xs,
            ys,
            value_YX,
            figure.metric,
        )


def _scatters(result: StudyResult, figure: Scatter) -> Iterator[Chart]:
    """Yield a point for each run, a series for each option compared."""
    for group, rows in _by_block(result, [r for r in result.rows if r.run is not None]).items():
        points: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            assert row.run is not None  # selected above
            x, y = row.run.mean(figure.x), row.run.mean(figure.y)
            if x is not None and y is not None:
                points.setdefault(row.options[result.compared], []).append((x, y))
        series = [
            Series(name, [x for x, _ in found], [y for _, y in found], has_line=False)
            for name, found in points.items()
        ]
        name = f"scatter-{_file(figure.x)}-{_file(figure.y)}-{_file(group)}"
        yield Chart(name, f"{group}: {figure.y} against {figure.x}", figure.x, figure.y, series)


def _series(
    name: str, x: Sequence[Number], values: Sequence[Interval], *, has_line: bool = True
) -> Series:
    """Return points with their intervals; where there is none, it is the mean alone."""
    low = [one.mean if one.low is None else one.low for one in values]
    high = [one.mean if one.high is None else one.high for one in values]
    return Series(name, x, [one.mean for one in values], low, high, has_line)


def _file(text: str) -> str:
    """Return text as part of the name of a file."""
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-")
