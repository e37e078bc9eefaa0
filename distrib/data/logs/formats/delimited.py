"""Delimited text with any columns."""

import codecs
import re
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from pydantic import AfterValidator, Field, model_validator

from distrib.config import Config
from distrib.data.logs.columns import Columns, IdKind, TimeFormat, TimeUnit, Where, wanted_values
from distrib.data.logs.files import Path, hold_columns, log_files, of_path
from distrib.data.logs.layout import Dialect, IntArray, Layout, RawRows
from distrib.data.logs.quotes import broken_lines
from distrib.data.logs.text import BOM, LogFile, first_lines, line_bounds
from distrib.data.logs.text_reader import (
    UNIT_SEPARATOR,
    TextReader,
    fields_of,
    filled_lines,
    header_names,
)
from distrib.errors import DataError, listed

_HEXADECIMAL = re.compile(rb"0[xX]")  # a number to Arrow, not to us
_LONE_RETURN = re.compile(rb"\r(?!\n|\Z)")
_BLANKS = "whitespace"
OneCharacter = Annotated[str, Field(min_length=1, max_length=1)]


def _known_encoding(name: str) -> str:
    try:
        is_text = codecs.lookup(name)._is_text_encoding
    except LookupError:
        is_text = False
    if not is_text:
        raise ValueError(
            f"{name!r}: no encoding that Python knows; try utf-8, latin-1, cp1252 or utf-16"
        )
    return "utf-8" if codecs.lookup(name).name in ("utf-8", "utf-8-sig", "ascii") else name


class CsvSource(Config):
    """Delimited text with any columns."""

    format: Literal["csv"] = "csv"

    path: Path
    """Path or URL of a file, plain or compressed (gzip, zstd, bz2, lz4, xz), of a folder, of a
    pattern (``2024-*/part-*.csv``), or of a member of an archive (``log.zip:events.csv``); or a
    list of them. Columns in the path (``dt=2024-01-01/``) are columns like others."""

    columns: Columns
    """Mapping of columns."""

    where: Where = Field(default_factory=dict)
    """Values by column, such as ``{ event = ["purchase"] }``: only rows with one of them count. The
    others are counted as ``left out by where``, not as damage."""

    separator: Annotated[str, Field(min_length=1)] = ","
    """One or more characters between fields; ``whitespace`` for any run of blanks and tabs."""

    header: tuple[str, ...] | None = None
    """Column names of a file that has no header line."""

    quoted: bool = True
    """Whether a field in double quotes may contain the separator."""

    multiline: bool = False
    """Whether a field in double quotes may contain line breaks, as reviews do; then one worker
    reads a file. Otherwise such records are quarantined, with all of their lines."""

    escape: OneCharacter | None = None
    """Character before a quote or separator that is text, such as a backslash. Quotes inside a
    quoted field may be doubled all the same."""

    null_values: tuple[str, ...] = ()
    """Fields that stand for no value, such as ``\\N`` or ``NULL``, beside empty ones."""

    decimal: Literal[".", ","] = "."
    """Character before the decimals of ratings and times."""

    comment: str = ""
    """Start of the lines that are remarks, such as ``#`` or ``%``."""

    encoding: Annotated[str, AfterValidator(_known_encoding)] = "utf-8"
    """Encoding of the text, by a name that Python knows: ``latin-1``, ``cp1252``, ``utf-16``."""

    ids: IdKind = "string"
    """Kind of the user and item ids. Whole floats such as ``100.0`` are integers if it is
    ``int``."""

    time_unit: TimeUnit = "s"
    """Unit of the time column, since 1970; or ``iso8601`` for dates as text."""

    time_format: TimeFormat | None = None
    """How dates are written, in the letters of Python's strptime, if not as ISO 8601:
    ``%m/%d/%Y %H:%M``. Dates without a zone are UTC."""

    @model_validator(mode="after")
    def _dialect_is_one(self) -> "CsvSource":
        if self.decimal == self.separator:
            raise ValueError(f"decimal and separator are both {self.decimal!r}; set one of them")
        if self.separator == _BLANKS and self.multiline:
            raise ValueError("multiline needs quotes, which separator = 'whitespace' has not")
        return self

    def inspect(self) -> Layout:
        """Return how to read the log; raise `DataError` where its first lines do not show it."""
        files = log_files(self.path, encoding=self.encoding)
        has_blanks = self.separator == _BLANKS
        dialect = Dialect(
            self.escape or "", self.null_values, self.decimal, self.comment, has_blanks,
            self.multiline,
        )  # fmt: skip
        layout = Layout(
            files, SPANNING if self.multiline else DELIMITED, self.columns, self.ids, None,
            UNIT_SEPARATOR if has_blanks else self.separator, self.header,
            has_header=self.header is None, is_quoted=self.quoted and not has_blanks,
            dialect=dialect, time_unit=self.time_unit, time_format=self.time_format,
            where=wanted_values(self.where),
        )  # fmt: skip

        def names_in(file: LogFile) -> tuple[str, ...]:
            if self.header is not None:
                return self.header
            return header_names(first_lines(file, 100, self.comment)[0], layout)

        hold_columns(layout.names, files, names_in)
        header = names_in(files[0])
        lines = first_lines(files[0], 100, self.comment)
        row = fields_of(lines[0 if self.header else min(1, len(lines) - 1)], layout)
        if '"' not in "".join(lines[:2]) and len(row) != len(header):
            raise DataError(
                f"{files[0].label}: {len(header)} column names {listed(header)}, but the first row "
                f"has {len(row)} fields {listed(row)}; correct data.source.separator, the header, "
                "or data.source.header"
            )
        return layout._replace(header=header, from_path=of_path(layout.names, header, files[0]))


class _Parsed(NamedTuple):
    """Rows of some lines."""

    table: pa.Table
    numbers: list[int]
    """From 1, of the lines without as many fields as the header, among those not skipped."""

    skipped_M: IntArray
    """Lines that were not parsed."""

    broken_M: IntArray
    """Those of them that are damaged."""


def _parse(text: bytes, layout: Layout) -> RawRows:
    """Parse delimited lines without a header."""
    out_M = _remarks(text, layout)
    found = _parsed_lines(text, layout, out_M)
    if found.numbers or found.table[layout.stored_names[0]].null_count:
        blank_M = _separators_alone(text, layout)
        if len(blank_M):
            found = _parsed_lines(text, layout, np.union1d(out_M, blank_M))
    table, numbers, skipped_M, broken_M = found
    lines: list[Any] = []

    def known() -> list[Any]:
        """Return the lines that hold rows, those that do not, and what gives their text."""
        if not lines:
            filled, taken = filled_lines(text)
            filled = np.setdiff1d(filled, skipped_M)
            short_M = np.asarray(numbers, dtype=np.int64) - 1
            malformed = np.sort(np.concatenate([filled[short_M], broken_M]))
            lines.extend([np.delete(filled, short_M), malformed, taken])
        return lines

    def places(rows: IntArray) -> tuple[IntArray, pa.Array]:
        found = known()[0][rows]
        return found, known()[2](found)

    is_whole = not numbers and not len(broken_M)
    malformed = np.zeros(0, dtype=np.int64) if is_whole else known()[1]
    return RawRows(table, places, malformed, lambda wanted: known()[2](wanted))


def _parsed_lines(text: bytes, layout: Layout, out_M: IntArray) -> _Parsed:
    """Parse all but some lines."""
    cut_M = _cut_by_arrow(text)
    for is_thorough in (False, True):
        broken_M = np.union1d(cut_M, broken_lines(text, layout, is_thorough=is_thorough))
        skipped_M = np.union1d(out_M, broken_M)
        clean, separator = _one_separator(_without(text, skipped_M), layout)
        table, numbers = _parsed_as_guessed(clean, layout, separator)
        if not layout.is_quoted or b'"' not in text:
            break
        if len(table) + len(numbers) + len(skipped_M) == len(filled_lines(text)[0]):
            break
    else:
        raise pa.ArrowInvalid(
            "quotes open that no line closes (if they are no quotes: data.source.quoted = "
            "false; if fields hold line breaks: data.source.multiline = true)"
        )
    return _Parsed(table, numbers, skipped_M, broken_M)


def _remarks(text: bytes, layout: Layout) -> IntArray:
    mark = layout.dialect.comment.encode()
    if not mark:
        return np.zeros(0, dtype=np.int64)
    return _lines_at(text, re.compile(rb"^%b" % re.escape(mark), re.MULTILINE))


def _separators_alone(text: bytes, layout: Layout) -> IntArray:
    """Return the lines of separators only, as Excel leaves them; they are blank."""
    apart = re.escape(layout.separator.encode())
    return _lines_at(text, re.compile(rb"^(?:%b)+\r?$" % apart, re.MULTILINE))


def _cut_by_arrow(text: bytes) -> IntArray:
    """Return the lines with a carriage return alone, which ends a row for Arrow."""
    if b"\r" not in text or text.count(b"\r") == text.count(b"\r\n"):
        return np.zeros(0, dtype=np.int64)
    return np.unique(_lines_at(text, _LONE_RETURN))


def _lines_at(text: bytes, pattern: re.Pattern[bytes]) -> IntArray:
    """Return the lines in which a pattern begins."""
    places = [found.start() for found in pattern.finditer(text)]
    if not places:
        return np.zeros(0, dtype=np.int64)
    starts, _ = line_bounds(text)
    return np.searchsorted(starts, np.asarray(places), side="right") - 1


def _one_separator(text: bytes, layout: Layout) -> tuple[bytes, str]:
    """Replace a separator of several characters, which Arrow has no way to parse, by one."""
    if text.startswith(BOM):  # not at the start of a file; Arrow would leave it out all the same
        text = b"\n" + text
    if layout.dialect.has_blanks:
        text = re.sub(rb"^[ \t]+|[ \t]+(?=\r?$)", b"", text, flags=re.MULTILINE)
        return re.sub(rb"[ \t]+", UNIT_SEPARATOR.encode(), text), UNIT_SEPARATOR
    if len(layout.separator) == 1:
        return text, layout.separator
    return text.replace(layout.separator.encode(), UNIT_SEPARATOR.encode()), UNIT_SEPARATOR


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
    if not text or (text.isspace() and not text.strip(b"\r\n")):
        return pa.table({name: pa.array([], pa.string()) for name in layout.stored_names}), []
    proper = _proper(text)
    for types in [] if _HEXADECIMAL.search(text) else _guesses(layout):
        try:
            table, numbers = _parsed(proper, layout, separator, types)
        except pa.ArrowInvalid:
            continue
        return _with_separator(table, layout, separator), numbers
    table, numbers = _parsed(
        proper, layout, separator, dict.fromkeys(layout.stored_names, pa.string())
    )
    if layout.dialect.decimal == ",":
        for name in {layout.columns.rating, layout.columns.time} & {*table.column_names}:
            place = table.schema.get_field_index(name)
            plain = pc.replace_substring(table[name], ",", ".")
            table = table.set_column(place, name, plain)
    return _with_separator(table, layout, separator), numbers


def _with_separator(table: pa.Table, layout: Layout, separator: str) -> pa.Table:
    """Put a separator of several characters back where a quoted field holds it."""
    if separator == layout.separator or not layout.is_quoted:
        return table
    plain = {
        name: pc.replace_substring(column, separator, layout.separator)
        if pa.types.is_string(column.type) else column
        for name, column in zip(table.column_names, table.columns, strict=True)
    }  # fmt: skip
    return pa.table(plain)


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
    types = dict.fromkeys((name for name, _ in layout.where), pa.string())
    types |= {columns.user: layout.id_type, columns.item: layout.id_type}
    if columns.rating is not None:
        types.setdefault(columns.rating, pa.float32())
    if columns.time is None or columns.time in types:
        return [types]
    is_text = layout.time_unit == "iso8601" or layout.time_format is not None
    kinds = [pa.string()] if is_text else [pa.int64(), pa.float64()]
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
            escape_char=layout.dialect.escape or False,
            invalid_row_handler=skip,
        ),
        convert_options=pacsv.ConvertOptions(
            include_columns=layout.stored_names,
            column_types=types,
            strings_can_be_null=True,
            null_values=["", *layout.dialect.null_values],
            decimal_point=layout.dialect.decimal,
        ),
    )
    return table, malformed


DELIMITED = TextReader("text", _parse, has_quotes=True)
"""Reader of all formats whose lines are fields between separators."""

SPANNING = TextReader("text", _parse, has_quotes=True, is_whole=True)
"""The same for records that take several lines."""
