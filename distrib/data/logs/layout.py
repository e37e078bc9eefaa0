"""How a log is laid out, and what its format has to provide."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distrib.data.logs.columns import Columns, IdKind, TimeUnit
from distrib.data.logs.text import LogFile

WHOLE_STARS = (1.0, 2.0, 3.0, 4.0, 5.0)
HALF_STARS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)

IntArray = npt.NDArray[np.int64]

Places = Callable[[IntArray], tuple[IntArray, pa.Array]]
"""Maps rows to the number of their line, from 0, and to its text."""

Part = tuple[int, int | None, int]
"""Start, stop and first row of a `LogPiece`."""


class Dialect(NamedTuple):
    """How the fields of delimited text are written."""

    escape: str = ""
    """Character that takes its meaning from the next one."""

    null_values: tuple[str, ...] = ()
    """Fields that stand for no value."""

    decimal: str = "."
    comment: str = ""
    """Lines that begin with it are none."""

    has_blanks: bool = False
    """Whether fields are apart by runs of blanks."""

    has_line_breaks: bool = False
    """Whether a quoted field may hold line breaks."""


class RawRows(NamedTuple):
    """Rows as they stand in the text, not yet checked."""

    table: pa.Table
    places: Places
    malformed_M: IntArray
    """Lines that are no rows at all, from 0."""

    bounds: Callable[[IntArray], pa.Array]
    """Text of lines."""


def typed_rows(table: pa.Table, row_N: IntArray) -> RawRows:
    """Return rows of a file with typed columns; none is malformed, and a row's text is its values.

    Args:
        table: The columns that are read.
        row_N: Number of each row in its file, from 0.

    Returns:
        The rows.
    """

    def places(rows: IntArray) -> tuple[IntArray, pa.Array]:
        texts = [str(row) for row in table.take(pa.array(rows)).to_pylist()]
        return row_N[rows], pa.array(texts, pa.string())

    nothing = np.zeros(0, np.int64)
    return RawRows(table, places, nothing, lambda lines: pa.nulls(len(lines), pa.string()))


class LogPiece(NamedTuple):
    """A part of a log that is read on its own."""

    number: int
    file: LogFile
    start: int = 0
    """First byte of a text, first row group of a Parquet file, chunk of a drawn log."""

    stop: int | None = None
    first_row: int = 0
    """Rows of the file before this piece, in Parquet."""

    @property
    def has_line_numbers(self) -> bool:
        """Whether lines are counted from the start of the file."""
        return self.start == 0 or self.first_row > 0


class Layout(NamedTuple):
    """How to read the files of a log."""

    files: tuple[LogFile, ...]
    reader: "Reader | None"
    """None for a log that is generated."""

    columns: Columns
    id_kind: IdKind
    levels: tuple[float, ...] | None = None
    """Levels that the format is known to have."""

    separator: str = ","
    header: tuple[str, ...] | None = None
    """Names of the fields of the first file."""

    has_header: bool = False
    """Whether each file has a header line; columns may stand in another order in each."""

    is_typed: bool = False
    """Whether the names in the header carry a type, after a colon."""

    is_quoted: bool = True
    dialect: Dialect = Dialect()
    from_path: tuple[str, ...] = ()
    """Columns that stand in the path of each file."""

    time_unit: TimeUnit = "s"
    time_format: str | None = None
    """How dates are written, in strptime's letters; overrides the unit."""

    where: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Columns and their values in the rows that count."""

    json_types: tuple[str, ...] = ()
    """Arrow types of the columns in the first JSON line."""

    leading_columns: int = 0
    """Columns of a matrix that hold no ratings."""

    is_versioned: bool = False
    """Whether files never change, and those of an earlier version may be no part of the log now."""

    absent: str = ""
    """What stands for no item in a sequence, or for no rating in a matrix."""

    @property
    def names(self) -> list[str]:
        """All columns that are read."""
        return list(dict.fromkeys([*self.columns.names(), *(name for name, _ in self.where)]))

    @property
    def stored_names(self) -> list[str]:
        """Columns that are read from the files themselves."""
        return [name for name in self.names if name not in self.from_path]

    @property
    def id_type(self) -> pa.DataType:
        """Arrow type of the ids."""
        return pa.int64() if self.id_kind == "int" else pa.string()

    @property
    def has_time(self) -> bool:
        """Whether rows carry a time, rather than stand in the order of the log."""
        return self.columns.time is not None


class Reader(Protocol):
    """What reads the files of a format."""

    @property
    def name(self) -> str:
        """Name of the format in messages."""

    def parts(self, file: LogFile) -> list[Part]:
        """Cut a file into at least one part; parts are read in parallel.

        Args:
            file: Of the log.

        Returns:
            The parts, in the order of the file.

        Raises:
            DataError: The file cannot be read.
        """

    def tables(self, piece: LogPiece, layout: Layout) -> Iterator[RawRows]:
        """Return the rows of a piece as they stand in the file.

        Args:
            piece: One of the parts.
            layout: Of the log.

        Returns:
            Columns by ``layout.stored_names``; lines count from the start of the file where
            the piece starts there.

        Raises:
            ArrowException: The file is not of this format.
            DataError: The file is damaged.
        """
