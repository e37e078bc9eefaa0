"""One sequence of items per line."""

from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from distrib.config import Config
from distrib.data.arrow import to_numpy, whole
from distrib.data.logs.columns import Columns, IdKind
from distrib.data.logs.files import log_files
from distrib.data.logs.layout import Layout, RawRows
from distrib.data.logs.text import first_lines
from distrib.data.logs.text_reader import TextReader, filled_lines


class SessionsSource(Config):
    """One sequence of items per line; the line, counted from 0, is the user."""

    format: Literal["sessions"] = "sessions"

    path: str
    """Path or URL of a file or folder; in a folder, user ids are ``file:line``."""

    separator: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """Character between items."""

    padding: str = "0"
    """Padding entry, not an item."""

    ids: IdKind = "int"
    """Kind of the item ids; ``string`` makes user ids strings too."""

    def inspect(self) -> Layout:
        """Return how to read the log; raise `DataError` if it is absent or empty."""
        files = log_files(self.path)
        first_lines(files[0], 1)
        ids: IdKind = "int" if self.ids == "int" and len(files) == 1 else "string"
        columns = Columns(user="line", item="entry")
        return Layout(
            files, SESSIONS, columns, ids, None, self.separator,
            absent=self.padding, is_quoted=False,
        )  # fmt: skip


def _parse(text: bytes, layout: Layout) -> RawRows:
    """Parse one sequence of items per line."""
    filled, taken = filled_lines(text)
    entries = pc.split_pattern(taken(filled), layout.separator)
    line_N = filled[to_numpy(pc.list_parent_indices(entries))]
    item_N = pc.utf8_trim_whitespace(whole(pc.list_flatten(entries)))
    is_item = pc.not_equal(item_N, layout.absent)
    line_N, item_N = line_N[to_numpy(is_item)], item_N.filter(is_item)
    table = pa.table({"line": line_N, "entry": item_N})
    return RawRows(table, lambda rows: (line_N[rows], taken(line_N[rows])), filled[:0], taken)


SESSIONS = TextReader("sessions", _parse, is_user_per_line=True)
