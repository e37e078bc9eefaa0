"""Cleaning rules for complete users: rating scale, duplicates, thresholds."""

from collections import Counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distrib.data.arrow import IntArray, dense_ids, to_numpy, whole
from distrib.data.config import CleaningConfig
from distrib.data.hashing import HashArray, hash_pairs, mixed
from distrib.data.logs.rating_scale import FloatArray, Scale
from distrib.data.schema import Status

_KEY_LIMIT = 2**63
_TIES = 7  # use of hashes


class Cleaned(NamedTuple):
    """Cleaned interactions of some users."""

    kept: pa.Table
    """`schema.interactions`, ordered by shard, user and time; at equal times by a hash."""

    counts: Counter[int]
    """Rows by `Status`, including those rejected earlier."""


def cleaned(
    table: pa.Table, config: CleaningConfig, scale: Scale, *, drops_known: bool = False
) -> Cleaned:
    """Apply the rules that need only a user's own interactions.

    Args:
        table: `schema.interactions` of complete users, in any order.
        config: The rules.
        scale: Scale to map the raw ratings to.
        drops_known: Whether to drop pairs of a held-out file that an earlier origin contains.

    Returns:
        The kept rows, and the counts of all rows.
    """
    is_row_N = to_numpy(table["status"]) == Status.KEPT
    counts = rejected_counts(table.filter(pa.array(~is_row_N)))
    rows = table.filter(pa.array(is_row_N))
    user_N = _by_shard(dense_ids(rows["user"]), to_numpy(rows["shard"]))
    item_N = dense_ids(rows["item"])
    rating_N, origin_N = to_numpy(rows["rating"]), to_numpy(rows["origin"])
    time_N = to_numpy(rows["time"])
    chosen_N, rating_N = _unique(user_N, item_N, origin_N, time_N, rating_N, config.duplicates)
    counts[Status.DUPLICATE] += len(rows) - len(chosen_N)
    status_N = np.zeros(len(chosen_N), np.int8)
    if drops_known:
        status_N[_known_earlier(user_N[chosen_N], item_N[chosen_N], origin_N[chosen_N])] = (
            Status.ALREADY_KNOWN
        )
    for status, is_out_N in _thresholds(rating_N, config).items():
        status_N[(status_N == Status.KEPT) & is_out_N] = status
    for status in np.unique(status_N[status_N != Status.KEPT]):
        counts[int(status)] += int((status_N == status).sum())
    chosen_N, rating_N = chosen_N[status_N == 0], scale.apply(rating_N[status_N == 0])
    user_N, time_N = user_N[chosen_N], time_N[chosen_N]
    order_N = by_user_and_time(user_N, time_N)
    is_tied_N = tied(user_N[order_N], time_N[order_N])
    if is_tied_N.any():
        tied_N = order_N[is_tied_N]
        moment_N, of_user_N = time_N[tied_N], user_N[tied_N]
        hash_N = _tie_hashes(rows.take(pa.array(chosen_N[tied_N])), of_user_N)
        order_N[is_tied_N] = tied_N[np.lexsort((hash_N, moment_N, of_user_N))]
    kept = rows.take(pa.array(chosen_N[order_N]))
    place = kept.schema.get_field_index("rating")
    kept = kept.set_column(place, kept.schema.field(place), pa.array(rating_N[order_N]))
    counts[Status.KEPT] += len(kept)
    return Cleaned(kept, +counts)


def _tie_hashes(rows: pa.Table, user_N: IntArray) -> HashArray:
    """Return what puts interactions of the same user and time in order.

    Were they ordered by item, a model that predicts the next item would learn that order, and
    hold-outs of the last one would be easier than they are. The time and the number of a repeat are
    part of the hash, so that the same items have another order at another time.
    """
    users, items = (whole(rows[name]) for name in ("user", "item"))
    time_N, item_N = to_numpy(rows["time"]), dense_ids(rows["item"])
    order_N = np.lexsort((item_N, time_N, user_N))
    is_new_N = np.ones(len(order_N), dtype=bool)
    for part_N in (user_N, time_N, item_N):
        is_new_N[1:] &= part_N[order_N[1:]] == part_N[order_N[:-1]]
    is_new_N[1:] = ~is_new_N[1:]
    places = np.arange(len(order_N))
    repeat_N = np.empty(len(order_N), np.int64)
    repeat_N[order_N] = places - np.maximum.accumulate(np.where(is_new_N, places, 0))
    when_N = mixed(time_N.astype(np.int64).view(np.uint64) + mixed(repeat_N.view(np.uint64)))
    return mixed(hash_pairs(users, items, _TIES) ^ when_N)


def rejected_counts(rows: pa.Table) -> Counter[int]:
    """Add up the rows of `schema.interactions` that represent rejected ones, by `Status`."""
    counts: Counter[int] = Counter()
    for status, number in zip(rows["status"].to_pylist(), rows["time"].to_pylist(), strict=True):
        counts[status] += number
    return counts


def _thresholds(
    rating_N: FloatArray, config: CleaningConfig
) -> dict[Status, npt.NDArray[np.bool_]]:
    found = {}
    if config.keep_above is not None:
        found[Status.NOT_ABOVE_THRESHOLD] = rating_N <= config.keep_above
    if config.keep_below is not None:
        found[Status.NOT_BELOW_THRESHOLD] = rating_N >= config.keep_below
    return found


def _known_earlier(
    user_N: IntArray, item_N: IntArray, origin_N: npt.NDArray[np.int8]
) -> npt.NDArray[np.bool_]:
    """Return which pairs an earlier origin also contains."""
    is_known_N = np.zeros(len(user_N), dtype=bool)
    order_N = np.lexsort((origin_N, item_N, user_N))
    same_N = np.diff(user_N[order_N]) == 0
    same_N &= np.diff(item_N[order_N]) == 0
    is_known_N[order_N[1:]] = same_N
    return is_known_N


def by_user_and_time(user_N: IntArray, time_N: IntArray) -> IntArray:
    """Return the stable order by user, then time."""
    if not len(user_N):
        return np.zeros(0, dtype=np.int64)
    first_s, users = int(time_N.min()), int(user_N.max()) + 1
    times = int(time_N.max()) - first_s + 1
    if users * times >= _KEY_LIMIT:
        return np.lexsort((time_N, user_N))
    return stable_order(user_N * times + (time_N - first_s), users * times)


def tied(user_N: IntArray, time_N: IntArray) -> npt.NDArray[np.bool_]:
    """Return which interactions, ordered by user and time, have the time of another of the user."""
    same_N = (user_N[1:] == user_N[:-1]) & (time_N[1:] == time_N[:-1])
    return np.asarray(np.append(same_N, False) | np.append(False, same_N))


def stable_order(key_N: IntArray, bound: int) -> IntArray:
    """Return the stable order of keys in 0..bound-1.

    If key and row together fit into 64 bits, they are sorted as one number, which is several times
    as fast as an argsort.
    """
    row_bits = max(len(key_N) - 1, 1).bit_length()
    if bound << row_bits > 2**64:
        return np.argsort(key_N, kind="stable")
    shift = np.uint64(row_bits)
    packed_N = np.sort((key_N.astype(np.uint64) << shift) | np.arange(len(key_N), dtype=np.uint64))
    return (packed_N & np.uint64((1 << row_bits) - 1)).astype(np.int64)


def _by_shard(user_N: IntArray, shard_N: npt.NDArray[np.int32]) -> IntArray:
    """Renumber users so that those of a shard are contiguous, in the same order."""
    if not len(user_N) or shard_N.min() == shard_N.max():
        return user_N
    shard_B = np.zeros(int(user_N.max()) + 1, dtype=np.int32)
    shard_B[user_N] = shard_N
    rank_B = np.empty(len(shard_B), dtype=np.int64)
    rank_B[np.argsort(shard_B, kind="stable")] = np.arange(len(shard_B))
    return rank_B[user_N]


def _unique(
    user_N: IntArray,
    item_N: IntArray,
    origin_N: npt.NDArray[np.int8],
    time_N: IntArray,
    rating_N: FloatArray,
    policy: str,
) -> tuple[IntArray, FloatArray]:
    """Return one row per user, item and origin, in this order, and its rating; or keep all rows.

    Only duplicates are compared; most logs have few.
    """
    if not len(user_N):
        return np.zeros(0, dtype=np.int64), rating_N
    if policy == "keep":  # by all values, so that the order of files and blocks has no effect
        every_N = np.lexsort((rating_N, time_N, origin_N, item_N, user_N))
        return every_N, rating_N[every_N]
    sizes = [int(part.max()) + 1 for part in (user_N, item_N, origin_N)]
    key_N = (user_N * sizes[1] + item_N) * sizes[2] + origin_N
    order_N = stable_order(key_N, sizes[0] * sizes[1] * sizes[2])
    sorted_N = key_N[order_N]
    starts = np.flatnonzero(np.append(True, sorted_N[1:] != sorted_N[:-1]))
    lengths = np.diff(np.append(starts, len(sorted_N)))
    chosen_N, is_double = order_N[starts], lengths > 1
    value_N = rating_N[chosen_N]
    if is_double.any():
        double_N = order_N[np.repeat(is_double, lengths)]
        picked_N, resolved_N = _one_of_each(
            double_N[np.lexsort((rating_N[double_N], time_N[double_N], key_N[double_N]))],
            lengths[is_double],
            rating_N,
            policy,
        )
        chosen_N[is_double], value_N[is_double] = picked_N, resolved_N
    return chosen_N, value_N


def _one_of_each(
    row_N: IntArray, length_G: IntArray, rating_N: FloatArray, policy: str
) -> tuple[IntArray, FloatArray]:
    """Reduce each group of duplicates, sorted by time, to one row and rating."""
    ends = length_G.cumsum()
    starts = ends - length_G
    ratings = rating_N[row_N].astype(np.float64)
    if policy == "first":
        return row_N[starts], ratings[starts].astype(np.float32)
    value_G = ratings[ends - 1]
    if policy == "max":
        value_G = np.maximum.reduceat(ratings, starts)
    elif policy in {"mean", "sum"}:
        value_G = np.add.reduceat(ratings, starts) / (length_G if policy == "mean" else 1)
    return row_N[ends - 1], value_G.astype(np.float32)
