"""One sequence of items per line."""

from collections.abc import Callable
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from distrib.config import Config
from distrib.data.arrow import to_numpy, whole
from distrib.data.logs.columns import Columns, IdKind
from distrib.data.logs.files import Path, log_files
from distrib.data.logs.layout import IntArray, Layout, RawRows
from distrib.data.logs.text import first_lines
from distrib.data.logs.text_reader import TextReader, filled_lines


class SessionsSource(Config):
    """One sequence of items per line; the line, counted from 0, is the user.

    With ``user_first``, adjacency lists: a user, then the user's items.
    """

    format: Literal["sessions"] = "sessions"

    path: Path
    """Path or URL of a file or folder; in a folder, user ids are ``file:line``."""

    separator: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """Character between items."""

    padding: str = "0"
    """Padding entry, not an item."""

    user_first: bool = False
    """Whether the first entry of a line is the user, as in the files of NGCF and LightGCN."""

    ids: IdKind = "int"
    """Kind of the item ids; ``string`` makes user ids strings too."""

    def inspect(self) -> Layout:
        """Return how to read the log; raise `DataError` if it is absent or empty."""
        files = log_files(self.path)
        first_lines(files[0], 1)
        is_int = self.ids == "int" and (len(files) == 1 or self.user_first)
        columns = Columns(user="line", item="entry")
        return Layout(
            files, LISTS if self.user_first else SESSIONS, columns, "int" if is_int else "string",
            None, self.separator,
            absent=self.padding, is_quoted=False,
        )  # fmt: skip


def _parse(text: bytes, layout: Layout) -> RawRows:
    """Parse one sequence of items per line."""
    filled, taken = filled_lines(text)
    entries = pc.split_pattern(taken(filled), layout.separator)
    return _rows(filled, taken, entries, layout)


def _parse_lists(text: bytes, layout: Layout) -> RawRows:
    """Parse a user and the user's items per line."""
    filled, taken = filled_lines(text)
    lines = pc.utf8_trim_whitespace(taken(filled))
    words = pc.split_pattern(lines, layout.separator)
    users = pc.list_element(words, 0)
    return _rows(filled, taken, pc.list_slice(words, 1), layout, users)


def _rows(
    filled: IntArray,
    taken: Callable[[IntArray], pa.Array],
    entries: pa.Array,
    layout: Layout,
    users: pa.Array | None = None,
) -> RawRows:
    parent_N = to_numpy(pc.list_parent_indices(entries))
    item_N = pc.utf8_trim_whitespace(whole(pc.list_flatten(entries)))
    is_item = pc.not_equal(item_N, layout.absent)
    parent_N, item_N = parent_N[to_numpy(is_item)], item_N.filter(is_item)
    line_N = filled[parent_N]
    user_N = pa.array(line_N) if users is None else users.take(pa.array(parent_N))
    table = pa.table({"line": user_N, "entry": item_N})
    return RawRows(table, lambda rows: (line_N[rows], taken(line_N[rows])), filled[:0], taken)


LISTS = TextReader("adjacency lists", _parse_lists)

SESSIONS = TextReader("sessions", _parse, is_user_per_line=True)
