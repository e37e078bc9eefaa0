"""Text and numbers of a log to numbers and times; what is not valid becomes null."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from distrib.data.arrow import to_numpy
from distrib.data.logs.columns import TimeUnit
from distrib.ids import is_null, plain

BoolArray = npt.NDArray[np.bool_]
_NUMBER = r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"
_LATEST_S = 10**15  # beyond any valid time, and exact in a float64
_PER_SECOND: dict[TimeUnit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DAY_S = 86_400
_DATE = (
    r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
    r"([T ]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d{1,6})?)?(Z|[+-]([01]\d|2[0-3])(:?[0-5]\d)?)?)?$"
)
_MONTH, _DAY = r"^(?P<month>\d{4}-(?:0[1-9]|1[0-2]))-", r"^\d{4}-\d\d-(?P<day>\d\d)"
_ZONED = r":\d\d.*(Z|[+-]\d\d(:?\d\d)?)$"
_A_DAY = pa.scalar(timedelta(days=1))


def parse_numbers(column: pa.ChunkedArray, kind: pa.DataType) -> Any:
    """Convert to floating point; true and false are 1 and 0, non-numbers become NaN."""
    array = plain(column)
    if pa.types.is_string(array.type):
        text = pc.utf8_trim_whitespace(array)
        is_number = pc.match_substring_regex(text, _NUMBER)
        if not pc.all(is_number, min_count=0).as_py():
            text = pc.replace_substring_regex(text, r"^(true|True|TRUE)$", "1")
            text = pc.replace_substring_regex(text, r"^(false|False|FALSE)$", "0")
            is_number = pc.match_substring_regex(text, _NUMBER)
        signless = pc.replace_substring_regex(text, r"^\+", "")
        array = pc.if_else(is_number, signless, None)
    elif pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    elif pa.types.is_temporal(array.type):
        array = pa.nulls(len(array), kind)
    numbers = array.cast(kind, safe=False)
    return to_numpy(numbers.fill_null(np.nan) if numbers.null_count else numbers)


def is_among(column: pa.ChunkedArray, values: Sequence[str]) -> BoolArray:
    """Return which entries are one of the values.

    Args:
        column: Text, numbers or booleans.
        values: As text. Numbers are compared by value, true and false in any case, all else by its
            text without blanks around it; empty text stands for no entry.

    Returns:
        bool, one for each entry.
    """
    array = plain(column)
    wanted = [value.strip() for value in values]
    if pa.types.is_string(array.type) or pa.types.is_boolean(array.type):
        text = pc.utf8_trim_whitespace(array.cast(pa.string()))
        text = pc.replace_substring_regex(text, "^(True|TRUE)$", "true")
        text = pc.replace_substring_regex(text, "^(False|FALSE)$", "false")
        known = ["true" if w in ("True", "TRUE") else w for w in wanted]
        known = ["false" if w in ("False", "FALSE") else w for w in known]
        found_N = to_numpy(pc.is_in(text, value_set=pa.array(known)))
    elif pa.types.is_temporal(array.type):
        found_N = to_numpy(pc.is_in(array.cast(pa.string()), value_set=pa.array(wanted)))
    else:
        found_N = np.zeros(len(array), dtype=bool)
    if "" in wanted:
        is_number = pa.types.is_floating(array.type)
        found_N |= is_null(pc.if_else(pc.is_nan(array), None, array) if is_number else array)
    numbers = parse_numbers(pa.chunked_array([pa.array(wanted, pa.string())]), pa.float64())
    numbers = numbers[~np.isnan(numbers)]
    if len(numbers):
        found_N |= np.isin(parse_numbers(column, pa.float64()), numbers)
    return np.asarray(found_N)


def parse_times(
    column: pa.ChunkedArray, unit: TimeUnit, form: str | None = None
) -> tuple[Any, BoolArray]:
    """Convert a column of times.

    Args:
        column: Numbers, timestamps, dates or text.
        unit: ``Layout.time_unit`` of the log; dates as text require ``iso8601``, or a form.
        form: ``Layout.time_format`` of the log.

    Returns:
        Seconds since 1970, 0 where there is no valid time, and whether there is one.
    """
    array = plain(column)
    if pa.types.is_temporal(array.type):
        return _seconds_of(array)
    if form is not None:
        return _by_format(array.cast(pa.string()), form)
    if pa.types.is_integer(array.type) and unit != "iso8601":
        known = array.fill_null(0) if array.null_count else array
        # Unsigned numbers beyond int64 must not wrap around.
        second_N = to_numpy(known if pa.types.is_uint64(known.type) else known.cast(pa.int64()))
        if unit != "s":
            second_N //= _PER_SECOND[unit]
        is_time_N = ~is_null(array) & (second_N < _LATEST_S)
        if not pa.types.is_uint64(known.type):
            is_time_N &= second_N > -_LATEST_S
        second_N[~is_time_N] = 0
        return second_N.astype(np.int64, copy=False), is_time_N
    if unit == "iso8601":
        moment = _parse_dates(array.cast(pa.string()))
        return _floored(moment), ~is_null(moment)
    number = parse_numbers(column, pa.float64()) / _PER_SECOND[unit]
    is_time_N = np.abs(number) < _LATEST_S
    return np.floor(np.where(is_time_N, number, 0.0)).astype(np.int64), is_time_N


def _seconds_of(array: pa.Array) -> tuple[Any, BoolArray]:
    """Return the seconds of timestamps and dates by integer division, which cannot wrap around."""
    kind, is_time_N = array.type, ~is_null(array)
    if pa.types.is_date(kind):
        days = to_numpy(array.cast(pa.date32()).cast(pa.int32()).fill_null(0)).astype(np.int64)
        return days * _DAY_S, is_time_N
    if not pa.types.is_timestamp(kind):  # a time of day, or a duration
        return np.zeros(len(array), np.int64), np.zeros(len(array), dtype=bool)
    second_N = to_numpy(array.cast(pa.int64()).fill_null(0)) // _PER_SECOND[kind.unit]
    is_time_N &= np.abs(second_N.astype(float)) < _LATEST_S
    return np.where(is_time_N, second_N, 0), is_time_N


def _floored(moment: pa.Array) -> Any:
    return to_numpy(moment.cast(pa.timestamp("us")).cast(pa.int64()).fill_null(0)) // 10**6


def _by_format(text: pa.Array, form: str) -> tuple[Any, BoolArray]:
    """Parse dates as they are written; those without a zone are taken as UTC."""
    series = pd.Series(pc.utf8_trim_whitespace(text).to_pandas(), dtype=object)
    moment = pd.to_datetime(series, format=form, errors="coerce", utc=True, exact=True)
    is_time_N = moment.notna().to_numpy()
    known = moment.fillna(pd.Timestamp(0, tz="UTC")).dt.tz_localize(None)
    return known.to_numpy().astype("datetime64[s]").astype(np.int64), is_time_N


def _parse_dates(text: pa.Array) -> pa.Array:
    """Parse dates, with or without time and zone; invalid ones become null."""
    clean = pc.replace_substring_regex(pc.utf8_trim_whitespace(text), r"([.,]\d{6})\d+", r"\1")
    is_date = pc.match_substring_regex(clean, _DATE)
    if not pc.all(is_date, min_count=0).as_py():  # other ways to write zones
        clean = pc.replace_substring_regex(clean, r"(:\d\d),(\d)", r"\1.\2")
        clean = pc.replace_substring_regex(clean, r"(:\d\d.*?) ?(UTC|GMT|[zZ])$", r"\1Z")
        clean = pc.replace_substring_regex(clean, r"(:\d\d.*?) ([+-]\d\d)", r"\1\2")
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
    local = pc.if_else(pc.and_(is_date, pc.invert(is_zoned)), clean, None)
    zoned = pc.if_else(pc.and_(is_date, is_zoned), clean, None)
    utc = zoned.cast(pa.timestamp("us", tz="UTC")).cast(pa.timestamp("us"))
    return pc.coalesce(local.cast(pa.timestamp("us")), utc)
