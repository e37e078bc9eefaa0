"""Table formats that lists can be committed to: the union, and what each has to provide."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

from pydantic import Field, TypeAdapter

from distrib.scoring.table_formats.delta import DeltaTable
from distrib.scoring.table_formats.iceberg import IcebergTable
from distrib.storage import Folder

__all__ = ["TableConfig", "TableFormat", "table_of"]

TableConfig = Annotated[DeltaTable | IcebergTable, Field(discriminator="format")]

_ADAPTER: TypeAdapter[DeltaTable | IcebergTable] = TypeAdapter(TableConfig)


class TableFormat(Protocol):
    """A table whose versions are commits; its data files are in the output folder."""

    def require_ours(self, folder: Folder) -> None:
        """Refuse a table that was not made by `commit`, or that cannot be committed to.

        Args:
            folder: Of the data files.

        Raises:
            ConfigError: The library is not installed.
            DataError: None of the table's commits is one of ours, or the catalog, the namespace
                or the table cannot be read.
        """

    def live_files(self, folder: Folder) -> set[str]:
        """Return the files of the table's current version, as named inside the folder."""

    def last_commit(self, folder: Folder) -> Mapping[str, str]:
        """Return what `commit` noted last, if it did.

        Args:
            folder: Of the data files.

        Returns:
            The notes, in the table's history; empty if none of its commits is one of ours.

        Raises:
            ConfigError: The library is not installed.
            DataError: The table cannot be read.
        """

    def commit(self, folder: Folder, names: Sequence[str], notes: Mapping[str, str]) -> None:
        """Replace all rows of the table by those of some files, in one commit.

        The table is made if there is none. Files of earlier versions stay where they are.

        Args:
            folder: Of the files.
            names: Of the files.
            notes: Text by name, kept in the table's history; names begin with ``distrib.``.

        Raises:
            DataError: The table was changed meanwhile, or the store failed; nothing is committed.
        """


def table_of(recipe: Mapping[str, Any]) -> TableFormat | None:
    """Return the table that lists of a recipe are committed to; None for plain Parquet."""
    found = recipe.get("table")
    return None if found is None else _ADAPTER.validate_python(found)
