"""Parquet."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from distrib.config import Config
from distrib.data.logs.columns import Columns, IdKind, TimeFormat, TimeUnit, Where, wanted_values
from distrib.data.logs.files import Path, hold_columns, log_files, of_path, require_columns
from distrib.data.logs.layout import Layout, LogPiece, Part, RawRows, typed_rows
from distrib.data.logs.nested import field_of, leaf_names, type_of
from distrib.data.logs.text import LogFile
from distrib.errors import DataError, excerpt
from distrib.ids import kind_of
from distrib.storage import Folder

_OTHERS = frozenset(
    [".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".avro", ".orc", ".gz", ".zip", ".tar"]
)
_SAMPLE_ROWS = 10_000
ROWS_AT_ONCE = 1 << 20


class ParquetSource(Config):
    """Parquet with any columns."""

    format: Literal["parquet"] = "parquet"

    path: Path
    """Path or URL of a file, of a folder, or of a pattern (``2024-*/part-*.parquet``); or a list of
    them. Columns in the path (``dt=2024-01-01/``) are columns like others."""

    columns: Columns
    """Mapping of columns; a dotted name such as ``author.id`` reaches into structs."""

    where: Where = Field(default_factory=dict)
    """Values by column; only rows with one of them count; see the format ``csv``."""

    ids: IdKind | None = None
    """Kind of the user and item ids; default ``int`` if both columns hold whole numbers within 64
    bits, floats without a fraction included, else ``string``."""

    time_unit: TimeUnit = "s"
    """Unit of a numeric time column, since 1970; ignored for timestamps and dates."""

    time_format: TimeFormat | None = None
    """How dates in a text column are written, if not as ISO 8601; see the format ``csv``."""

    def inspect(self) -> Layout:
        """Return how to read the log; raise `DataError` where its first lines do not show it."""
        files = log_files(self.path, unlike=_OTHERS, is_text=False)
        schemas = {file: _schema_of(file) for file in files}
        where = wanted_values(self.where)
        layout = Layout(
            files, ParquetReader(), self.columns, self.ids or "string", None,
            time_unit=self.time_unit, time_format=self.time_format, where=where,
        )  # fmt: skip
        hold_columns(layout.names, files, lambda file: leaf_names(schemas[file]))
        for file, schema in schemas.items():
            require_columns(layout.names, leaf_names(schema), file)
        from_path = of_path(layout.names, leaf_names(schemas[files[0]]), files[0])
        layout = layout._replace(from_path=from_path)
        if self.ids is None:
            kinds = {_kind_in(file, schema, layout) for file, schema in schemas.items()}
            layout = layout._replace(id_kind="int" if kinds == {"int"} else "string")
        return layout


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
            if rows >= ROWS_AT_ONCE or number == len(sizes) - 1:
                parts.append((start, number + 1, first_row))
                start, first_row, rows = number + 1, first_row + rows, 0
        return parts or [(0, 0, 0)]

    def tables(self, piece: LogPiece, layout: Layout) -> Iterator[RawRows]:
        """See `Reader.tables`."""
        names, first = layout.stored_names, piece.first_row
        with Folder(piece.file.url).open() as stream:
            file = pq.ParquetFile(stream)
            groups = list(range(piece.start, piece.stop or 0))
            for batch in file.iter_batches(ROWS_AT_ONCE, groups, columns=names, use_threads=False):
                table = pa.Table.from_batches([batch])
                table = pa.table({name: field_of(table, name) for name in names})
                yield typed_rows(table, np.arange(first, first + len(table)))
                first += len(table)


def _schema_of(file: LogFile) -> pa.Schema:
    with _read_as_parquet(file), Folder(file.url).open() as stream:
        return pq.read_schema(stream)


@contextmanager
def _read_as_parquet(file: LogFile) -> Iterator[None]:
    """Turn errors of the content, which Arrow raises as those of a store, into faults of a file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the store
        raise DataError(
            f"{file.url}: is not a complete Parquet file ({excerpt(str(error), 200)}); check "
            "data.source, or fetch it again"
        ) from error


def _kind_in(file: LogFile, schema: pa.Schema, layout: Layout) -> IdKind:
    """Return the kind of the ids in a file; looks at values where the type leaves it open."""
    for name in (layout.columns.user, layout.columns.item):
        kind = pa.string() if name in layout.from_path else type_of(schema, name)
        if pa.types.is_uint64(kind) or pa.types.is_floating(kind):
            with _read_as_parquet(file), Folder(file.url).open() as stream:
                some = next(pq.ParquetFile(stream).iter_batches(_SAMPLE_ROWS, columns=[name]), None)
            is_int = some is None or kind_of(field_of(pa.table(some), name)) == "int"
            is_int &= not pa.types.is_uint64(kind) or _fits_int64(file, name)
        else:
            is_int = pa.types.is_integer(kind)
        if not is_int:
            return "string"
    return "int"


def _fits_int64(file: LogFile, name: str) -> bool:
    """Return whether statistics show nothing beyond int64."""
    with _read_as_parquet(file), Folder(file.url).open() as stream:
        metadata = pq.read_metadata(stream)
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = (group.column(n) for n in range(group.num_columns))
        column = next(c for c in columns if c.path_in_schema == name)
        statistics = column.statistics
        if statistics is not None and statistics.has_min_max and statistics.max >= 2**63:
            return False
    return True
