"""Iceberg tables, read at one snapshot by the library `pyiceberg`."""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field

from distrib.config import Config
from distrib.data.logs.columns import Columns, IdKind, TimeFormat, TimeUnit, Where
from distrib.data.logs.layout import Layout, LogPiece, Part, RawRows
from distrib.data.logs.text import LogFile
from distrib.data.logs.versioned import explained, layout_of, library, raw_rows
from distrib.data.schema import Origin
from distrib.errors import DataError
from distrib.storage import Folder

_METADATA = ".metadata.json"


class IcebergSource(Config):
    """An Iceberg table; needs ``pip install 'distrib[iceberg]'``."""

    format: Literal["iceberg"] = "iceberg"

    path: str
    """With ``catalog``, the name of the table (``shop.ratings``); otherwise path or URL of its
    folder, whose newest metadata are read, or of one metadata file."""

    catalog: str | None = None
    """Catalog of the table, by its name in pyiceberg's configuration: ``.pyiceberg.yaml`` or
    environment variables such as ``PYICEBERG_CATALOG__PROD__URI``, on all nodes."""

    columns: Columns
    """Mapping of columns; a dotted name such as ``author.id`` reaches into structs."""

    version: int | None = None
    """Id of the snapshot to read; the current one by default."""

    where: Where = Field(default_factory=dict)
    """Values by column; only rows with one of them count; see the format ``csv``."""

    ids: IdKind | None = None
    """Kind of the user and item ids; see the format ``parquet``."""

    time_unit: TimeUnit = "s"
    """Unit of a numeric time column, since 1970; ignored for timestamps and dates."""

    time_format: TimeFormat | None = None
    """How dates in a text column are written, if not as ISO 8601; see the format ``csv``."""

    def inspect(self) -> Layout:
        """Return how to read the table; raise `DataError` where that cannot be done."""
        found = _snapshot(self.path, self.catalog, self.version)
        reader = IcebergReader(found.path, self.catalog, found.version, found.schema.schema_id)
        arrow = library("pyiceberg.io.pyarrow", "iceberg").schema_to_pyarrow(found.schema)
        return layout_of(self, list(found.tasks), reader, arrow)


class IcebergReader(NamedTuple):
    """A `Reader` of a snapshot; a piece is one of its files, without its deleted rows."""

    path: str
    catalog: str | None
    version: int
    schema: int
    """Id; the current snapshot is read by the table's schema, others by their own."""

    name: str = "a file of an Iceberg table"

    def parts(self, file: LogFile) -> list[Part]:
        """Return one part, since deleted rows are known by file."""
        del file
        return [(0, None, 0)]

    def tables(self, piece: LogPiece, layout: Layout) -> Iterator[RawRows]:
        """See `Reader.tables`."""
        found, first = _cached(self.path, self.catalog, self.version, self.schema), 0
        with explained(self.path, errors()):
            for batch in found.batches(piece.file, layout.names):
                row_N = np.arange(first, first + len(batch))
                yield raw_rows(pa.Table.from_batches([batch]), layout.names, row_N)
                first += len(batch)


class _Snapshot(NamedTuple):
    """A snapshot of a table."""

    path: str
    """Of the metadata file, or the table's name in its catalog."""

    version: int
    schema: Any
    scan: Any
    tasks: dict[LogFile, Any]

    def batches(self, file: LogFile, names: list[str]) -> Iterator[pa.RecordBatch]:
        """Read a file; only the columns that hold one of the names."""
        arrow, scan = library("pyiceberg.io.pyarrow", "iceberg"), self.scan
        schema = self.schema.select(*sorted({name.partition(".")[0] for name in names}))
        reader = arrow.ArrowScan(scan.table_metadata, scan.io, schema, scan.row_filter)
        yield from reader.to_record_batches([self.tasks[file]])


def _snapshot(
    path: str, catalog: str | None, version: int | None, schema: int | None = None
) -> _Snapshot:
    tables = library("pyiceberg.table", "iceberg")
    with explained(path, errors()):
        if catalog is None:
            path = metadata_of(path)
            table = tables.StaticTable.from_metadata(path)
        else:
            catalogs = library("pyiceberg.catalog", "iceberg")
            table = catalogs.load_catalog(catalog).load_table(path)
        current = table.current_snapshot()
        if version is None and current is None:
            raise DataError(f"{path}: the table is empty; nothing to prepare")
        at = current.snapshot_id if version is None else version
        scan = table.scan(snapshot_id=at)
        found = table.schema() if version is None else scan.projection()
        if schema is not None:
            found = table.schemas()[schema]
        planned = sorted(scan.plan_files(), key=lambda task: str(task.file.file_path))
    return _Snapshot(path, at, found, scan, {_file_of(task): task for task in planned})


@lru_cache(maxsize=2)
def _cached(path: str, catalog: str | None, version: int, schema: int) -> _Snapshot:
    """Plan a snapshot once in each process."""
    return _snapshot(path, catalog, version, schema)


def _file_of(task: Any) -> LogFile:
    deletes = ", ".join(sorted(file.file_path.rpartition("/")[2] for file in task.delete_files))
    stamp = f"{task.file.file_size_in_bytes} bytes, rows deleted by [{deletes}]"
    return LogFile(str(task.file.file_path), int(Origin.LOG), stamp=stamp)


def metadata_of(path: str) -> str:
    """Find the newest metadata file of a table.

    Args:
        path: Of the table's folder, or of a metadata file.

    Returns:
        Its URL.

    Raises:
        DataError: There is none.
    """
    if path.endswith(_METADATA):
        return Folder(path).url
    folder = Folder(path) / "metadata"
    names = folder.files(_METADATA)
    if not names:
        raise DataError(f"{path}: no *{_METADATA} in its folder metadata; not an Iceberg table")
    return str(folder / max(names, key=_number))


def _number(name: str) -> tuple[int, str]:
    found = re.match(r"v?(\d+)", name)
    return int(found[1]) if found else -1, name


def errors() -> tuple[type[Exception], ...]:
    """Return what the library raises where a table, catalog or store fails."""
    module = vars(library("pyiceberg.exceptions", "iceberg"))
    own = [e for e in module.values() if isinstance(e, type) and issubclass(e, Exception)]
    return (*own, OSError, ValueError)
