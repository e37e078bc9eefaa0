"""Text and numbers of a log to integers, numbers and times; what is not valid becomes null."""

from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from distrib.data.arrow import to_numpy, whole
from distrib.data.logs.columns import TimeUnit

BoolArray = npt.NDArray[np.bool_]
LARGEST_INT64 = "9223372036854775807"
_NUMBER = r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"
_INTEGER = r"^[-+]?\d+$"
_LATEST_S = 1e15  # beyond any valid time, and exact in a float64
_PER_SECOND: dict[TimeUnit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DATE = (
    r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
    r"([T ]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d{1,6})?)?(Z|[+-]\d\d:?\d\d)?)?$"
)
_MONTH, _DAY = r"^(?P<month>\d{4}-(?:0[1-9]|1[0-2]))-", r"^\d{4}-\d\d-(?P<day>\d\d)"
_ZONED = r":\d\d.*(Z|[+-]\d\d:?\d\d)$"
_A_DAY = pa.scalar(timedelta(days=1))


def parse_integers(text: pa.Array) -> pa.Array:
    """Convert text to int64; non-integers and overflows become null."""
    is_integer = pc.match_substring_regex(text, _INTEGER)
    digits = pc.replace_substring_regex(text, r"^[-+]?0*", "")
    length, longest = pc.utf8_length(digits), len(LARGEST_INT64)
    fits = pc.or_(
        pc.less(length, longest),
        pc.and_(pc.equal(length, longest), pc.less_equal(digits, LARGEST_INT64)),
    )
    plain = pc.replace_substring_regex(text, r"^\+", "")
    return pc.if_else(pc.and_(is_integer, fits), plain, None).cast(pa.int64())


def _matching(text: pa.Array, pattern: str, kind: pa.DataType) -> pa.Array:
    """Convert text to numbers; text that does not match the pattern becomes null."""
    plain = pc.replace_substring_regex(text, r"^\+", "")
    return pc.if_else(pc.match_substring_regex(text, pattern), plain, None).cast(kind)


def parse_numbers(column: pa.ChunkedArray, kind: pa.DataType) -> Any:
    """Convert to floating point; non-numbers become NaN."""
    array = whole(column)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_large_string(array.type) or pa.types.is_string(array.type):
        array = _matching(pc.utf8_trim_whitespace(array.cast(pa.string())), _NUMBER, kind)
    elif pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    numbers = array.cast(kind, safe=False)
    return to_numpy(numbers.fill_null(np.nan) if numbers.null_count else numbers)


def parse_times(column: pa.ChunkedArray, unit: TimeUnit) -> tuple[Any, BoolArray]:
    """Convert a column of times.

    Args:
        column: Numbers, timestamps or text.
        unit: ``Layout.time_unit`` of the log; dates as text require ``iso8601``.

    Returns:
        Seconds since 1970, 0 where there is no valid time, and whether there is one.
    """
    array = whole(column)
    if pa.types.is_integer(array.type) and unit != "iso8601":
        known = array.fill_null(0) if array.null_count else array
        seconds = to_numpy(known.cast(pa.int64(), safe=False))
        if unit != "s":
            seconds //= _PER_SECOND[unit]
        return seconds, ~is_null(array) & (seconds > -_LATEST_S) & (seconds < _LATEST_S)
    if pa.types.is_temporal(array.type):
        naive = array.cast(pa.timestamp("us"), safe=False)
        return _floored(naive), ~is_null(array)
    if unit == "iso8601":
        moment = _parse_dates(array.cast(pa.string()))
        return _floored(moment), ~is_null(moment)
    number = parse_numbers(column, pa.float64()) / _PER_SECOND[unit]
    is_time_N = np.abs(number) < _LATEST_S
    return np.floor(np.where(is_time_N, number, 0.0)).astype(np.int64), is_time_N


def _floored(moment: pa.Array) -> Any:
    return to_numpy(moment.cast(pa.timestamp("us")).cast(pa.int64()).fill_null(0)) // 10**6


def _parse_dates(text: pa.Array) -> pa.Array:
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


def is_null(array: pa.Array) -> BoolArray:
    """Return where an array holds null."""
    if not array.null_count:
        return np.zeros(len(array), dtype=bool)
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False))
