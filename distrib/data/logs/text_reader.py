"""Reads text in chunks of whole lines, for all formats that are text."""

import csv
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distrib.data.logs.files import require_columns
from distrib.data.logs.layout import IntArray, Layout, LogPiece, Part, RawRows
from distrib.data.logs.quotes import closed_head, joined_records, open_tail
from distrib.data.logs.text import LogFile, chunks, count_lines, first_lines, line_bounds, ranges
from distrib.data.schema import Origin

UNIT_SEPARATOR = "\x1f"


class _Lines(NamedTuple):
    """Whole lines of a file."""

    text: bytes
    first: int
    """Number of the first line in the piece, from 0."""

    are_open: bool = False
    """Whether they are inside a quote that no line of the piece closes, or opens."""


class TextReader(NamedTuple):
    """A `Reader` of text; the format adds a function that parses whole lines."""

    name: str
    parse: Callable[[bytes, Layout], RawRows]
    """Parses lines without a header."""

    is_user_per_line: bool = False
    """Whether the number of a line is its user, so that a file cannot be cut."""

    has_quotes: bool = False
    """Whether quotes may hold separators and line breaks."""

    is_whole: bool = False
    """Whether records may take several lines, so that a file cannot be cut."""

    def parts(self, file: LogFile) -> list[Part]:
        """See `Reader.parts`."""
        if self.is_user_per_line or self.is_whole:
            return [(0, None, 0)]
        return [(start, stop, 0) for start, stop in ranges(file)]

    def tables(self, piece: LogPiece, layout: Layout) -> Iterator[RawRows]:
        """See `Reader.tables`."""
        if layout.has_header:
            layout = layout._replace(header=header_of(piece.file, layout))
        cut_by = layout if self.has_quotes else layout._replace(is_quoted=False)
        for lines in _records(piece, cut_by):
            if lines.are_open:
                yield _none_of(lines, layout)
                continue
            text = lines.text
            if layout.dialect.has_line_breaks:
                text = joined_records(text, layout)
            raw = self.parse(text, layout)
            yield self._moved(raw, _counter(lines, text), piece.file, layout)

    def _moved(
        self, raw: RawRows, number: Callable[[IntArray], IntArray], file: LogFile, layout: Layout
    ) -> RawRows:
        """Count lines from the start of the file."""

        def places(rows: IntArray) -> tuple[IntArray, pa.Array]:
            lines, texts = raw.places(rows)
            return number(lines), texts

        texts = raw.bounds(raw.malformed_M) if len(raw.malformed_M) else pa.array([], pa.string())
        table = raw.table
        if self.is_user_per_line:
            user = pc.add(table[layout.columns.user], int(number(np.zeros(1, np.int64))[0]))
            if sum(each.origin == Origin.LOG for each in layout.files) > 1:
                name = file.name.rsplit("/", 1)[-1]
                user = pc.binary_join_element_wise(name, user.cast(pa.string()), ":")
            table = table.set_column(0, layout.columns.user, user)
        return raw._replace(
            table=table,
            places=places,
            bounds=lambda _: texts,
            malformed_M=number(raw.malformed_M),
        )


def _counter(lines: _Lines, text: bytes) -> Callable[[IntArray], IntArray]:
    """Return what turns numbers of parsed lines into numbers of lines of the piece."""
    if text is lines.text:
        return lambda numbers: numbers + lines.first
    starts, ends = line_bounds(text)[0], line_bounds(lines.text)[0]
    return lambda numbers: np.searchsorted(ends, starts[numbers]) + lines.first


def _none_of(lines: _Lines, layout: Layout) -> RawRows:
    """Return no rows, and all lines as malformed."""
    filled, taken = filled_lines(lines.text)
    texts = taken(filled)
    empty = pa.table({name: pa.array([], pa.string()) for name in layout.stored_names})
    return RawRows(empty, lambda rows: (rows, taken(rows)), filled + lines.first, lambda _: texts)


def _records(piece: LogPiece, layout: Layout) -> Iterator[_Lines]:
    """Yield the lines of a piece without its header, cut between records."""
    first, rest, is_first = 0, b"", True
    texts = chunks(piece.file, piece.start, piece.stop)
    upcoming = next(texts, None)
    while upcoming is not None:
        text, upcoming = rest + upcoming, next(texts, None)
        rest = b""
        if is_first and piece.start:
            head = closed_head(text, layout)
            if head:
                yield _Lines(text[:head], first, are_open=True)
                first, text = first + count_lines(text[:head]), text[head:]
        if is_first and layout.has_header and piece.start == 0:
            text, first = _without_header(text, layout)
        is_first = False
        cut = open_tail(text, layout, is_end=upcoming is None and piece.stop is None)
        text, tail = text[:cut], text[cut:]
        is_blank = not text or (text.isspace() and not text.strip(b"\r\n"))
        if not is_blank:
            yield _Lines(text, first)
        first += count_lines(text)
        if upcoming is None and tail:
            yield _Lines(tail, first, are_open=True)
        rest = tail


def _without_header(text: bytes, layout: Layout) -> tuple[bytes, int]:
    """Return the lines after the header, and how many lines were left out."""
    mark, count = layout.dialect.comment.encode(), 0
    while text:
        line, _, text = text.partition(b"\n")
        count += 1
        if line.strip(b"\r") and not (mark and line.startswith(mark)):
            break
    return text, count


def header_of(file: LogFile, layout: Layout) -> tuple[str, ...]:
    """Return the names of a file's columns.

    Args:
        file: One of a log with header lines.
        layout: Of the log.

    Returns:
        Names, without quotes and types.

    Raises:
        DataError: A column that is read is not there.
    """
    names = header_names(first_lines(file, 1, layout.dialect.comment)[0], layout)
    require_columns(layout.names, names, file)
    return names


def header_names(line: str, layout: Layout) -> tuple[str, ...]:
    """Return the names in a header line, without types."""
    names = fields_of(line, layout)
    if layout.is_typed:
        names = [name.partition(":")[0] for name in names]
    return tuple(name.strip() for name in names)


def fields_of(line: str, layout: Layout) -> list[str]:
    """Return the fields of a line, by the same rules as all rows."""
    if layout.dialect.has_blanks:
        return line.split()
    if not layout.is_quoted:
        return line.split(layout.separator)
    separator = layout.separator if len(layout.separator) == 1 else UNIT_SEPARATOR
    plain = line.replace(layout.separator, separator)
    escape = layout.dialect.escape or None
    try:
        return next(csv.reader([plain], delimiter=separator, escapechar=escape), [""])
    except csv.Error:  # a carriage return inside, or a field of 128 KB: no header of a log
        return line.split(layout.separator)


def filled_lines(text: bytes) -> tuple[IntArray, Callable[[IntArray], pa.Array]]:
    """Return which lines are not empty, and what gives the text of lines."""
    starts, ends = line_bounds(text)

    def taken(lines: IntArray) -> pa.Array:
        if 2 * len(lines) > len(starts):
            proper = text.decode("utf-8", "replace").replace("\r\n", "\n")
            every_line = pc.list_flatten(pc.split_pattern(pa.array([proper]), "\n"))
            return every_line.take(pa.array(lines))
        cut = [text[starts[n] : ends[n]].decode("utf-8", "replace") for n in lines]
        return pa.array(cut, pa.string())

    return np.flatnonzero(ends > starts), taken
