"""Charts as data, drawn twice: for a page that zooms, and as PNG."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("Agg")  # job pods have no display

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distrib.config import JsonObject

Number = float | int | str
"""A place on an axis; text where the axis has categories."""

# Okabe and Ito's colors, which people with any kind of color vision can distinguish.
COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#B8A600",
    "#5B4EA8", "#8C510A",
)  # fmt: skip
_DASHES = ("solid", "dash", "dot")
_LINES = {"solid": "-", "dash": "--", "dot": ":"}


class Series(NamedTuple):
    """Points of one option."""

    name: str
    x: Sequence[Number]
    y: Sequence[float]
    low: Sequence[float] | None = None
    """Lower ends of intervals."""

    high: Sequence[float] | None = None
    has_line: bool = True
    labels: Sequence[str] | None = None
    """Text of each point, shown beside the pointer."""


class Chart(NamedTuple):
    """Lines or points."""

    name: str
    """Of its file, without ending."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    note: str = ""
    """What a reader should know, under the chart."""


class HeatMap(NamedTuple):
    """A value by two axes."""

    name: str
    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    y: Sequence[float]
    value_YX: Sequence[Sequence[float | None]]
    value_label: str
    curve: Series | None = None
    note: str = ""


class RankChart(NamedTuple):
    """Mean ranks with the difference below which they do not differ: a critical-difference diagram.

    Source: Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7, 2006,
    figure 1.
    """

    name: str
    title: str
    mean_ranks: Mapping[str, float]
    critical_difference: float
    note: str = ""


AnyChart = Chart | HeatMap | RankChart


def color(number: int) -> str:
    """Return the color of a series by its number."""
    return COLORS[number % len(COLORS)]


def dash(number: int) -> str:
    """Return how the line of a series is drawn, so that colors can repeat."""
    return _DASHES[number // len(COLORS) % len(_DASHES)]


def plotly_of(chart: AnyChart) -> JsonObject:
    """Return a chart as plotly.js takes it.

    Args:
        chart: The chart.

    Returns:
        ``data`` and ``layout``; the page adds its colors.
    """
    if isinstance(chart, RankChart):
        return plotly_of(_of_ranks(chart))
    layout: JsonObject = {
        "xaxis": {"title": {"text": chart.x_label}, "automargin": True},
        "yaxis": {"title": {"text": chart.y_label}, "automargin": True},
        "margin": {"t": 16, "r": 12},
        "legend": {"orientation": "h", "y": -0.25},
        "height": 380,
    }
    if isinstance(chart, HeatMap):
        return {"data": _heat_traces(chart), "layout": layout}
    if chart.log_x:
        layout["xaxis"]["type"] = "log"
    if chart.log_y:
        layout["yaxis"]["type"] = "log"
    return {
        "data": [_trace(series, number) for number, series in enumerate(chart.series)],
        "layout": layout,
    }


def _trace(series: Series, number: int) -> JsonObject:
    trace: JsonObject = {
        "type": "scatter",
        "name": series.name,
        "x": list(series.x),
        "y": _plain(series.y),
        "mode": "lines+markers" if series.has_line else "markers",
        "marker": {"color": color(number), "size": 7},
        "line": {"color": color(number), "dash": dash(number)},
    }
    if series.labels is not None:
        trace["text"] = list(series.labels)
    if series.low is not None and series.high is not None:
        above = [high - y for high, y in zip(series.high, series.y, strict=True)]
        below = [y - low for low, y in zip(series.low, series.y, strict=True)]
        trace["error_y"] = {
            "type": "data", "symmetric": False, "array": above, "arrayminus": below,
            "thickness": 1, "width": 3,
        }  # fmt: skip
    return trace


def _plain(values: Sequence[float]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _heat_traces(chart: HeatMap) -> list[JsonObject]:
    traces: list[JsonObject] = [
        {
            "type": "heatmap", "x": list(chart.x), "y": list(chart.y),
            "z": [list(row) for row in chart.value_YX], "colorscale": "Viridis",
            "colorbar": {"title": {"text": chart.value_label}},
        }
    ]  # fmt: skip
    if chart.curve is not None:
        traces.append(_trace(chart.curve, 1))
    return traces


def _of_ranks(chart: RankChart) -> Chart:
    """Return ranks as points, each with a bar of half the critical difference on either side."""
    names = sorted(chart.mean_ranks, key=lambda name: chart.mean_ranks[name])
    values = [chart.mean_ranks[name] for name in names]
    half = chart.critical_difference / 2
    series = Series(
        "mean rank",
        names,
        values,
        [value - half for value in values],
        [value + half for value in values],
        has_line=False,
    )
    label = "mean rank (1 is best)"
    return Chart(chart.name, chart.title, "", label, [series], note=chart.note)


def png_of(chart: AnyChart) -> bytes:
    """Draw a chart.

    Args:
        chart: The chart.

    Returns:
        A PNG.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(chart.title, fontsize=11)
    if isinstance(chart, RankChart):
        _draw_ranks(axes, chart)
    elif isinstance(chart, HeatMap):
        _draw_heat(figure, axes, chart)
    else:
        _draw_lines(axes, chart)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _draw_lines(axes: Axes, chart: Chart) -> None:
    for number, series in enumerate(chart.series):
        style: dict[str, Any] = {"color": color(number), "marker": "o", "markersize": 4}
        style["linestyle"] = _LINES[dash(number)] if series.has_line else "none"
        x = list(series.x)
        if series.low is None or series.high is None:
            axes.plot(x, series.y, label=series.name, **style)
            continue
        y = np.asarray(series.y, dtype=float)
        reach = np.array([y - np.asarray(series.low), np.asarray(series.high) - y])
        axes.errorbar(x, y, np.maximum(reach, 0.0), label=series.name, capsize=2, **style)
    if chart.log_x:
        axes.set_xscale("log")
    if chart.log_y:
        axes.set_yscale("log")
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.grid(visible=True, alpha=0.3)
    if len(chart.series) > 1:
        axes.legend(fontsize=7, ncols=2)
    if any(isinstance(place, str) for series in chart.series for place in series.x):
        axes.tick_params(axis="x", labelrotation=25, labelsize=8)


def _draw_heat(figure: Figure, axes: Axes, chart: HeatMap) -> None:
    values = np.array([[np.nan if v is None else v for v in row] for row in chart.value_YX])
    drawn = axes.pcolormesh(chart.x, chart.y, values, shading="nearest")
    figure.colorbar(drawn, label=chart.value_label)
    if chart.curve is not None:
        axes.plot(chart.curve.x, chart.curve.y, color=color(1), label=chart.curve.name)
        axes.legend(fontsize=7)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)


def _draw_ranks(axes: Axes, chart: RankChart) -> None:
    """Draw mean ranks along a line, and bars over those that do not differ."""
    order = sorted(chart.mean_ranks.items(), key=lambda pair: pair[1])
    names, values = zip(*order, strict=True)
    for place, (name, value) in enumerate(order):
        height = -0.35 * (place + 1)
        axes.plot([value, value], [0, height], color="black", linewidth=0.8)
        axes.annotate(f" {name} ({value:.2f})", (value, height), va="center", fontsize=9)
    for number, (start, end) in enumerate(_alike(values, chart.critical_difference)):
        height = 0.15 + 0.12 * number
        axes.plot([values[start], values[end]], [height, height], color=color(1), linewidth=4)
    axes.axhline(0, color="black", linewidth=1)
    axes.plot([1, 1 + chart.critical_difference], [0.9, 0.9], color="black", linewidth=2)
    axes.annotate(f"critical difference {chart.critical_difference:.2f}", (1, 0.95), fontsize=8)
    axes.set_xlim(0.9, max(len(names), 1 + chart.critical_difference) + 0.6)
    axes.set_ylim(-0.35 * (len(names) + 1), 1.3)
    axes.set_xlabel("mean rank (1 is best)")
    axes.yaxis.set_visible(False)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)


def _alike(values: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """Return the longest groups of neighbors in rank that differ by less."""
    found: list[tuple[int, int]] = []
    for start, value in enumerate(values):
        end = max(n for n, other in enumerate(values) if other - value < difference)
        if end > start and not any(end <= known_end for _, known_end in found):
            found.append((start, end))
    return found
