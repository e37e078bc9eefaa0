"""What was popular lately: counts of the last days, a task for each shard."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import ray

from distrib.data.arrow import flat_list, to_numpy
from distrib.data.dataset import Dataset, ShardEntry
from distrib.data.schema import Role, Subset
from distrib.vocabulary import IntArray, nearest_level

_COLUMNS = ["subset", "items", "ratings", "times", "roles"]
_TIME_COLUMNS = ["subset", "times", "roles"]
_DAY_S = 86_400.0


def recent_counts(dataset: Dataset, days: float, latest: Role) -> IntArray:
    """Count the interactions of the last days, by item and rating level.

    Args:
        dataset: Prepared data with times.
        days: Length of the window, which ends with the last interaction that counts.
        latest: Role of interactions that count at most: `Role.TRAIN_TARGET` for what may be trained
            on, `Role.VALID_TARGET` for all that precedes testing.

    Returns:
        int64 ``[I, L]``.
    """
    shards, items = dataset.manifest.shards, len(dataset.vocabulary)
    last, count = ray.remote(_last_moment), ray.remote(_counts_since)
    moments = ray.get([last.remote(dataset, entry, latest) for entry in shards])
    first_s = max(moment for moment in moments if moment is not None) - days * _DAY_S
    parts = [count.remote(dataset, entry, latest, first_s, items) for entry in shards]
    return np.asarray(np.sum(ray.get(parts), axis=0))


def _last_moment(dataset: Dataset, entry: ShardEntry, latest: Role) -> int | None:
    return last_moment(dataset.table(entry, _TIME_COLUMNS), latest)


def _counts_since(
    dataset: Dataset, entry: ShardEntry, latest: Role, first_s: float, item_count: int
) -> IntArray:
    table = dataset.table(entry, _COLUMNS)
    return counts_since(table, latest, first_s, item_count, dataset.manifest.levels)


def last_moment(table: pa.Table, latest: Role) -> int | None:
    """Return the time of the last interaction that counts, seconds since 1970."""
    _, time_N = flat_list(table, "times")
    time_N = time_N[_is_counted(table, latest)]
    return int(time_N.max()) if len(time_N) else None


def counts_since(
    table: pa.Table, latest: Role, first_s: float, item_count: int, levels: Sequence[float]
) -> IntArray:
    """Count interactions of some histories from some time on, by item and rating level.

    Args:
        table: Histories.
        latest: See `recent_counts`.
        first_s: Seconds since 1970.
        item_count: Size of the catalog.
        levels: Rating levels.

    Returns:
        int64 ``[I, L]``.
    """
    wanted_N = _is_counted(table, latest) & (flat_list(table, "times")[1] >= first_s)
    item_N, value_N = (flat_list(table, name)[1][wanted_N] for name in ("items", "ratings"))
    cell_N = item_N.astype(np.int64) * len(levels) + nearest_level(value_N, levels)
    return np.bincount(cell_N, minlength=item_count * len(levels)).reshape(item_count, len(levels))


def _is_counted(table: pa.Table, latest: Role) -> np.ndarray:
    pointer_P, role_N = flat_list(table, "roles")
    is_trained_B = to_numpy(table["subset"]) == Subset.TRAIN
    found: np.ndarray = np.repeat(is_trained_B, np.diff(pointer_P)) & (role_N <= latest)
    return found
