"""Files of a log in, checked interactions and quarantined rows out, in bounded pieces."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distrib.data.logs.detect import Layout, header_of
from distrib.data.logs.parsers import (
    IntArray,
    Places,
    RawRows,
    parse_csv,
    parse_json_lines,
    parse_matrix,
    parse_sessions,
)
from distrib.data.logs.rating_scale import Scale
from distrib.data.logs.text import LogFile, chunks, count_lines, ranges
from distrib.data.logs.validate import checked
from distrib.data.schema import QUARANTINE, Origin, Status, interactions
from distrib.errors import DataError
from distrib.storage import Folder

_LONGEST_TEXT = 1000
_ROWS_AT_ONCE = 1 << 20
_PIECE_BITS = 36  # a row's place in the log: piece, then row within it


class LogPiece(NamedTuple):
    """A part of a log that is read on its own."""

    number: int
    file: LogFile
    start: int = 0
    """First byte of a text, first row group of a Parquet file, chunk of a drawn log."""

    stop: int | None = None
    first_row: int = 0
    """Rows of the file before this piece, in Parquet."""

    @property
    def has_line_numbers(self) -> bool:
        """Whether lines are counted from the start of the file."""
        return self.start == 0 or self.first_row > 0


class CheckedRows(NamedTuple):
    """What was read at once."""

    interactions: pa.Table
    """`schema.interactions`; what is rejected is there as counts."""

    quarantine: pa.Table
    """`schema.QUARANTINE`; lines count from the start of the piece where it starts in a range."""


def log_pieces(layout: Layout) -> list[LogPiece]:
    """Cut a log into parts to be read in parallel; the cut depends on nothing but the log.

    Args:
        layout: What `inspect` found.

    Returns:
        At least one piece.

    Raises:
        DataError: A file cannot be read.
    """
    found: list[LogPiece] = []
    for file in layout.files:
        parts: list[tuple[int, int | None, int]]
        if layout.kind == "parquet":
            parts = _row_group_parts(file)
        elif layout.kind in {"text", "jsonl"}:
            parts = [(start, stop, 0) for start, stop in ranges(file)]
        else:
            parts = [(0, None, 0)]
        found += [LogPiece(len(found) + n, file, *part) for n, part in enumerate(parts)]
    return found


def read_log(piece: LogPiece, layout: Layout, scale: Scale) -> Iterator[CheckedRows]:
    """Yield the rows of a piece, checked.

    Args:
        piece: One of `pieces`.
        layout: What `inspect` found.
        scale: What ratings are possible.

    Yields:
        At least one reading; no row twice, none left out.

    Raises:
        DataError: The file is damaged or not laid out as said.
    """
    num_rows = 0
    try:
        for raw in _raw_tables(piece, layout):
            order_N = (piece.number << _PIECE_BITS) + num_rows + np.arange(len(raw.table))
            yield _checked(raw, layout, scale, order_N, piece.file)
            num_rows += len(raw.table)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"{piece.file.label}: cannot be read as {layout.kind} with columns "
            f"{layout.columns.names()}: {error}; convert or leave out the file"
        ) from error
    if num_rows == 0:
        yield CheckedRows(interactions(layout.id_type).empty_table(), QUARANTINE.empty_table())


def counts_as_rows(counts: dict[int, int], id_type: pa.DataType) -> pa.Table:
    """Return rows of `schema.interactions` that stand for rejected ones, by status."""
    schema = interactions(id_type)
    columns: dict[str, Any] = {field.name: pa.nulls(len(counts), field.type) for field in schema}
    columns["time"] = pa.array(list(counts.values()), pa.int64())
    columns["status"] = pa.array(list(counts), pa.int8())
    for name in ("origin", "shard"):
        columns[name] = pa.array(np.zeros(len(counts)), schema.field(name).type)
    return pa.table(columns, schema=schema)


def _checked(
    raw: RawRows, layout: Layout, scale: Scale, order_N: IntArray, file: LogFile
) -> CheckedRows:
    found = checked(raw.table, layout, scale, order_N, file.origin)
    bad_N = np.flatnonzero(found.status_N)
    if not len(bad_N) and not len(raw.malformed_M):
        return CheckedRows(found.kept, QUARANTINE.empty_table())
    line_M, text_M = raw.places(bad_N)
    lines = np.concatenate([line_M, raw.malformed_M])
    texts = pa.concat_arrays([text_M, raw.bounds(raw.malformed_M)])
    status = np.concatenate(
        [found.status_N[bad_N], np.full(len(raw.malformed_M), Status.MALFORMED, np.int8)]
    )
    reasons = pa.array([each.reason for each in Status], pa.string())
    columns = [
        pa.array([file.label]).take(pa.array(np.zeros(len(lines), np.int64))),
        pa.array(lines + 1),
        reasons.take(pa.array(status)),
        pc.utf8_slice_codeunits(texts, 0, _LONGEST_TEXT),
    ]
    quarantine = pa.table(columns, schema=QUARANTINE).sort_by("line")
    values, numbers = np.unique(status, return_counts=True)
    counts = dict(zip(values.tolist(), numbers.tolist(), strict=True))
    table = pa.concat_tables([found.kept, counts_as_rows(counts, layout.id_type)])
    return CheckedRows(table, quarantine)


def _raw_tables(piece: LogPiece, layout: Layout) -> Iterator[RawRows]:
    if layout.kind == "parquet":
        yield from _parquet_tables(piece, layout)
        return
    parse = {
        "text": parse_csv,
        "jsonl": parse_json_lines,
        "sessions": parse_sessions,
        "matrix": parse_matrix,
    }
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
            raw = parse[layout.kind](body, layout)
            yield _moved(raw, first_line, piece.file, layout)
        first_line += count_lines(body)


def _moved(raw: RawRows, by: int, file: LogFile, layout: Layout) -> RawRows:
    """Count lines from the start of the file; they are the users of sessions and matrices."""

    def places(rows: IntArray) -> tuple[IntArray, pa.Array]:
        lines, texts = raw.places(rows)
        return lines + by, texts

    def bounds(lines: IntArray) -> pa.Array:
        return raw.bounds(lines - by)

    table = raw.table
    if layout.kind in {"sessions", "matrix"}:
        user = pc.add(table[layout.columns.user], by)
        if sum(each.origin == Origin.LOG for each in layout.files) > 1:
            name = file.name.rsplit("/", 1)[-1]
            user = pc.binary_join_element_wise(name, user.cast(pa.string()), ":")
        table = table.set_column(0, layout.columns.user, user)
    return raw._replace(table=table, places=places, bounds=bounds, malformed_M=raw.malformed_M + by)


def _row_group_parts(file: LogFile) -> list[tuple[int, int | None, int]]:
    """Cut a Parquet file into runs of row groups with about a million rows each."""
    with Folder(file.url).open() as stream:
        metadata = pq.read_metadata(stream)
    sizes = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    parts: list[tuple[int, int | None, int]] = []
    start, first_row, rows = 0, 0, 0
    for number, size in enumerate(sizes):
        rows += size
        if rows >= _ROWS_AT_ONCE or number == len(sizes) - 1:
            parts.append((start, number + 1, first_row))
            start, first_row, rows = number + 1, first_row + rows, 0
    return parts or [(0, 0, 0)]


def _parquet_tables(piece: LogPiece, layout: Layout) -> Iterator[RawRows]:
    names, first = layout.columns.names(), piece.first_row
    with Folder(piece.file.url).open() as stream:
        file = pq.ParquetFile(stream)
        groups = list(range(piece.start, piece.stop or 0))
        for batch in file.iter_batches(_ROWS_AT_ONCE, groups, columns=names, use_threads=False):
            table = pa.Table.from_batches([batch])
            yield RawRows(table, _row_places(table, first), np.zeros(0, np.int64), _no_text)
            first += len(table)


def _row_places(table: pa.Table, first: int) -> Places:
    def places(rows: IntArray) -> tuple[IntArray, pa.Array]:
        said = [str(row) for row in table.take(pa.array(rows)).to_pylist()]
        return rows + first, pa.array(said, pa.string())

    return places


def _no_text(lines: IntArray) -> pa.Array:
    return pa.nulls(len(lines), pa.string())
