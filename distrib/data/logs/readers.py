"""Files of a log in, checked interactions and quarantined rows out, in bounded pieces."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distrib.data.logs.config import FileSource
from distrib.data.logs.layout import IntArray, Layout, LogPiece, RawRows, Reader
from distrib.data.logs.rating_scale import Scale
from distrib.data.logs.text import LogFile
from distrib.data.logs.validate import checked
from distrib.data.schema import DAMAGED, QUARANTINE, Status, interactions
from distrib.errors import DataError, excerpt
from distrib.storage import Folder

_LONGEST_TEXT = 1000
_PIECE_BITS = 36  # a row's place in the log: piece, then row within it


class CheckedRows(NamedTuple):
    """What was read at once."""

    interactions: pa.Table
    """`schema.interactions`; what is rejected is there as counts."""

    quarantine: pa.Table
    """`schema.QUARANTINE`; lines count from the start of the piece where it starts in a range."""


def log_pieces(layout: Layout) -> list[LogPiece]:
    """Cut a log into parts to be read in parallel; the cut depends on nothing but the log.

    Args:
        layout: From the `inspect` of its configuration.

    Returns:
        At least one piece.

    Raises:
        DataError: A file cannot be read.
    """
    reader, found = _reader_of(layout), list[LogPiece]()
    for file in layout.files:
        parts = reader.parts(file)
        found += [LogPiece(len(found) + n, file, *part) for n, part in enumerate(parts)]
    return found


def read_log(piece: LogPiece, layout: Layout, scale: Scale) -> Iterator[CheckedRows]:
    """Yield the rows of a piece, checked.

    Args:
        piece: One of `log_pieces`.
        layout: From the `inspect` of its configuration.
        scale: What ratings are possible.

    Yields:
        At least one reading; no row twice, none left out.

    Raises:
        DataError: The file is damaged or not laid out as said.
    """
    reader, num_rows = _reader_of(layout), 0
    try:
        for raw in reader.tables(piece, layout):
            raw = _with_path(raw, layout, piece.file)
            order_N = (piece.number << _PIECE_BITS) + num_rows + np.arange(len(raw.table))
            yield _checked(raw, layout, scale, order_N, piece.file)
            num_rows += len(raw.table)
        if not layout.is_versioned:
            _require_unchanged(piece.file)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"{piece.file.label}: cannot be read as {reader.name} with columns "
            f"{layout.stored_names}: {excerpt(str(error), 300)}; convert or leave out the file"
        ) from error
    if num_rows == 0:
        yield CheckedRows(interactions(layout.id_type).empty_table(), QUARANTINE.empty_table())


def _with_path(raw: RawRows, layout: Layout, file: LogFile) -> RawRows:
    """Add the columns that stand in the path of a file."""
    table = raw.table
    for name in layout.from_path:
        value = pa.scalar(file.partition[name], pa.string())
        table = table.append_column(name, pa.repeat(value, len(table)))
    return raw._replace(table=table)


def _require_unchanged(file: LogFile) -> None:
    """Refuse a file that was written while it was read: its rows are of two states."""
    now = Folder(file.url).stamp()
    if now != file.stamp:
        raise DataError(
            f"{file.label}: changed while it was read ({file.stamp}, then {now}); run the job "
            "again when the log is complete"
        )


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
    if not len(raw.malformed_M) and not found.status_N.any():
        return CheckedRows(found.kept, QUARANTINE.empty_table())
    bad_N = np.flatnonzero(np.isin(found.status_N, DAMAGED))
    left_out = found.status_N[~np.isin(found.status_N, (Status.KEPT, *DAMAGED))]
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
    values, numbers = np.unique(np.concatenate([status, left_out]), return_counts=True)
    counts = dict(zip(values.tolist(), numbers.tolist(), strict=True))
    table = pa.concat_tables([found.kept, counts_as_rows(counts, layout.id_type)])
    return CheckedRows(table, quarantine)


def with_held_out(layout: Layout, source: FileSource, paths: Sequence[tuple[str, int]]) -> Layout:
    """Add the files that a given split holds out; they must be laid out like the log.

    Args:
        layout: Of the log.
        source: The log.
        paths: URLs and their `Origin`.

    Returns:
        The layout of all files.

    Raises:
        DataError: A file is absent or laid out otherwise.
    """
    files = list(layout.files)
    for path, origin in paths:
        other = source.model_copy(update={"path": path}).inspect()
        if _dialect(other) != _dialect(layout):
            raise DataError(
                f"{path}: is not laid out like {source.path}; convert it to that layout"
            )
        files += [file._replace(origin=origin) for file in other.files]
    return layout._replace(files=tuple(files))


def _dialect(layout: Layout) -> Layout:
    """Return a layout without what may differ from file to file."""
    return layout._replace(files=(), header=None, json_types=())


def _reader_of(layout: Layout) -> Reader:
    assert layout.reader is not None, "a generated log is not read"
    return layout.reader
