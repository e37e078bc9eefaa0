"""RecBole atomic files."""

from typing import Literal

from pydantic import Field

from distrib.config import Config
from distrib.data.logs.columns import Columns, IdKind
from distrib.data.logs.files import Path, log_files, require_columns
from distrib.data.logs.formats.delimited import DELIMITED
from distrib.data.logs.layout import Layout
from distrib.data.logs.text import first_lines
from distrib.errors import DataError

_USUAL = {"rating": "rating", "time": "timestamp"}


class RecBoleSource(Config):
    """RecBole atomic files ``*.inter``: tab-separated with a typed header."""

    format: Literal["recbole"] = "recbole"

    path: Path
    """Path or URL of a file or folder."""

    columns: Columns = Field(default=Columns(user="user_id", item="item_id"))
    """Mapping of fields, without their types. Unless set, ``rating`` and ``timestamp`` are used if
    present."""

    ids: IdKind = "string"
    """Kind of the user and item ids; a RecBole token is text."""

    def inspect(self) -> Layout:
        """Return how to read the log; raise `DataError` where its first lines do not show it."""
        files = tuple(f for f in log_files(self.path) if f.name.endswith(".inter"))
        if not files:
            raise DataError(f"{self.path}: no *.inter files; check data.source.path")
        header = tuple(field.partition(":")[0] for field in first_lines(files[0], 1)[0].split("\t"))
        columns = self.columns
        if columns == RecBoleSource.model_fields["columns"].default:
            usual = {use: name for use, name in _USUAL.items() if name in header}
            columns = Columns(**{**columns.model_dump(), **usual})
        require_columns(columns.names(), header, files[0])
        return Layout(
            files, DELIMITED, columns, self.ids, None, "\t", header,
            has_header=True, is_typed=True, is_quoted=False,
        )  # fmt: skip
