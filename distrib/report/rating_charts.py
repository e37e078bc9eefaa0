"""Charts of predicted ratings, for the pages of runs and of studies."""

from collections.abc import Mapping, Sequence

import numpy as np

from distrib.evaluation.job import TABLES
from distrib.evaluation.truth import InteractionRatingMap
from distrib.report.charts import Chart, HeatMap, Series
from distrib.storage import Folder

Table = list[list[float]]

_MAP_BINS = 40
_LEAST_PROBABILITY = 1e-6


def rating_tables_of(folder: Folder) -> dict[str, Table]:
    """Return the tables of an evaluation, by name; none where it measured no ratings.

    Args:
        folder: Folder that evaluation wrote to.

    Returns:
        See `distrib.evaluation.ratings`.
    """
    return folder.read_json(TABLES) if folder.exists(TABLES) else {}


def confusion_chart(counts_LL: Table, levels: Sequence[float]) -> HeatMap:
    """Return predicted by true rating.

    Args:
        counts_LL: See `distrib.evaluation.ratings.CONFUSION`.
        levels: The ratings that there are.

    Returns:
        The chart.
    """
    counts = np.array(counts_LL)
    share_LL = counts / np.maximum(counts.sum(1, keepdims=True), 1.0)
    return HeatMap(
        "confusion",
        "Predicted by true rating",
        "predicted: the level nearest to the expected rating",
        "true rating",
        levels,
        levels,
        share_LL.tolist(),
        "share of the row",
    )


def reliability_chart(
    tables: Mapping[str, Table], name: str = "reliability", title: str = ""
) -> Chart:
    """Return how often rating levels of some predicted probability are the true ones.

    Args:
        tables: By model; see `distrib.evaluation.ratings.RELIABILITY`.
        name: Of the chart's file.
        title: What stands before the title.

    Returns:
        The chart.
    """
    series = []
    for model, table in tables.items():
        bins = np.array(table)
        bins = bins[bins[:, 0] > 0]
        mean, share = bins[:, 1] / bins[:, 0], bins[:, 2] / bins[:, 0]
        series.append(Series(model, mean.tolist(), share.tolist()))
    series.append(Series("perfect", [0.0, 1.0], [0.0, 1.0]))
    labels = "probability of a level", "share of pairs that have it"
    return Chart(name, f"{title}Reliability of rating levels", *labels, series)


def map_chart(
    found: InteractionRatingMap, name: str = "likely-and-liked", title: str = ""
) -> HeatMap:
    """Return where pairs lie by probability and rating.

    Args:
        found: Predictions of some users.
        name: Of the chart's file.
        title: What stands before the title.

    Returns:
        The chart.
    """
    log_N = np.log10(np.maximum(found.probability_N, _LEAST_PROBABILITY))
    counts, x, y = np.histogram2d(log_N, found.rating_N, bins=_MAP_BINS)
    value_YX = [[None if not c else float(np.log10(c)) for c in row] for row in counts.T]
    return HeatMap(
        name,
        f"{title}All items of some users: probability against expected rating",
        "log10 of the probability of an interaction",
        "expected rating given an interaction",
        ((x[1:] + x[:-1]) / 2).tolist(),
        ((y[1:] + y[:-1]) / 2).tolist(),
        value_YX,
        "log10 of pairs",
        note="Serendipitous items lie at the upper left: improbable, with high expected ratings.",
    )
