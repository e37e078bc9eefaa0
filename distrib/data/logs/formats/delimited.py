"""Delimited text with any columns."""

import re
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
from pydantic import Field

from distrib.config import Config
from distrib.data.logs.columns import Columns, IdKind, TimeUnit
from distrib.data.logs.files import log_files, require_columns
from distrib.data.logs.layout import IntArray, Layout, RawRows
from distrib.data.logs.text import BOM, first_lines, line_bounds
from distrib.data.logs.text_reader import TextReader, filled_lines
from distrib.errors import DataError

_HEXADECIMAL = re.compile(rb"0[xX]")  # a number to Arrow, not to us
_UNIT_SEPARATOR = "\x1f"


class CsvSource(Config):
    """Delimited text with any columns."""

    format: Literal["csv"] = "csv"

    path: str
    """Path or URL of a file, plain or compressed, or of a folder; reads all its files."""

    columns: Columns
    """Mapping of columns."""

    separator: Annotated[str, Field(min_length=1)] = ","
    """One or more characters between fields."""

    header: tuple[str, ...] | None = None
    """Column names of a file that has no header line."""

    is_quoted: bool = True
    """Whether a field in double quotes may contain the separator; never a line break."""

    ids: IdKind = "string"
    """Kind of the user and item ids."""

    time_unit: TimeUnit = "s"
    """Unit of the time column, since 1970; or dates as text."""

    def inspect(self) -> Layout:
        """Return how to read the log; raise `DataError` where its first lines do not show it."""
        files = log_files(self.path)
        lines = [line.split(self.separator) for line in first_lines(files[0], 2)]
        header = self.header or tuple(name.strip().strip('"') for name in lines[0])
        require_columns(self.columns, header, files[0])
        row = lines[0] if self.header else lines[-1]
        if '"' not in "".join(row) and len(row) != len(header):
            raise DataError(
                f"{files[0].label}: {len(header)} column names {list(header)}, but the first row "
                f"has {len(row)} fields {row}; correct the header, or data.source.header"
            )
        return Layout(
            files, DELIMITED, self.columns, self.ids, None, self.separator, header,
            has_header=self.header is None, is_quoted=self.is_quoted, time_unit=self.time_unit,
        )  # fmt: skip


def _parse(text: bytes, layout: Layout) -> RawRows:
    """Parse delimited lines without a header."""
    for is_thorough in (False, True):
        unclosed_M = _unclosed_lines(text, layout, is_thorough=is_thorough)
        clean, separator = _one_separator(_without(text, unclosed_M), layout)
        table, numbers = _parsed_as_guessed(clean, layout, separator)
        if not layout.is_quoted or b'"' not in text:
            break
        if len(table) + len(numbers) + len(unclosed_M) == len(filled_lines(text)[0]):
            break
    else:
        raise pa.ArrowInvalid(
            "quotes open that no line closes (if they are no quotes: data.source.is_quoted = false)"
        )
    lines: list[Any] = []

    def known() -> list[Any]:
        """Return the lines that hold rows, those that do not, and what gives their text."""
        if not lines:
            filled, taken = filled_lines(text)
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


DELIMITED = TextReader("text", _parse)
"""Reader of all formats whose lines are fields between separators."""
