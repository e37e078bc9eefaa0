"""Counts of the latest training interactions: partial sums over users that add up to the whole."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from distrib.data.arrow import flat_list, to_numpy
from distrib.data.schema import Role, Subset
from distrib.vocabulary import IntArray, nearest_level

COLUMNS = ["subset", "items", "ratings", "times", "roles"]
"""Columns of histories that `counts_since` reads."""

TIME_COLUMNS = ["subset", "times", "roles"]
"""Columns of histories that `last_moment` reads."""


def last_moment(table: pa.Table) -> int | None:
    """Return the time of the last training interaction of some histories, seconds since 1970."""
    _, time_N = flat_list(table, "times")
    time_N = time_N[_trains(table)]
    return int(time_N.max()) if len(time_N) else None


def counts_since(
    table: pa.Table, first_s: float, item_count: int, levels: Sequence[float]
) -> IntArray:
    """Count training interactions from some time on, by item and rating level.

    Args:
        table: Some histories, with `COLUMNS`.
        first_s: Seconds since 1970.
        item_count: Size of the catalog.
        levels: Rating levels.

    Returns:
        int64 ``[I, L]``.
    """
    wanted_N = _trains(table) & (flat_list(table, "times")[1] >= first_s)
    item_N, value_N = (flat_list(table, name)[1][wanted_N] for name in ("items", "ratings"))
    cell_N = item_N.astype(np.int64) * len(levels) + nearest_level(value_N, levels)
    return np.bincount(cell_N, minlength=item_count * len(levels)).reshape(item_count, len(levels))


def _trains(table: pa.Table) -> np.ndarray:
    pointer_P, role_N = flat_list(table, "roles")
    is_trained_B = to_numpy(table["subset"]) == Subset.TRAIN
    found: np.ndarray = np.repeat(is_trained_B, np.diff(pointer_P)) & (role_N <= Role.TRAIN_TARGET)
    return found
