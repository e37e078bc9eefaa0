"""One door for ids: any Arrow column or JSON value to integers or text.

Logs, histories, policies, titles, requests and exports meet the same rules here, so that an id
never means one item in training and another in scoring:

- Whole floats are integers up to the size where a float still tells neighbors apart; pandas makes
  floats of integers as soon as one is missing. Larger ones have lost digits and are no ids.
- Text stays text, with its leading zeros, unless the ids are integers.
- Decimals without a fraction are integers, UUIDs their usual text, binary is UTF-8.
"""

import re
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

IdKind = Literal["int", "string"]
BoolArray = npt.NDArray[np.bool_]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_INTEGER = r"^[-+]?\d+$"
_UNSOUND = re.compile("[\ud800-\udfff\ufffd]")
"""Half a surrogate pair, or a mark for bytes that are not UTF-8."""

_LARGEST = "9223372036854775807"
_EXACT = {16: 2.0**11, 32: 2.0**24, 64: 2.0**53}
"""Whole floats below this are exact, by bits."""


class IdColumn(NamedTuple):
    """Ids of one kind."""

    ids: pa.Array
    """int64 or string; null where there is no valid id."""

    is_given_N: BoolArray
    """Whether there is a value at all."""

    is_text_N: BoolArray
    """False where bytes are not UTF-8."""


def id_column(column: pa.Array | pa.ChunkedArray, kind: IdKind) -> IdColumn:
    """Read a column of ids.

    Args:
        column: Of any type.
        kind: What the ids are.

    Returns:
        As many ids as there are values.
    """
    array = plain(column)
    everyone = np.ones(len(array), dtype=bool)
    is_given_N = ~is_null(array)
    if pa.types.is_floating(array.type):
        is_given_N &= ~np.isnan(_numpy(array.cast(pa.float64()).fill_null(0.0)))
    if pa.types.is_string(array.type):
        text = pc.utf8_trim_whitespace(array) if kind == "int" else array
        is_given_N &= ~_numpy(pc.equal(text, "").fill_null(True))
        is_text_N = ~_numpy(pc.match_substring(text, REPLACEMENT).fill_null(False))
        return IdColumn(parse_integers(text) if kind == "int" else text, is_given_N, is_text_N)
    ids = _whole_numbers(array)
    if kind == "int":
        return IdColumn(ids, is_given_N, everyone)
    as_text = ids.cast(pa.string())
    if not _is_number(array.type):
        as_text = array.cast(pa.string())
    elif pa.types.is_floating(array.type):
        as_text = pc.coalesce(as_text, _fractions(array))
    elif not pa.types.is_signed_integer(array.type):  # beyond int64
        as_text = pc.replace_substring_regex(array.cast(pa.string()), r"\.0*$", "")
    return IdColumn(as_text, is_given_N, everyone)


def kind_of(column: pa.Array | pa.ChunkedArray) -> IdKind:
    """Return the kind that fits all values of a typed column; text is text."""
    array = plain(column)
    if not _is_number(array.type) or pa.types.is_decimal(array.type):
        return "string"
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), None, array)
    return "int" if _whole_numbers(array).null_count == array.null_count else "string"


def id_of(value: Any, kind: IdKind) -> int | str | None:
    """Read one id, such as a value of JSON; equal to `id_column`.

    Args:
        value: Text, a number, or anything else.
        kind: What the ids are.

    Returns:
        The id; None if the value is none.
    """
    if isinstance(value, float):
        value = int(value) if value.is_integer() and abs(value) < _EXACT[64] else None
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    if isinstance(value, int):
        bound = 2**63 if kind == "int" else 2**64
        fits = -(2**63) <= value < bound
        return (value if kind == "int" else str(value)) if fits else None
    if kind == "string":
        return value if value and not _UNSOUND.search(value) else None
    text = value.strip()
    is_integer = re.fullmatch(r"[-+]?[0-9]{1,400}(\.0*)?", text)
    number = int(text.partition(".")[0]) if is_integer else 2**63
    return number if abs(number) < 2**63 else None


def plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return a column as integers, floats, decimals, strings or what else is not encoded.

    Dictionaries, run-end encoding, views, UUIDs and binary are decoded; bytes that are not UTF-8
    hold a replacement character.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # beyond 2 GB
        array = pa.concat_arrays(array.cast(pa.large_string()).chunks)
    kind = array.type
    if isinstance(kind, pa.UuidType):
        array = pa.array([None if v is None else str(v) for v in array.to_pylist()], pa.string())
    elif isinstance(kind, pa.BaseExtensionType):
        array = plain(array.storage)
    elif pa.types.is_dictionary(kind):
        array = plain(array.dictionary).take(array.indices)
    elif pa.types.is_run_end_encoded(kind):
        array = plain(pc.run_end_decode(array))
    elif _is_binary(kind):
        array = _decoded(array)
    elif pa.types.is_null(kind) or _is_text(kind):
        array = array.cast(pa.string())
    return array


def parse_integers(text: pa.Array) -> pa.Array:
    """Convert text to int64; what is not a whole number, or is beyond int64, becomes null.

    ``100.0`` is a whole number: floats were written as text.
    """
    is_integer = pc.match_substring_regex(text, _INTEGER)
    if not pc.all(is_integer, min_count=0).as_py():
        text = pc.replace_substring_regex(text, r"^([-+]?\d+)\.0*$", r"\1")
        is_integer = pc.match_substring_regex(text, _INTEGER)
    digits = pc.replace_substring_regex(text, r"^[-+]?0*", "")
    length, longest = pc.utf8_length(digits), len(_LARGEST)
    fits = pc.or_(
        pc.less(length, longest),
        pc.and_(pc.equal(length, longest), pc.less_equal(digits, _LARGEST)),
    )
    signless = pc.replace_substring_regex(text, r"^\+", "")
    return pc.if_else(pc.and_(is_integer, fits), signless, None).cast(pa.int64())


def _whole_numbers(array: pa.Array) -> pa.Array:
    """Return whole numbers as int64; null for all else."""
    kind = array.type
    if pa.types.is_uint64(kind):
        fits = pc.less_equal(array, pa.scalar(int(_LARGEST), pa.uint64()))
        return pc.if_else(fits, array, None).cast(pa.int64())
    if pa.types.is_integer(kind):
        return array.cast(pa.int64())
    if pa.types.is_floating(kind):
        number = array.cast(pa.float64())
        is_whole = pc.and_(
            pc.equal(pc.floor(number), number), pc.less(pc.abs(number), _EXACT[kind.bit_width])
        )
        return pc.if_else(is_whole.fill_null(False), number, None).cast(pa.int64())
    if pa.types.is_decimal(kind):
        return parse_integers(array.cast(pa.string()))
    return pa.nulls(len(array), pa.int64())


def _fractions(array: pa.Array) -> pa.Array:
    """Return the text of floats with a fraction, and null for the rest."""
    number = array.cast(pa.float64())
    has_fraction = pc.and_(pc.is_finite(number), pc.not_equal(pc.floor(number), number))
    return pc.if_else(has_fraction.fill_null(False), array.cast(pa.string()), None)


def _decoded(array: pa.Array) -> pa.Array:
    binary = array.cast(pa.binary())
    try:
        return binary.cast(pa.string())
    except pa.ArrowInvalid:  # not UTF-8
        texts = [None if v is None else v.decode("utf-8", "replace") for v in binary.to_pylist()]
        return pa.array(texts, pa.string())


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_binary(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


def is_null(array: pa.Array) -> BoolArray:
    """Return where an array holds null."""
    if not array.null_count:
        return np.zeros(len(array), dtype=bool)
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False))


def _numpy(array: pa.Array) -> Any:
    return np.array(array.to_numpy(zero_copy_only=False))
