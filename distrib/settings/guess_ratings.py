"""What the rating column of a log holds: a scale, counts, or marks of likes."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from distrib.config import JsonObject
from distrib.data.logs.layout import HALF_STARS, WHOLE_STARS
from distrib.settings.guess_columns import Sample, filled, is_count, numbers_of

_FEW_ABSENT = 0.01
_MOST_LEVELS = 21
_STEPS = 10
_BOOLEANS = {"true", "false"}
_RATING_SETS = (WHOLE_STARS, HALF_STARS, tuple(float(n) for n in range(1, 11)))


def scale_of(
    values: Sequence[Any], name: str = "rating", decimal: str = "."
) -> tuple[JsonObject, tuple[float, ...] | None, list[str]]:
    """Find the rating scale.

    Args:
        values: Some ratings.
        name: Of their column.
        decimal: Character before decimals.

    Returns:
        ``data.ratings``, the scale, and what to check; an empty scale for no ratings, None for
        counts.
    """
    known = filled(values)
    if {str(value).lower() for value in known} <= _BOOLEANS:
        return {"levels": [0.0, 1.0]}, (0.0, 1.0), []
    number_N = numbers_of(known, decimal)
    distinct = np.unique(number_N[np.isfinite(number_N)])
    if len(distinct) == 1 and distinct[0] in (0.0, 1.0) and name != "rating":
        about = f"column {name} is {distinct[0]:g} in all rows looked at; 0 and 1 are taken for it"
        return {"levels": [0.0, 1.0]}, (0.0, 1.0), [about]
    if len(distinct) <= 1:
        return {}, (), []
    if is_count(name) or (len(distinct) > _MOST_LEVELS and not (distinct % 1).any()):
        settings: JsonObject = {"confidence": "log", "alpha": 1.0} if distinct[0] >= 0 else {}
        return settings, None, [f"column {name} is taken for counts: more is liked better"]
    return _levels(distinct, name)


def _levels(distinct: Any, name: str) -> tuple[JsonObject, tuple[float, ...] | None, list[str]]:
    if len(distinct) > _MOST_LEVELS:
        low, high = float(np.floor(distinct[0])), float(np.ceil(distinct[-1]))
        high = max(high, -low)
        levels = tuple(round(float(v), 3) for v in np.linspace(low, high, _STEPS + 1))
        about = f"column {name} is rounded to {_STEPS + 1} levels from {low:g} to {high:g}"
        return {"levels": list(levels), "rounding": "nearest"}, levels, [about]
    unrated = [float(v) for v in distinct if v < 0 or (v == 0 and distinct[-1] > 2)]
    if len(unrated) == 1 and len(distinct) > 3:
        levels = _completed({float(v) for v in distinct} - {*unrated})
        about = f"{unrated[0]:g} in column {name} is taken for not rated"
        return {"levels": list(levels), "unrated": unrated}, levels, [about]
    levels = _completed({float(v) for v in distinct})
    return {"levels": list(levels)}, levels, []


def _completed(seen: set[float]) -> tuple[float, ...]:
    """Return the smallest usual scale that holds all values that were seen."""
    if len(seen) == 2:
        return tuple(sorted(seen))
    return next((scale for scale in _RATING_SETS if seen <= {*scale}), tuple(sorted(seen)))


class Rated(NamedTuple):
    """What the rating column holds."""

    is_mapped: bool = False
    """Whether it is the rating, rather than nothing or a mark of rows that count."""

    levels: tuple[float, ...] | None = None
    ratings: Mapping[str, Any] = MappingProxyType({})
    source: Mapping[str, Any] = MappingProxyType({})
    doubts: tuple[str, ...] = ()


def rated_by(sample: Sample, name: str | None, decimal: str) -> Rated:
    """Look at the rating column.

    Args:
        sample: Of the log.
        name: Of the column, if there is one.
        decimal: Character before decimals.

    Returns:
        What it holds.
    """
    if name is None:
        return Rated()
    ratings, levels, doubts = scale_of(sample[name], name, decimal)
    if levels == ():
        return Rated()
    if levels == (0.0, 1.0):
        is_text = {str(v).lower() for v in filled(sample[name])} <= _BOOLEANS
        about = f"only rows with {name} = {'true' if is_text else 1} count"
        where = {"where": {name: [True if is_text else 1]}}
        return Rated(source=where, doubts=(*doubts, about))
    if _absent_share(sample[name]) > _FEW_ABSENT:
        ratings = {**ratings, "unrated": [*ratings.get("unrated", ()), ""]}
        doubts.append(f"rows without a value in column {name} are left out as not rated")
    return Rated(True, levels, ratings, {}, tuple(doubts))


def _absent_share(values: Sequence[Any]) -> float:
    return 1.0 - len(filled(values)) / max(len(values), 1)
