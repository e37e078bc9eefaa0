"""Parsers of text: bytes of whole lines in, raw columns and damaged lines out."""

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.json as pajson

from distrib.data.arrow import to_numpy, whole
from distrib.data.logs.detect import Layout
from distrib.data.logs.text import BOM, line_bounds

_HEXADECIMAL = re.compile(rb"0[xX]")  # a number to Arrow, not to us

_UNIT_SEPARATOR = "\x1f"

IntArray = npt.NDArray[np.int64]

Places = Callable[[IntArray], tuple[IntArray, pa.Array]]
"""Tells for some rows on which line they stand, from 0, and what it says."""


class RawRows(NamedTuple):
    """Rows as they stand in the text, not yet checked."""

    table: pa.Table
    places: Places
    malformed_M: IntArray
    """Lines that are no rows at all, from 0."""

    bounds: Callable[[IntArray], pa.Array]
    """Text of lines."""


def _lines(text: bytes) -> tuple[IntArray, Callable[[IntArray], pa.Array]]:
    """Return which lines are not empty, and what gives the text of lines."""
    starts, ends = line_bounds(text)

    def taken(lines: IntArray) -> pa.Array:
        if 2 * len(lines) > len(starts):
            proper = text.decode("utf-8", "replace").replace("\r\n", "\n")
            everyone = pc.list_flatten(pc.split_pattern(pa.array([proper]), "\n"))
            return everyone.take(pa.array(lines))
        cut = [text[starts[n] : ends[n]].decode("utf-8", "replace") for n in lines]
        return pa.array(cut, pa.string())

    return np.flatnonzero(ends > starts), taken


def parse_csv(text: bytes, layout: Layout) -> RawRows:
    """Parse delimited lines without a header."""
    for is_thorough in (False, True):
        unclosed_M = _unclosed_lines(text, layout, is_thorough=is_thorough)
        clean, separator = _one_separator(_without(text, unclosed_M), layout)
        table, numbers = _parsed_as_guessed(clean, layout, separator)
        if not layout.is_quoted or b'"' not in text:
            break
        if len(table) + len(numbers) + len(unclosed_M) == len(_lines(text)[0]):
            break
    else:
        raise pa.ArrowInvalid(
            "quotes open that no line closes (if they are no quotes: data.source.is_quoted = false)"
        )
    lines: list[Any] = []

    def known() -> list[Any]:
        """Return the lines that hold rows, those that do not, and what gives their text."""
        if not lines:
            filled, taken = _lines(text)
            filled = np.setdiff1d(filled, unclosed_M)
            short_M = np.asarray(numbers, dtype=np.int64) - 1
            malformed = np.sort(np.concatenate([filled[short_M], unclosed_M]))
            lines.extend([np.delete(filled, short_M), malformed, taken])
        return lines

    def places(rows: IntArray) -> tuple[IntArray, pa.Array]:
        found = known()[0][rows]
        return found, known()[2](found)

    is_whole = not numbers and not len(unclosed_M)
    malformed = np.zeros(0, dtype=np.int64) if is_whole else known()[1]
    return RawRows(table, places, malformed, lambda wanted: known()[2](wanted))


def _one_separator(text: bytes, layout: Layout) -> tuple[bytes, str]:
    """Replace a separator of several characters, which Arrow has no way to parse, by one."""
    if text.startswith(BOM):  # not at the start of a file; Arrow would leave it out all the same
        text = b"\n" + text
    if len(layout.separator) == 1:
        return text, layout.separator
    return text.replace(layout.separator.encode(), _UNIT_SEPARATOR.encode()), _UNIT_SEPARATOR


def _unclosed_lines(text: bytes, layout: Layout, *, is_thorough: bool) -> IntArray:
    """Return the lines with a quote that they open and do not close; Arrow would read on.

    An odd number of quotes is the usual sign; thoroughly, all lines with a quote are looked at.
    """
    if not layout.is_quoted or b'"' not in text:
        return np.zeros(0, dtype=np.int64)
    starts, ends = line_bounds(text)
    is_quote = np.frombuffer(text, np.uint8) == ord('"')
    count = np.add.reduceat(is_quote, starts, dtype=np.int64)
    separator = re.escape(layout.separator.encode())
    field = rb'(?:"(?:[^"]|"")*+"(?:(?!%b).)*|(?!")(?:(?!%b).)*)' % (separator, separator)
    closed = re.compile(rb"%b(?:%b%b)*" % (field, separator, field), re.DOTALL)
    suspects = np.flatnonzero(count > 0 if is_thorough else count % 2 == 1)
    found = [n for n in suspects if not closed.fullmatch(text[starts[n] : ends[n]])]
    return np.asarray(found, dtype=np.int64)


def _without(text: bytes, lines: IntArray) -> bytes:
    """Return text without some lines."""
    if not len(lines):
        return text
    starts, _ = line_bounds(text)
    stops = np.append(starts[1:], len(text))
    is_left = np.ones(len(text), dtype=bool)
    for start, stop in zip(starts[lines], stops[lines], strict=True):
        is_left[start:stop] = False
    return np.frombuffer(text, np.uint8)[is_left].tobytes()


def _parsed_as_guessed(text: bytes, layout: Layout, separator: str) -> tuple[pa.Table, list[int]]:
    """Parse by the likeliest types that fit all rows, else as text, which always does."""
    proper = _proper(text)
    for types in [] if _HEXADECIMAL.search(text) else _guesses(layout):
        try:
            return _parsed(proper, layout, separator, types)
        except pa.ArrowInvalid:
            continue
    as_text = dict.fromkeys(layout.columns.names(), pa.string())
    return _parsed(proper, layout, separator, as_text)


def _proper(text: bytes) -> bytes:
    """Return text in UTF-8, with a mark in place of what is none."""
    if text.isascii():
        return text
    try:
        text.decode()
    except UnicodeDecodeError:
        return text.decode("utf-8", "replace").encode()
    return text


def _guesses(layout: Layout) -> list[dict[str, pa.DataType]]:
    """Return the types to parse columns as, the likeliest first."""
    columns = layout.columns
    types = {columns.user: layout.id_type, columns.item: layout.id_type}
    if columns.rating is not None:
        types[columns.rating] = pa.float32()
    if columns.time is None:
        return [types]
    kinds = [pa.string()] if layout.time_unit == "iso8601" else [pa.int64(), pa.float64()]
    return [{**types, columns.time: kind} for kind in kinds]


def _parsed(
    text: bytes, layout: Layout, separator: str, types: dict[str, pa.DataType]
) -> tuple[pa.Table, list[int]]:
    """Parse text without header; return its rows, and the numbers from 1 of lines that are none."""
    malformed: list[int] = []

    def skip(row: pacsv.InvalidRow) -> str:
        malformed.append(row.number)
        return "skip"

    table = pacsv.read_csv(
        pa.BufferReader(text),
        read_options=pacsv.ReadOptions(
            column_names=layout.header, use_threads=False, block_size=len(text) + 1
        ),
        parse_options=pacsv.ParseOptions(
            delimiter=separator,
            quote_char='"' if layout.is_quoted else False,
            invalid_row_handler=skip,
        ),
        convert_options=pacsv.ConvertOptions(
            include_columns=layout.columns.names(),
            column_types=types,
            strings_can_be_null=True,
            null_values=[""],
        ),
    )
    return table, malformed


def parse_json_lines(text: bytes, layout: Layout) -> RawRows:
    """Parse one JSON object per line."""
    filled, taken = _lines(text)
    names = layout.columns.names()
    fields = [(n, pa.type_for_alias(t)) for n, t in zip(names, layout.json_types, strict=True)]
    malformed, table = np.zeros(0, dtype=np.int64), None
    try:
        table = pajson.read_json(
            pa.BufferReader(text),
            read_options=pajson.ReadOptions(use_threads=False, block_size=len(text) + 1),
            parse_options=pajson.ParseOptions(
                explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore"
            ),
        )
    except pa.ArrowInvalid:
        table = None
    if table is None or len(table) != len(filled):
        table, is_object_N = _json_one_by_one(taken(filled), names)
        filled, malformed = filled[is_object_N], filled[~is_object_N]
    return RawRows(table, lambda rows: (filled[rows], taken(filled[rows])), malformed, taken)


def _json_one_by_one(lines: pa.Array, names: list[str]) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
    """Read lines of which some are damaged, or of mixed types; all values become text."""
    objects: list[Any] = []
    for line in lines.to_pylist():
        try:
            objects.append(json.loads(line))
        except (ValueError, RecursionError):
            objects.append(None)
    is_object_N = np.array([isinstance(found, dict) for found in objects], dtype=bool)
    rows = [found for found in objects if isinstance(found, dict)]
    columns = {
        name: pa.array([_text(row.get(name)) for row in rows], pa.string()) for name in names
    }
    return pa.table(columns), is_object_N


def _text(value: Any) -> str | None:
    """Return a value of JSON as text; lists and objects are none."""
    if value is None or isinstance(value, list | dict):
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    return text if text.isascii() else _sound(text)


def _sound(text: str) -> str:
    """Return text with a mark in place of half a surrogate pair."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def parse_sessions(text: bytes, layout: Layout) -> RawRows:
    """Parse one sequence of items per line."""
    filled, taken = _lines(text)
    entries = pc.split_pattern(taken(filled), layout.separator)
    line_N = filled[to_numpy(pc.list_parent_indices(entries))]
    item_N = pc.utf8_trim_whitespace(whole(pc.list_flatten(entries)))
    is_item = pc.not_equal(item_N, layout.absent)
    line_N, item_N = line_N[to_numpy(is_item)], item_N.filter(is_item)
    table = pa.table({"line": line_N, "entry": item_N})
    return RawRows(table, lambda rows: (line_N[rows], taken(line_N[rows])), filled[:0], taken)


def parse_matrix(text: bytes, layout: Layout) -> RawRows:
    """Parse a dense matrix of ratings, one user per line."""
    filled, taken = _lines(text)
    cells = pc.split_pattern_regex(pc.utf8_trim_whitespace(taken(filled)), r"\s+")
    length = to_numpy(pc.list_value_length(cells))
    width = int(np.bincount(length).argmax()) if len(length) else 0  # the commonest
    is_whole = length == width
    malformed, filled = filled[~is_whole], filled[is_whole]
    value_N = whole(pc.list_flatten(cells.filter(pa.array(is_whole))))
    cell_N = np.arange(len(value_N))
    number_N = to_numpy(value_N.dictionary_encode().indices)
    absent = [
        code
        for code, word in enumerate(value_N.dictionary_encode().dictionary.to_pylist())
        if _is_number(word, float(layout.absent))
    ]
    cell_N = cell_N[~np.isin(number_N, absent)]
    line_N = filled[cell_N // max(width, 1)]
    table = pa.table(
        {"row": line_N, "column": cell_N % max(width, 1), "value": value_N.take(pa.array(cell_N))}
    )
    return RawRows(table, lambda rows: (line_N[rows], taken(line_N[rows])), malformed, taken)


def _is_number(word: str, number: float) -> bool:
    try:
        return float(word) == number
    except ValueError:
        return False
