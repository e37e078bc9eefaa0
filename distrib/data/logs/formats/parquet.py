"""Parquet."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distrib.config import Config
from distrib.data.logs.columns import Columns, IdKind, TimeUnit
from distrib.data.logs.files import log_files, require_columns
from distrib.data.logs.layout import IntArray, Layout, LogPiece, Part, Places, RawRows
from distrib.data.logs.text import LogFile
from distrib.errors import DataError
from distrib.storage import Folder

_ROWS_AT_ONCE = 1 << 20


class ParquetSource(Config):
    """Parquet with any columns."""

    format: Literal["parquet"] = "parquet"

    path: str
    """Path or URL of a file, or of a folder; reads all its files."""

    columns: Columns
    """Mapping of columns."""

    ids: IdKind | None = None
    """Kind of the user and item ids; default ``int`` if both columns are, else ``string``."""

    time_unit: TimeUnit = "s"
    """Unit of a numeric time column, since 1970; ignored for timestamps and dates."""

    def inspect(self) -> Layout:
        """Return how to read the log; raise `DataError` where its first lines do not show it."""
        files = log_files(self.path)
        kinds = set()
        for file in files:
            schema = _schema_of(file)
            require_columns(self.columns, tuple(schema.names), file)
            names = (self.columns.user, self.columns.item)
            kinds |= {pa.types.is_integer(schema.field(name).type) for name in names}
        ids: IdKind = self.ids or ("int" if kinds == {True} else "string")
        return Layout(files, ParquetReader(), self.columns, ids, None, time_unit=self.time_unit)


class ParquetReader(NamedTuple):
    """A `Reader` of Parquet; a piece is a run of row groups."""

    name: str = "parquet"

    def parts(self, file: LogFile) -> list[Part]:
        """Cut a Parquet file into runs of row groups with about a million rows each."""
        with Folder(file.url).open() as stream:
            metadata = pq.read_metadata(stream)
        sizes = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
        parts: list[Part] = []
        start, first_row, rows = 0, 0, 0
        for number, size in enumerate(sizes):
            rows += size
            if rows >= _ROWS_AT_ONCE or number == len(sizes) - 1:
                parts.append((start, number + 1, first_row))
                start, first_row, rows = number + 1, first_row + rows, 0
        return parts or [(0, 0, 0)]

    def tables(self, piece: LogPiece, layout: Layout) -> Iterator[RawRows]:
        """See `Reader.tables`."""
        names, first = layout.columns.names(), piece.first_row
        with Folder(piece.file.url).open() as stream:
            file = pq.ParquetFile(stream)
            groups = list(range(piece.start, piece.stop or 0))
            for batch in file.iter_batches(_ROWS_AT_ONCE, groups, columns=names, use_threads=False):
                table = pa.Table.from_batches([batch])
                yield RawRows(table, _row_places(table, first), np.zeros(0, np.int64), _no_text)
                first += len(table)


def _schema_of(file: LogFile) -> pa.Schema:
    try:
        with Folder(file.url).open() as stream:
            return pq.read_schema(stream)
    except pa.ArrowException as error:
        raise DataError(
            f"{file.url}: is not a Parquet file ({error}); check data.source"
        ) from error


def _row_places(table: pa.Table, first: int) -> Places:
    def places(rows: IntArray) -> tuple[IntArray, pa.Array]:
        texts = [str(row) for row in table.take(pa.array(rows)).to_pylist()]
        return rows + first, pa.array(texts, pa.string())

    return places


def _no_text(lines: IntArray) -> pa.Array:
    return pa.nulls(len(lines), pa.string())
