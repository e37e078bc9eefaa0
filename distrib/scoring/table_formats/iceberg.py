"""Iceberg: a table of a catalog whose data files are in the output folder."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow.parquet as pq

from distrib.config import Config
from distrib.data.logs.formats.iceberg import errors
from distrib.data.logs.versioned import explained, library
from distrib.errors import DataError
from distrib.storage import Folder


class IcebergTable(Config):
    """An Iceberg table; needs ``pip install 'distrib[iceberg]'``."""

    format: Literal["iceberg"] = "iceberg"

    catalog: str
    """Its name in pyiceberg's configuration; see the format ``iceberg`` of logs."""

    name: str
    """Of the table, such as ``shop.lists``; it is made if there is none."""

    def require_ours(self, folder: Folder) -> None:
        """See `TableFormat.require_ours`."""
        with explained(self.name, errors(), "score.table"):
            namespace = self.name.rpartition(".")[0]
            if not namespace or not self._catalog().namespace_exists(namespace):
                raise DataError(
                    f"{self.name}: catalog {self.catalog!r} has no namespace {namespace!r}; make "
                    "it, or correct score.table"
                )
        table = self._opened()
        has_rows = table is not None and table.current_snapshot() is not None
        if has_rows and not self.last_commit(folder):
            raise DataError(
                f"{self.name}: is a table that scoring did not write; set score.table.name to a "
                "new one"
            )

    def live_files(self, folder: Folder) -> set[str]:
        """See `TableFormat.live_files`."""
        del folder
        table = self._opened()
        tasks = () if table is None else table.scan().plan_files()
        return {str(task.file.file_path).rpartition("/")[2] for task in tasks}

    def last_commit(self, folder: Folder) -> Mapping[str, str]:
        """See `TableFormat.last_commit`."""
        del folder
        table = self._opened()
        if table is None:
            return {}
        snapshots = {snapshot.snapshot_id: snapshot for snapshot in table.metadata.snapshots}
        at = table.metadata.current_snapshot_id
        while at in snapshots:  # a rolled back table has others, too
            noted = snapshots[at].summary.additional_properties
            notes = {n: v for n, v in noted.items() if n.startswith("distrib.")}
            if notes:
                return notes
            at = snapshots[at].parent_snapshot_id
        return {}

    def commit(self, folder: Folder, names: Sequence[str], notes: Mapping[str, str]) -> None:
        """See `TableFormat.commit`."""
        with folder.open(names[0]) as stream:
            schema = pq.read_schema(stream).remove_metadata()
        everything = library("pyiceberg.expressions", "iceberg").AlwaysTrue()
        with explained(self.name, errors(), "score.table"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Delete operation did not match")
            table = self._catalog().create_table_if_not_exists(self.name, schema=schema)
            with table.transaction() as transaction:
                with transaction.update_schema() as update:
                    update.union_by_name(schema)
                transaction.delete(everything, snapshot_properties=dict(notes))
                transaction.add_files(
                    [str(folder / name) for name in names],
                    snapshot_properties=dict(notes),
                    check_duplicate_files=False,
                )

    def _opened(self) -> Any:
        with explained(self.name, errors(), "score.table"):
            catalog = self._catalog()
            return catalog.load_table(self.name) if catalog.table_exists(self.name) else None

    def _catalog(self) -> Any:
        return library("pyiceberg.catalog", "iceberg").load_catalog(self.catalog)
