"""Reads text in chunks of whole lines, for all formats that are text."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distrib.data.logs.files import require_columns
from distrib.data.logs.layout import IntArray, Layout, LogPiece, Part, RawRows
from distrib.data.logs.text import LogFile, chunks, count_lines, first_lines, line_bounds, ranges
from distrib.data.schema import Origin


class TextReader(NamedTuple):
    """A `Reader` of text; the format adds a function that parses whole lines."""

    name: str
    parse: Callable[[bytes, Layout], RawRows]
    """Parses lines without a header."""

    is_user_per_line: bool = False
    """Whether the number of a line is its user, so that a file cannot be cut."""

    def parts(self, file: LogFile) -> list[Part]:
        """See `Reader.parts`."""
        if self.is_user_per_line:
            return [(0, None, 0)]
        return [(start, stop, 0) for start, stop in ranges(file)]

    def tables(self, piece: LogPiece, layout: Layout) -> Iterator[RawRows]:
        """See `Reader.tables`."""
        first_line = 0
        if layout.has_header:
            layout = layout._replace(header=header_of(piece.file, layout))
        for text in chunks(piece.file, piece.start, piece.stop):
            if layout.has_header and piece.start == 0 and first_line == 0:
                cut = text.find(b"\n") + 1
                body, first_line = (text[cut:] if cut else b""), 1
            else:
                body = text
            is_blank = not body or (body.isspace() and not body.strip(b"\r\n"))
            if not is_blank:
                raw = self.parse(body, layout)
                yield self._moved(raw, first_line, piece.file, layout)
            first_line += count_lines(body)

    def _moved(self, raw: RawRows, by: int, file: LogFile, layout: Layout) -> RawRows:
        """Count lines from the start of the file."""

        def places(rows: IntArray) -> tuple[IntArray, pa.Array]:
            lines, texts = raw.places(rows)
            return lines + by, texts

        def bounds(lines: IntArray) -> pa.Array:
            return raw.bounds(lines - by)

        table = raw.table
        if self.is_user_per_line:
            user = pc.add(table[layout.columns.user], by)
            if sum(each.origin == Origin.LOG for each in layout.files) > 1:
                name = file.name.rsplit("/", 1)[-1]
                user = pc.binary_join_element_wise(name, user.cast(pa.string()), ":")
            table = table.set_column(0, layout.columns.user, user)
        return raw._replace(
            table=table, places=places, bounds=bounds, malformed_M=raw.malformed_M + by
        )


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
    names = tuple(
        name.strip().strip('"').partition(":")[0] if layout.is_typed else name.strip().strip('"')
        for name in first_lines(file, 1)[0].split(layout.separator)
    )
    require_columns(layout.columns, names, file)
    return names


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
