"""Delta Lake: the output folder is the table."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow.parquet as pq

from distrib.config import Config
from distrib.data.logs.formats.delta import OPTIONS
from distrib.data.logs.versioned import explained, library
from distrib.errors import DataError
from distrib.storage import Folder


class DeltaTable(Config):
    """A Delta Lake table in the output folder; needs ``pip install 'distrib[delta]'``."""

    format: Literal["delta"] = "delta"

    def require_ours(self, folder: Folder) -> None:
        """See `TableFormat.require_ours`."""
        if self._opened(folder) is not None and not self.last_commit(folder):
            raise DataError(
                f"{folder}: is a Delta Lake table that scoring did not write; set score.output to "
                "a new folder"
            )

    def live_files(self, folder: Folder) -> set[str]:
        """See `TableFormat.live_files`."""
        table = self._opened(folder)
        return set() if table is None else {url.rpartition("/")[2] for url in table.file_uris()}

    def last_commit(self, folder: Folder) -> Mapping[str, str]:
        """See `TableFormat.last_commit`."""
        table = self._opened(folder)
        found = () if table is None else table.history()
        notes = ({n: v for n, v in one.items() if n.startswith("distrib.")} for one in found)
        return next((note for note in notes if note), {})

    def commit(self, folder: Folder, names: Sequence[str], notes: Mapping[str, str]) -> None:
        """See `TableFormat.commit`."""
        delta = library("deltalake", "delta")
        actions = library("deltalake.transaction", "delta")
        now_ms, added = round(time.time() * 1000), []
        for name in names:
            stats = json.dumps({"numRecords": _metadata(folder, name).num_rows})
            size = folder.size(name)
            added.append(actions.AddAction(name, size, {}, now_ms, data_change=True, stats=stats))
        kind = _metadata(folder, names[0]).schema.to_arrow_schema().remove_metadata()
        schema = delta.Schema.from_arrow(kind)
        table, properties = self._opened(folder), delta.CommitProperties(dict(notes))
        with explained(f"{folder}", (delta.exceptions.DeltaError, OSError), "score.output"):
            if table is None:
                actions.create_table_with_add_actions(
                    folder.url, schema, added, mode="error", partition_by=[],
                    storage_options=OPTIONS, commit_properties=properties,
                )  # fmt: skip
            else:
                table.create_write_transaction(
                    added, "overwrite", schema, partition_by=[], commit_properties=properties
                )

    def _opened(self, folder: Folder) -> Any:
        delta = library("deltalake", "delta")
        if not folder.exists("_delta_log"):
            return None
        with explained(f"{folder}", (delta.exceptions.DeltaError, OSError), "score.output"):
            return delta.DeltaTable(folder.url, storage_options=OPTIONS)


def _metadata(folder: Folder, name: str) -> pq.FileMetaData:
    with folder.open(name) as stream:
        return pq.read_metadata(stream)
