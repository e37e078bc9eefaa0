"""Delta Lake tables, read at one version; their log is read by the library `deltalake`."""

import hashlib
import json
import urllib.parse
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, NonNegativeInt

from distrib.config import Config
from distrib.data.logs.columns import Columns, IdKind, TimeFormat, TimeUnit, Where
from distrib.data.logs.formats.parquet import ROWS_AT_ONCE, ParquetReader
from distrib.data.logs.layout import Layout, LogPiece, Part, RawRows
from distrib.data.logs.nested import field_of, leaf_names
from distrib.data.logs.text import LogFile
from distrib.data.logs.versioned import explained, layout_of, library, raw_rows
from distrib.data.schema import Origin
from distrib.storage import Folder

OPTIONS = {"allow_http": "true"}
"""Of the library's store; a store of one's own may answer without TLS."""

_PHYSICAL = "delta.columnMapping.physicalName"


class DeltaSource(Config):
    """A Delta Lake table; needs ``pip install 'distrib[delta]'``."""

    format: Literal["delta"] = "delta"

    path: str
    """Path or URL of the table's folder."""

    columns: Columns
    """Mapping of columns; a dotted name such as ``author.id`` reaches into structs."""

    version: NonNegativeInt | None = None
    """Version to read; the latest by default."""

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
        found = _snapshot(self.path, self.version)
        reader = DeltaReader(self.path, found.version)
        return layout_of(self, list(found.files), reader, found.schema)


class DeltaReader(NamedTuple):
    """A `Reader` of a version; a piece is a run of row groups of one of its files."""

    path: str
    version: int
    name: str = "a file of a Delta Lake table"

    def parts(self, file: LogFile) -> list[Part]:
        """See `ParquetReader.parts`."""
        return ParquetReader().parts(file)

    def tables(self, piece: LogPiece, layout: Layout) -> Iterator[RawRows]:
        """See `Reader.tables`; deleted rows are left out."""
        table = _cached(self.path, self.version)
        values, first = table.files[piece.file], piece.first_row
        is_kept_R = table.kept.get(piece.file.url)
        with Folder(piece.file.url).open() as stream:
            file = pq.ParquetFile(stream)
            present = leaf_names(file.schema_arrow)
            stored = {n: table.physical[n] for n in layout.names if table.physical[n] in present}
            groups = list(range(piece.start, piece.stop or 0))
            for batch in file.iter_batches(
                ROWS_AT_ONCE, groups, columns=[*stored.values()], use_threads=False
            ):
                rows = pa.Table.from_batches([batch])
                columns = {name: field_of(rows, physical) for name, physical in stored.items()}
                of_file = {n: _repeated(v, len(batch)) for n, v in values.items()}
                row_N = np.arange(first, first + len(batch))
                found = pa.table({**of_file, **columns})
                if is_kept_R is not None:
                    keep_N = _kept(is_kept_R, row_N)
                    found, row_N = found.filter(pa.array(keep_N)), row_N[keep_N]
                yield raw_rows(found, layout.names, row_N)
                first += len(batch)


class _Snapshot(NamedTuple):
    """A version of a table."""

    version: int
    schema: pa.Schema
    files: dict[LogFile, dict[str, Any]]
    """Its data files with the values of its partition columns."""

    physical: dict[str, str]
    """Names of columns in the files, by their name in the table."""

    kept: dict[str, npt.NDArray[np.bool_]]
    """Which rows are not deleted, by file; all rows of files that are not here."""


def _snapshot(path: str, version: int | None) -> _Snapshot:
    delta = library("deltalake", "delta")
    url = Folder(path).url
    with explained(path, (delta.exceptions.DeltaError, OSError, ValueError)):
        table = delta.DeltaTable(url, version=version, storage_options=OPTIONS)
        schema = pa.schema(table.schema().to_arrow())
        physical = dict(_physical_names(json.loads(table.schema().to_json())))
        added = pa.table(table.get_add_actions(flatten=True)).to_pylist()
        deleted = [pa.record_batch(batch) for batch in table.deletion_vectors()]
    kept = {
        _url(url, batch["filepath"][row].as_py()): _mask(batch["selection_vector"][row])
        for batch in deleted
        for row in range(len(batch))
    }
    logical = {stored: name for name, stored in physical.items()}
    files = {}
    for action in added:
        at = _url(url, urllib.parse.unquote(action["path"]))
        values = {
            logical.get(name, name): value
            for key, value in action.items()
            if (name := key.removeprefix("partition.")) != key
        }
        stamp = f"{action['size_bytes']} bytes, {_deleted(kept.get(at))}"
        files[LogFile(at, int(Origin.LOG), stamp=stamp)] = values
    files = {file: files[file] for file in sorted(files, key=lambda file: file.url)}
    return _Snapshot(table.version(), schema, files, physical, kept)


@lru_cache(maxsize=2)
def _cached(path: str, version: int) -> _Snapshot:
    """Read the log of a table once in each process."""
    return _snapshot(path, version)


def _url(table: str, path: str) -> str:
    """Return where a file is, whether it is named inside the table's folder or in full."""
    if "://" in path:
        return urllib.parse.unquote(path.removeprefix("file://"))
    return path if path.startswith("/") else f"{table}/{path}"


def _physical_names(kind: Any, at: str = "", below: str = "") -> Iterator[tuple[str, str]]:
    for field in kind["fields"]:
        name = at + field["name"]
        physical = below + field["metadata"].get(_PHYSICAL, field["name"])
        yield name, physical
        if isinstance(field["type"], dict) and field["type"]["type"] == "struct":
            yield from _physical_names(field["type"], f"{name}.", f"{physical}.")


def _repeated(value: Any, length: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, pa.string() if value is None else None), length)


def _mask(vector: pa.Scalar) -> npt.NDArray[np.bool_]:
    return np.array(vector.values.to_numpy(zero_copy_only=False), dtype=bool)


def _deleted(is_kept_R: npt.NDArray[np.bool_] | None) -> str:
    """Say which rows are deleted: other rows, as many, are another version."""
    if is_kept_R is None or is_kept_R.all():
        return "0 rows deleted"
    digest = hashlib.sha256(np.packbits(is_kept_R).tobytes()).hexdigest()[:12]
    return f"{int((~is_kept_R).sum())} rows deleted ({digest})"


def _kept(is_kept_R: npt.NDArray[np.bool_], row_N: Any) -> npt.NDArray[np.bool_]:
    """Return which rows are kept; a vector may end before the file does."""
    inside_N = row_N < len(is_kept_R)
    keep_N = np.ones(len(row_N), dtype=bool)
    keep_N[inside_N] = is_kept_R[row_N[inside_N]]
    return keep_N
