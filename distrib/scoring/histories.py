"""Parses tables of user histories: ids to item positions, and counts by status."""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from distrib.batch import Batch
from distrib.data.arrow import whole
from distrib.data.hashing import HashArray, hash_ids, mixed
from distrib.data.schema import Status
from distrib.errors import DataError
from distrib.ids import id_column, plain
from distrib.scoring.search import Limits
from distrib.vocabulary import IntArray, Vocabulary, on_scale

_UNKNOWN_ITEM = Status.ITEM_UNSEEN_IN_TRAINING.reason

_DUPLICATE = Status.DUPLICATE.reason

_OFF_SCALE = Status.RATING_OUTSIDE_SCALE.reason

HISTORY_COLUMNS = ("user", "items", "ratings", "times", "candidates")
"""Columns of histories to score that are read, where they are there."""

INTERACTION_STATUS = ("used", _UNKNOWN_ITEM, _OFF_SCALE, _DUPLICATE)

NO_USER = "no user id"

NO_HISTORY = "no list of items"

UNEVEN = "items, ratings and times differ in number"

NEW_USER = "user not seen in training"

DIGEST = "history_digest"
"""Column that lets a later run detect unchanged histories."""


class Histories(NamedTuple):
    """Histories as the model's item positions, one row per user that can be scored."""

    user: pa.Array
    source: Batch
    """Model input."""

    seen: Batch
    """Seen items, including those rated off the scale."""

    limits: Limits | None
    digest_B: HashArray
    status_BF: IntArray
    """Interactions of each user by status, in the order of `INTERACTION_STATUS`."""

    rejected: dict[str, int]
    """Users that cannot be scored, by reason."""

    kept_B: npt.NDArray[np.bool_]
    """Mask of the table's rows that these users are."""

    unknown_candidates: int = 0
    """Candidates that the model does not know."""

    @property
    def row_status(self) -> dict[str, int]:
        """Interactions by status: ``used``, or why not."""
        return dict(zip(INTERACTION_STATUS, self.status_BF.sum(0).tolist(), strict=True))

    def slice(self, low: int, high: int) -> "Histories":
        """Return some of the users; the counts remain those of all."""
        limits = self.limits
        if limits is not None:
            limits = Limits(limits.candidates.slice(low, high), limits.is_limited_B[low:high])
        return self._replace(
            user=self.user.slice(low, high - low),
            source=self.source.slice(low, high),
            seen=self.seen.slice(low, high),
            limits=limits,
            digest_B=self.digest_B[low:high],
        )


def read_histories(vocabulary: Vocabulary, table: pa.Table, source: Vocabulary | None) -> Histories:
    """Translate histories to the model's item positions.

    Args:
        vocabulary: The model's.
        table: See `recommend_table`.
        source: See `recommend_table`.

    Returns:
        The histories that can be scored, and counts of the rest.

    Raises:
        DataError: See `recommend_table`.
    """
    require_columns(table.column_names)
    table = _decoded(table)
    levels, item_count = vocabulary.levels, len(vocabulary)
    is_unrated = "ratings" not in table.column_names or (source and len(source.levels) == 1)
    if is_unrated and len(levels) > 1:
        _require_empty(table, levels)
    kept_B, rejected = _scorable(table, is_rated=not is_unrated)
    if rejected:
        table = table.filter(pa.array(kept_B))
    pointer_P, item_N = flat_column(table, "items")
    value_N = np.ones(len(item_N), np.float32) if is_unrated else _ratings(table)
    if source is None and "times" in table.column_names:
        order_N = _by_time(table, pointer_P)
        item_N, value_N = item_N.take(pa.array(order_N)), value_N[order_N]
    position_N = _positions(vocabulary, item_N, source)
    is_known_N = position_N >= 0
    is_scaled_N = is_known_N if is_unrated else on_scale(value_N.astype(np.float64), levels)
    row_N = np.repeat(np.arange(len(table)), np.diff(pointer_P))
    is_last_N = np.ones(len(item_N), dtype=bool)
    if not vocabulary.facts.has_repeats and (source is None or source.facts.has_repeats):
        is_last_N = _last_of_each(row_N * (item_count + 1) + position_N + 1)
    whole_batch = Batch(
        torch.full((len(table),), -1),
        torch.from_numpy(pointer_P),
        torch.from_numpy(position_N),
        torch.from_numpy(np.nan_to_num(_as_float32(value_N))),
    )
    status_N = np.select([~is_known_N, ~is_scaled_N, ~is_last_N], [1, 2, 3], 0)
    used_N = status_N == 0
    is_whole = bool(used_N.all())
    status_BF = np.bincount(
        row_N * len(INTERACTION_STATUS) + status_N, minlength=len(table) * len(INTERACTION_STATUS)
    )
    limits, unknown = _limits(vocabulary, table)
    return Histories(
        whole(table["user"]),
        whole_batch if is_whole else whole_batch.keep(torch.from_numpy(used_N)),
        whole_batch if is_whole else whole_batch.keep(torch.from_numpy(is_known_N)),
        limits,
        _digests(table, pointer_P, item_N, value_N, source),
        status_BF.reshape(-1, len(INTERACTION_STATUS)),
        rejected,
        kept_B,
        unknown,
    )


def _require_empty(table: pa.Table, levels: tuple[float, ...]) -> None:
    """Refuse interactions without ratings, which a model of ratings cannot read."""
    if pc.sum(pc.list_value_length(table["items"])).as_py():
        raise DataError(
            "the histories have no ratings, and the model was trained on a log with ratings from "
            f"{list(levels)}; give them as {{item: rating}}, or in the column 'ratings' of a table"
        )


def without_new_users(read: Histories) -> Histories:
    """Reject the users that training did not see, and count them."""
    is_new_B = (read.source.user_B < 0).numpy()
    if not is_new_B.any():
        return read
    kept_B = read.kept_B.copy()
    kept_B[np.flatnonzero(kept_B)[is_new_B]] = False
    return chosen(read, ~is_new_B)._replace(
        status_BF=read.status_BF,
        rejected={**read.rejected, NEW_USER: int(is_new_B.sum())},
        kept_B=kept_B,
    )


def chosen(read: Histories, wanted_B: npt.NDArray[np.bool_]) -> Histories:
    """Return some of the users; the counts remain those of all."""
    rows = torch.from_numpy(np.flatnonzero(wanted_B))
    limits = read.limits
    if limits is not None:
        limits = Limits(limits.candidates.chosen(rows), limits.is_limited_B[rows])
    return read._replace(
        user=read.user.filter(pa.array(wanted_B)),
        source=read.source.chosen(rows),
        seen=read.seen.chosen(rows),
        limits=limits,
        digest_B=read.digest_B[wanted_B],
    )


def require_columns(names: list[str]) -> None:
    """Refuse a table of histories with missing or duplicate columns.

    Args:
        names: The columns of the table.

    Raises:
        DataError: ``user`` or ``items`` is missing, or a column is duplicate.
    """
    absent = [name for name in ("user", "items") if name not in names]
    if absent:
        raise DataError(f"histories lack column(s) {absent}; they have {names}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"histories have column(s) {twice} more than once; keep one of each")


def _scorable(table: pa.Table, *, is_rated: bool) -> tuple[npt.NDArray[np.bool_], dict[str, int]]:
    """Return the mask of rows that are a user with a history, and count the others by reason."""
    no_user_B = pc.is_null(table["user"]).to_numpy()
    lengths_B = pc.list_value_length(table["items"])
    no_history_B = pc.is_null(lengths_B).to_numpy()
    uneven_B = np.zeros(len(table), dtype=bool)
    beside = ["ratings"] if is_rated else []
    for name in [*beside, *({"times"} & {*table.column_names})]:
        other_B = pc.fill_null(pc.list_value_length(table[name]), -1)
        uneven_B |= pc.not_equal(pc.fill_null(lengths_B, -1), other_B).to_numpy()
    rejected, left_B = {}, np.ones(len(table), dtype=bool)
    for reason, is_so_B in ((NO_USER, no_user_B), (NO_HISTORY, no_history_B), (UNEVEN, uneven_B)):
        count = int((left_B & is_so_B).sum())
        if count:
            rejected[reason] = count
        left_B &= ~is_so_B
    return left_B, rejected


def _decoded(table: pa.Table) -> pa.Table:
    """Return users as integers or text, and lists of any kind as lists of plain values."""
    users = plain(table["user"])
    kind = users.type
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        users = id_column(users, "int" if pa.types.is_floating(kind) else "string").ids
    elif not (pa.types.is_integer(kind) or pa.types.is_string(kind)):
        raise DataError(f"column 'user' is {table['user'].type}, not integers or strings; cast it")
    found = {"user": users}
    for name in HISTORY_COLUMNS[1:]:
        if name in table.column_names:
            found[name] = _lists(name, table[name])
    return pa.table(found)


def _lists(name: str, column: pa.ChunkedArray) -> pa.Array:
    array, kind = whole(column), column.type
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        array = _without_views(array)
    elif pa.types.is_fixed_size_list(kind):
        array = array.cast(pa.large_list(kind.value_type))
    elif not pa.types.is_list(kind) and not pa.types.is_large_list(kind):
        raise DataError(f"column {name!r} is {kind}, not a list; give one list per user")
    if _is_plain(kind.value_type):
        return array
    lengths = pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64())
    pointer = np.concatenate([[0], lengths.to_numpy()]).cumsum()
    values = plain(pc.list_flatten(array))
    mask = array.is_null() if array.null_count else None
    return pa.LargeListArray.from_arrays(pa.array(pointer), values, mask=mask)


def _without_views(array: pa.Array) -> pa.Array:
    """Return list views as lists, value by value: Arrow 26 casts them wrongly."""
    size_B = np.where(array.is_null().to_numpy(zero_copy_only=False), 0, array.sizes.to_numpy())
    pointer_P = np.concatenate([[0], size_B]).cumsum().astype(np.int64)
    first_B = array.offsets.to_numpy().astype(np.int64)[: len(array)]
    place_N = np.arange(pointer_P[-1]) + np.repeat(first_B - pointer_P[:-1], size_B)
    mask = array.is_null() if array.null_count else None
    values = array.values.take(pa.array(place_N))
    return pa.LargeListArray.from_arrays(pa.array(pointer_P), values, mask=mask)


def _is_plain(kind: pa.DataType) -> bool:
    """Return whether values need no decoding."""
    return bool(
        pa.types.is_primitive(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    )


def flat_column(table: pa.Table, name: str) -> tuple[IntArray, pa.Array]:
    """Return row pointers and values of a list column; null lists are empty, values may be null."""
    lengths = pc.fill_null(pc.list_value_length(table[name]), 0).to_numpy()
    pointer_P = np.concatenate([[0], lengths]).cumsum().astype(np.int64)
    return pointer_P, whole(pc.list_flatten(table[name]))


def _ratings(table: pa.Table) -> npt.NDArray[Any]:
    _, values = flat_column(table, "ratings")
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        if len(values):
            raise DataError(f"the ratings are {values.type}, not numbers; cast the column")
        return np.zeros(0, np.float32)
    if values.null_count:
        values = pc.fill_null(values.cast(pa.float64()), np.nan)
    return np.asarray(values.to_numpy(zero_copy_only=False))


def _by_time(table: pa.Table, pointer_P: IntArray) -> IntArray:
    """Return the order of interactions by user, then time; those of the same time stay."""
    _, times = flat_column(table, "times")
    is_time = pa.types.is_integer(times.type) or pa.types.is_floating(times.type)
    if len(times) and not (is_time or pa.types.is_timestamp(times.type)):
        raise DataError(f"the times are {times.type}, not numbers or timestamps; cast the column")
    if times.null_count:
        raise DataError(f"{times.null_count} of the times are null; remove these interactions")
    row_N = np.repeat(np.arange(len(table)), np.diff(pointer_P))
    return np.lexsort((times.to_numpy(zero_copy_only=False), row_N))


def _as_float32(value_N: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return ratings in single precision; beyond its range they are infinite, and off the scale."""
    with np.errstate(over="ignore"):
        return value_N.astype(np.float32)


def _positions(vocabulary: Vocabulary, item_N: pa.Array, source: Vocabulary | None) -> IntArray:
    if source is None:
        has_type = not pa.types.is_null(item_N.type)  # else integer or string is unknown
        return vocabulary.positions(item_N) if has_type else np.zeros(len(item_N), np.int64) - 1
    return np.asarray(_translation(vocabulary, source)[item_N.to_numpy()])


@lru_cache(maxsize=4)
def _translation(vocabulary: Vocabulary, source: Vocabulary) -> IntArray:
    """Return the model's position of each item of a prepared folder, -1 for none."""
    if source.fingerprint == vocabulary.fingerprint:
        return np.arange(len(source))
    return vocabulary.positions(source.ids)


@lru_cache(maxsize=4)
def _hashed(source: Vocabulary) -> HashArray:
    return hash_ids(source.ids, 1)


def _limits(vocabulary: Vocabulary, table: pa.Table) -> tuple[Limits | None, int]:
    """Read each user's candidates, and count unknown ones; a null list is the whole catalog."""
    if "candidates" not in table.column_names:
        return None, 0
    pointer_P, item_N = flat_column(table, "candidates")
    position_N = _positions(vocabulary, item_N, None)
    candidates = Batch(
        torch.full((len(table),), -1),
        torch.from_numpy(pointer_P),
        torch.from_numpy(position_N),
        torch.ones(len(position_N)),
    )
    is_limited_B = ~pc.is_null(table["candidates"]).to_numpy()
    known = candidates.keep(candidates.item_N >= 0)
    limits = Limits(known, torch.from_numpy(is_limited_B))
    return limits, int((position_N < 0).sum())


def _digests(
    table: pa.Table,
    pointer_P: IntArray,
    item_N: pa.Array,
    value_N: npt.NDArray[Any],
    source: Vocabulary | None,
) -> HashArray:
    """Return a hash of each user id and history, the same for prepared data and for raw ids."""
    hash_N = _hashed(source)[item_N.to_numpy()] if source else _hashes(item_N, 1)
    bits_N = _as_float32(value_N).view(np.uint32).astype(np.uint64)
    place_N = np.arange(len(item_N)) - np.repeat(pointer_P[:-1], np.diff(pointer_P))
    with np.errstate(over="ignore"):
        cell_N = mixed(hash_N + mixed(bits_N + (place_N.astype(np.uint64) << np.uint64(32))))
        before = np.concatenate([np.zeros(1, np.uint64), np.cumsum(cell_N, dtype=np.uint64)])
        return mixed(before[pointer_P[1:]] - before[pointer_P[:-1]] + user_hashes(table["user"]))


def user_hashes(users: pa.Array | pa.ChunkedArray) -> HashArray:
    """Return a hash of each user's id."""
    return _hashes(users, 2)


def _hashes(ids: pa.Array | pa.ChunkedArray, use: int) -> HashArray:
    joined = whole(ids)
    if len(joined) == 0:
        return np.zeros(0, np.uint64)
    if joined.null_count:  # any fixed value that is not an id
        joined = pc.fill_null(joined, -1 if pa.types.is_integer(joined.type) else "")
    return hash_ids(joined, use)


def _last_of_each(key_N: IntArray) -> Any:
    """Return a bool mask of the entries that are the last with their key."""
    is_last_N = np.zeros(len(key_N), dtype=bool)
    _, places = np.unique(key_N[::-1], return_index=True)
    is_last_N[len(key_N) - 1 - places] = True
    return is_last_N
