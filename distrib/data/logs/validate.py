"""Row validation: from raw columns to interactions and a status per row."""

from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from distrib.data.arrow import to_numpy, whole
from distrib.data.logs.columns import TimeUnit
from distrib.data.logs.layout import Layout
from distrib.data.logs.rating_scale import Scale
from distrib.data.schema import Status, interactions

_NUMBER = r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"
_INTEGER = r"^[-+]?\d+$"
_LARGEST_INT64 = "9223372036854775807"
_LATEST_S = 1e15  # beyond any valid time, and exact in a float64
_PER_SECOND: dict[TimeUnit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DATE = (
    r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
    r"([T ]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d{1,6})?)?(Z|[+-]\d\d:?\d\d)?)?$"
)
_MONTH, _DAY = r"^(?P<month>\d{4}-(?:0[1-9]|1[0-2]))-", r"^\d{4}-\d\d-(?P<day>\d\d)"
_ZONED = r":\d\d.*(Z|[+-]\d\d:?\d\d)$"
_A_DAY = pa.scalar(timedelta(days=1))
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

BoolArray = npt.NDArray[np.bool_]


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
        reject(_null(identity), Status.ID_NOT_AN_INTEGER)
        ids.append(identity)
    rating_N = np.ones(num_rows, dtype=np.float32)
    if columns.rating is not None:
        rating_N = _floats(raw[columns.rating], pa.float32())
        reject(~np.isfinite(rating_N), Status.RATING_NOT_A_NUMBER)
        reject(~scale.holds(rating_N), Status.RATING_OUTSIDE_SCALE)
    time_N = np.asarray(order_N, dtype=np.int64)
    if columns.time is not None:
        is_absent_N = _null(whole(raw[columns.time]))
        time_N, is_time_N = _times(raw[columns.time], layout.time_unit)
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
    is_given_N = ~_null(text) & ~to_numpy(pc.equal(text, "").fill_null(True))
    is_text_N = ~to_numpy(pc.match_substring(text, _REPLACEMENT).fill_null(False))
    return text.fill_null(""), is_given_N, is_text_N


def _integer_ids(array: pa.Array) -> tuple[pa.Array, BoolArray, BoolArray]:
    everyone = np.ones(len(array), dtype=bool)
    is_given_N = ~_null(array)
    if pa.types.is_string(array.type):
        clean = pc.utf8_trim_whitespace(array)
        is_given_N &= ~to_numpy(pc.equal(clean, "").fill_null(True))
        array = _integers(clean)
    elif pa.types.is_floating(array.type):
        is_given_N &= ~np.isnan(to_numpy(array.fill_null(0.0)))
        is_whole = pc.and_(pc.equal(pc.floor(array), array), pc.less(pc.abs(array), 2.0**53))
        array = pc.if_else(is_whole.fill_null(False), array, None).cast(pa.int64())
    elif pa.types.is_uint64(array.type):
        array = pc.if_else(
            pc.less_equal(array, pa.scalar(int(_LARGEST_INT64), pa.uint64())), array, None
        ).cast(pa.int64())
    return array.cast(pa.int64()), is_given_N, everyone


def _integers(text: pa.Array) -> pa.Array:
    """Convert text to int64; non-integers and overflows become null."""
    is_integer = pc.match_substring_regex(text, _INTEGER)
    digits = pc.replace_substring_regex(text, r"^[-+]?0*", "")
    length, longest = pc.utf8_length(digits), len(_LARGEST_INT64)
    fits = pc.or_(
        pc.less(length, longest),
        pc.and_(pc.equal(length, longest), pc.less_equal(digits, _LARGEST_INT64)),
    )
    plain = pc.replace_substring_regex(text, r"^\+", "")
    return pc.if_else(pc.and_(is_integer, fits), plain, None).cast(pa.int64())


def _matching(text: pa.Array, pattern: str, kind: pa.DataType) -> pa.Array:
    """Convert text to numbers; text that does not match the pattern becomes null."""
    plain = pc.replace_substring_regex(text, r"^\+", "")
    return pc.if_else(pc.match_substring_regex(text, pattern), plain, None).cast(kind)


def _floats(column: pa.ChunkedArray, kind: pa.DataType) -> Any:
    """Convert to floating point; non-numbers become NaN."""
    array = whole(column)
    if pa.types.is_large_string(array.type) or pa.types.is_string(array.type):
        array = _matching(pc.utf8_trim_whitespace(array.cast(pa.string())), _NUMBER, kind)
    elif pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    numbers = array.cast(kind, safe=False)
    return to_numpy(numbers.fill_null(np.nan) if numbers.null_count else numbers)


def _times(column: pa.ChunkedArray, unit: TimeUnit) -> tuple[Any, BoolArray]:
    """Return seconds since 1970 (0 where there is no valid time), and whether there is one."""
    array = whole(column)
    if pa.types.is_integer(array.type) and unit != "iso8601":
        known = array.fill_null(0) if array.null_count else array
        seconds = to_numpy(known.cast(pa.int64(), safe=False))
        if unit != "s":
            seconds //= _PER_SECOND[unit]
        return seconds, ~_null(array) & (seconds > -_LATEST_S) & (seconds < _LATEST_S)
    if pa.types.is_temporal(array.type):
        naive = array.cast(pa.timestamp("us"), safe=False)
        return _floored(naive), ~_null(array)
    if unit == "iso8601":
        moment = _moments(array.cast(pa.string()))
        return _floored(moment), ~_null(moment)
    number = _floats(column, pa.float64()) / _PER_SECOND[unit]
    is_time_N = np.abs(number) < _LATEST_S
    return np.floor(np.where(is_time_N, number, 0.0)).astype(np.int64), is_time_N


def _floored(moment: pa.Array) -> Any:
    return to_numpy(moment.cast(pa.timestamp("us")).cast(pa.int64()).fill_null(0)) // 10**6


def _moments(text: pa.Array) -> pa.Array:
    """Parse dates, with or without time and zone; invalid ones become null."""
    clean = pc.replace_substring_regex(pc.utf8_trim_whitespace(text), r"(\.\d{6})\d+", r"\1")
    is_date = pc.match_substring_regex(clean, _DATE)
    days = pc.struct_field(pc.extract_regex(clean, _DAY), [0]).cast(pa.int32())
    month = pc.struct_field(pc.extract_regex(clean, _MONTH), [0])
    first = pc.binary_join_element_wise(month, "01", "-").cast(pa.timestamp("us"))
    after = pc.assume_timezone(first, "UTC")  # to get the month's length, leap years included
    last = pc.day(
        pc.subtract(pc.ceil_temporal(after, unit="month", ceil_is_strictly_greater=True), _A_DAY)
    )
    is_date = pc.and_(is_date.fill_null(False), pc.less_equal(days, last).fill_null(False))
    is_zoned = pc.match_substring_regex(clean, _ZONED)
    plain = pc.if_else(pc.and_(is_date, pc.invert(is_zoned)), clean, None)
    zoned = pc.if_else(pc.and_(is_date, is_zoned), clean, None)
    utc = zoned.cast(pa.timestamp("us", tz="UTC")).cast(pa.timestamp("us"))
    return pc.coalesce(plain.cast(pa.timestamp("us")), utc)


def _null(array: pa.Array) -> BoolArray:
    if not array.null_count:
        return np.zeros(len(array), dtype=bool)
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False))
