"""What tables with versions have in common: files that never change, rows that may be deleted."""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import pyarrow as pa

from distrib.data.logs.columns import Columns, IdKind, TimeFormat, TimeUnit, Where, wanted_values
from distrib.data.logs.files import require_columns
from distrib.data.logs.layout import IntArray, Layout, LogPiece, RawRows, Reader, typed_rows
from distrib.data.logs.nested import field_of, leaf_names, type_of
from distrib.data.logs.text import LogFile
from distrib.data.schema import Origin
from distrib.errors import ConfigError, DataError, excerpt
from distrib.ids import kind_of


class VersionedSource(Protocol):
    """The settings that such tables have in common."""

    @property
    def path(self) -> str:
        """The table."""

    @property
    def columns(self) -> Columns:
        """Mapping of columns."""

    @property
    def where(self) -> Where:
        """Values by column."""

    @property
    def ids(self) -> IdKind | None:
        """Kind of the ids."""

    @property
    def time_unit(self) -> TimeUnit:
        """Unit of a numeric time."""

    @property
    def time_format(self) -> TimeFormat | None:
        """How dates in text are written."""


def layout_of(
    source: VersionedSource, files: Sequence[LogFile], reader: Reader, schema: pa.Schema
) -> Layout:
    """Return how to read a table at a version.

    Args:
        source: Its settings.
        files: Of that version.
        reader: Reads them.
        schema: Of that version.

    Returns:
        The layout.

    Raises:
        DataError: The table is empty, or lacks a column.
    """
    if not files:
        raise DataError(f"{source.path}: the table is empty; nothing to prepare")
    layout = Layout(
        tuple(files), reader, source.columns, source.ids or "string", None,
        time_unit=source.time_unit, time_format=source.time_format,
        where=wanted_values(source.where), is_versioned=True,
    )  # fmt: skip
    require_columns(layout.names, leaf_names(schema), LogFile(source.path, int(Origin.LOG)))
    if source.ids is None:
        layout = layout._replace(id_kind=_id_kind(layout, schema))
    return layout


def raw_rows(table: pa.Table, names: Sequence[str], row_N: IntArray) -> RawRows:
    """Return rows of a table as they stand.

    Args:
        table: With the columns.
        names: Of the columns that are read; dots reach into structs.
        row_N: Number of each row in its file, from 0.

    Returns:
        The rows; a column that the file does not have is null.
    """
    present = leaf_names(table.schema)
    nothing = pa.nulls(len(table))
    found = pa.table({n: field_of(table, n) if n in present else nothing for n in names})
    return typed_rows(found, row_N)


@contextmanager
def explained(
    path: str, errors: tuple[type[Exception], ...], setting: str = "data.source"
) -> Iterator[None]:
    """Turn the errors of a library into one of ours."""
    try:
        yield
    except DataError:
        raise
    except errors as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{path}: cannot be used as a table ({excerpt(first, 300)}); check {setting} and the "
            "credentials, then start again"
        ) from error


def library(name: str, extra: str) -> Any:
    """Import a library, or say how to install it.

    Args:
        name: Of the module.
        extra: Of the package that installs it.

    Returns:
        The module.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ConfigError(
            f"{package} is not installed, which such tables need; pip install 'distrib[{extra}]'"
        ) from error


def _id_kind(layout: Layout, schema: pa.Schema) -> IdKind:
    """Return the kind of the ids; looks at the first rows where the types leave it open."""
    columns = (layout.columns.user, layout.columns.item)
    kinds = [type_of(schema, name) for name in columns]
    if all(pa.types.is_integer(kind) and not pa.types.is_uint64(kind) for kind in kinds):
        return "int"
    if not all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds):
        return "string"
    assert layout.reader is not None
    first = layout.files[0]
    rows = next(layout.reader.tables(LogPiece(0, first, *layout.reader.parts(first)[0]), layout))
    found = {kind_of(rows.table[name]) for name in columns}
    return "int" if found == {"int"} else "string"
