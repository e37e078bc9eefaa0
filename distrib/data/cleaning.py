"""What may stay of a log: the scale of ratings, duplicates, thresholds; rules for whole users."""

from collections import Counter
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import NonNegativeInt, PositiveFloat, model_validator

from distrib.config import Config
from distrib.data.columns import to_numpy, whole
from distrib.data.schema import Status
from distrib.data.sources import Columns, Levels
from distrib.errors import ConfigError
from distrib.vocabulary import nearest_level, on_scale

SETTLED = "settled"
"""In place of a rounding: ratings are what they shall be already."""

_KEY_LIMIT = 2**63

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


class RatingsConfig(Config):
    """How the rating column becomes classes, or a weight."""

    levels: Levels | None = None
    """Rating levels, ascending. Formats with a known scale need none, nor do logs without ratings;
    all others need this or ``confidence``."""

    rounding: Literal["exact", "nearest", "up", "down"] = "exact"
    """How a rating between two levels is brought to one; ``exact`` rejects it. Half stars to whole
    ones: ``up``."""

    confidence: Literal["none", "linear", "log"] = "none"
    """Turns counts into weights of implicit feedback: ``linear`` 1 + alpha n, ``log``
    1 + alpha log(1 + n / epsilon). Source: Hu, Koren, Volinsky, ICDM 2008, sections 4 and 6."""

    alpha: PositiveFloat = 40.0
    """See ``confidence``."""

    epsilon: PositiveFloat = 1.0
    """See ``confidence``."""

    @model_validator(mode="after")
    def _classes_or_weights(self) -> "RatingsConfig":
        if self.levels is not None and self.confidence != "none":
            raise ValueError("levels and confidence exclude each other; leave one out")
        return self


class CleaningConfig(Config):
    """Which interactions stay, applied in this order: duplicates, thresholds, cores."""

    duplicates: Literal["last", "first", "max", "mean", "sum"] = "last"
    """What remains of several interactions of a user with an item. Of equal times the higher
    rating counts as later; without times the line further down does."""

    keep_above: float | None = None
    """Keep ratings above this only; Mult-VAE's protocol says 3.5."""

    keep_below: float | None = None
    """Keep ratings below this only."""

    min_user_items: NonNegativeInt = 1
    """Drop users with fewer interactions."""

    min_item_users: NonNegativeInt = 1
    """Drop items with fewer interactions."""

    is_iterated: bool = True
    """Whether both minima are applied again until they hold at once (a k-core); otherwise items
    are dropped once, then users."""


class Scale(NamedTuple):
    """What the ratings of a log may be, and what they become."""

    levels: tuple[float, ...]
    rounding: str = "exact"
    confidence: str = "none"
    alpha: float = 1.0
    epsilon: float = 1.0

    def holds(self, rating_N: FloatArray) -> npt.NDArray[np.bool_]:
        """Tell which ratings can be brought to a level; counts must be positive."""
        if self.confidence != "none":
            return rating_N > 0
        if self.rounding == "exact":
            return on_scale(rating_N, self.levels)
        gaps = np.diff(self.levels) if len(self.levels) > 1 else np.array([1.0])
        share = {"nearest": (0.5, 0.5), "up": (1.0, 0.0), "down": (0.0, 1.0)}[self.rounding]
        low, high = self.levels[0] - gaps[0] * share[0], self.levels[-1] + gaps[-1] * share[1]
        inside = (rating_N > low) & (rating_N < high)
        is_level_N = np.isin(rating_N, np.asarray(self.levels, dtype=np.float32))
        return np.asarray(inside | is_level_N)

    def settled(self, rating_N: FloatArray) -> FloatArray:
        """Bring ratings to their levels, or counts to weights."""
        if self.rounding == SETTLED:
            return rating_N
        if self.confidence == "linear":
            return np.asarray(1 + self.alpha * rating_N, dtype=np.float32)
        if self.confidence == "log":
            return np.asarray(1 + self.alpha * np.log1p(rating_N / self.epsilon), dtype=np.float32)
        levels = np.asarray(self.levels, dtype=np.float32)
        if self.rounding in {"exact", "nearest"}:
            return levels[nearest_level(rating_N, self.levels)]
        side: Any = "left" if self.rounding == "up" else "right"
        place = np.searchsorted(levels, rating_N, side=side) - (self.rounding == "down")
        return levels[np.clip(place, 0, len(levels) - 1)]


def scale_of(
    config: RatingsConfig, known: tuple[float, ...] | None, columns: Columns, duplicates: str
) -> Scale:
    """Settle what the ratings of a log are.

    Args:
        config: What the run file says.
        known: Levels of the format, if it has them.
        columns: Of the log.
        duplicates: The policy; a mean of two levels may be none.

    Returns:
        The scale.

    Raises:
        ConfigError: It is not clear, or settings clash.
    """
    faults = []
    is_weighted, levels = config.confidence != "none", config.levels or known
    if columns.rating is None and (config.levels or is_weighted):
        faults.append("data.ratings says what ratings mean, but data.source.columns names none")
    if columns.rating is not None and not levels and not is_weighted:
        faults.append(
            f"column {columns.rating!r} holds ratings or counts: set data.ratings.levels, or "
            "data.ratings.confidence for counts, or leave the column out"
        )
    if duplicates in {"mean", "sum"} and not is_weighted and config.rounding == "exact" and levels:
        faults.append(
            f"data.cleaning.duplicates = {duplicates!r} gives ratings between the levels; set "
            "data.ratings.rounding"
        )
    if faults:
        raise ConfigError("; ".join(faults))
    return Scale(
        (1.0,) if is_weighted or levels is None else levels,
        config.rounding,
        config.confidence,
        config.alpha,
        config.epsilon,
    )


class Cleaned(NamedTuple):
    """What is left of some users."""

    kept: pa.Table
    """`schema.interactions`, ordered by shard, user, time and item."""

    counts: Counter[int]
    """Rows by `Status`, those rejected earlier included."""


def cleaned(
    table: pa.Table, config: CleaningConfig, scale: Scale, *, drops_known: bool = False
) -> Cleaned:
    """Apply the rules that need nothing but a user's own interactions.

    Args:
        table: `schema.interactions` of complete users, in any order.
        config: The rules.
        scale: Of the ratings, which are raw still.
        drops_known: Whether a pair of a held-out file goes that an earlier origin has, too.

    Returns:
        What is left, and what became of all rows.
    """
    is_row_N = to_numpy(table["status"]) == Status.KEPT
    counts = rejected_counts(table.filter(pa.array(~is_row_N)))
    rows = table.filter(pa.array(is_row_N))
    user_N = _by_shard(codes(rows["user"]), to_numpy(rows["shard"]))
    item_N = codes(rows["item"])
    rating_N, origin_N = to_numpy(rows["rating"]), to_numpy(rows["origin"])
    time_N = to_numpy(rows["time"])
    chosen_N, rating_N = _unique(user_N, item_N, origin_N, time_N, rating_N, config.duplicates)
    counts[Status.DUPLICATE] += len(rows) - len(chosen_N)
    fate_N = np.zeros(len(chosen_N), np.int8)
    if drops_known:
        fate_N[_known_earlier(user_N[chosen_N], item_N[chosen_N], origin_N[chosen_N])] = (
            Status.ALREADY_KNOWN
        )
    for status, is_out_N in _thresholds(rating_N, config).items():
        fate_N[(fate_N == Status.KEPT) & is_out_N] = status
    for status in np.unique(fate_N[fate_N != Status.KEPT]):
        counts[int(status)] += int((fate_N == status).sum())
    chosen_N, rating_N = chosen_N[fate_N == 0], scale.settled(rating_N[fate_N == 0])
    order_N = by_user_and_time(user_N[chosen_N], time_N[chosen_N])
    kept = rows.take(pa.array(chosen_N[order_N]))
    place = kept.schema.get_field_index("rating")
    kept = kept.set_column(place, kept.schema.field(place), pa.array(rating_N[order_N]))
    counts[Status.KEPT] += len(kept)
    return Cleaned(kept, +counts)


def rejected_counts(rows: pa.Table) -> Counter[int]:
    """Add up rows of `schema.interactions` that stand for rejected ones, by `Status`."""
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
    """Tell which pairs an earlier origin has, too."""
    is_known_N = np.zeros(len(user_N), dtype=bool)
    order_N = np.lexsort((origin_N, item_N, user_N))
    same_N = np.diff(user_N[order_N]) == 0
    same_N &= np.diff(item_N[order_N]) == 0
    is_known_N[order_N[1:]] = same_N
    return is_known_N


def codes(column: pa.ChunkedArray | pa.Array) -> IntArray:
    """Return the rank of each value among the different ones, from 0."""
    encoded = whole(column).dictionary_encode()
    rank = np.empty(len(encoded.dictionary), dtype=np.int64)
    order = to_numpy(pc.sort_indices(encoded.dictionary))
    rank[order] = np.arange(len(order))
    return np.asarray(rank[to_numpy(encoded.indices)])


def by_user_and_time(user_N: IntArray, time_N: IntArray) -> IntArray:
    """Return the order by user, then time; rows that agree in both stay in the order given."""
    if not len(user_N):
        return np.zeros(0, dtype=np.int64)
    first_s, users = int(time_N.min()), int(user_N.max()) + 1
    times = int(time_N.max()) - first_s + 1
    if users * times >= _KEY_LIMIT:
        return np.lexsort((time_N, user_N))
    return stable_order(user_N * times + (time_N - first_s), users * times)


def stable_order(key_N: IntArray, bound: int) -> IntArray:
    """Return the order of keys in 0..bound-1, equal ones as they come.

    Where key and row fit into 64 bits together, they are sorted as one number, which is several
    times as fast as sorting rows by key.
    """
    row_bits = max(len(key_N) - 1, 1).bit_length()
    if bound << row_bits > 2**64:
        return np.argsort(key_N, kind="stable")
    shift = np.uint64(row_bits)
    packed_N = np.sort((key_N.astype(np.uint64) << shift) | np.arange(len(key_N), dtype=np.uint64))
    return (packed_N & np.uint64((1 << row_bits) - 1)).astype(np.int64)


def _by_shard(user_N: IntArray, shard_N: npt.NDArray[np.int32]) -> IntArray:
    """Renumber users so that those of a shard follow one another, in the same order."""
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
    """Return one row per user, item and origin, in this order, and its rating.

    Only rows that have a double are compared; in most logs there are few.
    """
    if not len(user_N):
        return np.zeros(0, dtype=np.int64), rating_N
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
        picked_N, settled_N = _one_of_each(
            double_N[np.lexsort((rating_N[double_N], time_N[double_N], key_N[double_N]))],
            lengths[is_double],
            rating_N,
            policy,
        )
        chosen_N[is_double], value_N[is_double] = picked_N, settled_N
    return chosen_N, value_N


def _one_of_each(
    row_N: IntArray, length_G: IntArray, rating_N: FloatArray, policy: str
) -> tuple[IntArray, FloatArray]:
    """Return the row and the rating that remain of each group of doubles, oldest first in each."""
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
