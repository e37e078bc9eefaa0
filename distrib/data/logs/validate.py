"""Row validation: from raw columns to interactions and a status per row."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from distrib.data.arrow import to_numpy, whole
from distrib.data.logs.layout import Layout
from distrib.data.logs.parse_values import (
    LARGEST_INT64,
    BoolArray,
    is_null,
    parse_integers,
    parse_times,
)
from distrib.data.logs.rating_scale import Scale
from distrib.data.schema import Status, interactions

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Checked(NamedTuple):
    """Result of validating a raw table."""

    kept: pa.Table
    """`schema.interactions`, ``shard`` still 0."""

    status_N: npt.NDArray[np.int8]
    """A `Status` for each input row."""


def checked(raw: pa.Table, layout: Layout, scale: Scale, order_N: Any, origin: int) -> Checked:
    """Turn raw columns (text or typed) into interactions.

    Args:
        raw: The columns that the layout names.
        layout: Layout of the log.
        scale: The rating scale.
        order_N: Position of each row in the log, int64; used in place of missing times.
        origin: An `Origin`.

    Returns:
        The valid rows, and the status of every row.
    """
    columns, num_rows = layout.columns, len(raw)
    status_N = np.zeros(num_rows, dtype=np.int8)

    def reject(bad_N: BoolArray, reason: Status) -> None:
        if bad_N.any():
            status_N[bad_N & (status_N == Status.KEPT)] = reason

    ids = []
    for name in (columns.user, columns.item):
        identity, is_given_N, is_text_N = _ids(raw[name], layout.id_kind)
        reject(~is_given_N, Status.MISSING_ID)
        reject(~is_text_N, Status.NOT_UTF8)
        reject(is_null(identity), Status.ID_NOT_AN_INTEGER)
        ids.append(identity)
    rating_N = np.ones(num_rows, dtype=np.float32)
    if columns.rating is not None:
        rating_N = scale.read(raw[columns.rating])
        reject(~np.isfinite(rating_N), Status.RATING_NOT_A_NUMBER)
        reject(~scale.holds(rating_N), Status.RATING_OUTSIDE_SCALE)
    time_N = np.asarray(order_N, dtype=np.int64)
    if columns.time is not None:
        is_absent_N = is_null(whole(raw[columns.time]))
        time_N, is_time_N = parse_times(raw[columns.time], layout.time_unit)
        reject(~is_time_N & ~is_absent_N, Status.TIME_NOT_A_TIME)
    good_N = status_N == Status.KEPT
    whole_table = pa.table(
        [
            *ids,
            pa.array(rating_N),
            pa.array(time_N),
            pa.array(status_N),
            pa.array(np.full(num_rows, origin, np.int8)),
            pa.array(np.zeros(num_rows, np.int32)),
        ],
        schema=interactions(layout.id_type),
    )
    return Checked(whole_table if good_N.all() else whole_table.filter(pa.array(good_N)), status_N)


def _ids(column: pa.ChunkedArray, kind: str) -> tuple[pa.Array, BoolArray, BoolArray]:
    """Return ids (null where invalid), whether one is present, and whether it is valid UTF-8."""
    array = whole(column)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_large_string(array.type):
        array = array.cast(pa.string())
    return _integer_ids(array) if kind == "int" else _text_ids(array)


def _text_ids(array: pa.Array) -> tuple[pa.Array, BoolArray, BoolArray]:
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_finite(array), array, None)
    text = array if pa.types.is_string(array.type) else array.cast(pa.string())
    is_given_N = ~is_null(text) & ~to_numpy(pc.equal(text, "").fill_null(True))
    is_text_N = ~to_numpy(pc.match_substring(text, _REPLACEMENT).fill_null(False))
    return text.fill_null(""), is_given_N, is_text_N


def _integer_ids(array: pa.Array) -> tuple[pa.Array, BoolArray, BoolArray]:
    everyone = np.ones(len(array), dtype=bool)
    is_given_N = ~is_null(array)
    if pa.types.is_string(array.type):
        clean = pc.utf8_trim_whitespace(array)
        is_given_N &= ~to_numpy(pc.equal(clean, "").fill_null(True))
        array = parse_integers(clean)
    elif pa.types.is_floating(array.type):
        is_given_N &= ~np.isnan(to_numpy(array.fill_null(0.0)))
        is_whole = pc.and_(pc.equal(pc.floor(array), array), pc.less(pc.abs(array), 2.0**53))
        array = pc.if_else(is_whole.fill_null(False), array, None).cast(pa.int64())
    elif pa.types.is_uint64(array.type):
        array = pc.if_else(
            pc.less_equal(array, pa.scalar(int(LARGEST_INT64), pa.uint64())), array, None
        ).cast(pa.int64())
    return array.cast(pa.int64()), is_given_N, everyone
