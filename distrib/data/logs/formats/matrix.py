"""A dense text matrix of ratings."""

from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, NonNegativeInt

from distrib.config import Config
from distrib.data.arrow import to_numpy, whole
from distrib.data.logs.columns import Columns
from distrib.data.logs.files import log_files
from distrib.data.logs.layout import Dialect, Layout, RawRows
from distrib.data.logs.text import first_lines
from distrib.data.logs.text_reader import TextReader, filled_lines
from distrib.errors import DataError


class MatrixSource(Config):
    """A dense text matrix of ratings: rows are users, columns items, both counted from 0."""

    format: Literal["matrix"] = "matrix"

    path: str
    """Path or URL of the file."""

    unobserved: float = 0.0
    """Value of unrated entries."""

    separator: Annotated[str, Field(min_length=1)] = "whitespace"
    """Characters between entries; ``whitespace`` for any run of blanks and tabs."""

    leading_columns: NonNegativeInt = 0
    """Columns to leave out at the start of each row, such as the number of ratings in Jester."""

    def inspect(self) -> Layout:
        """Return how to read the log; raise `DataError` if it is absent, empty or several files."""
        files = log_files(self.path)
        has_blanks = self.separator == "whitespace"
        first_lines(files[0], 1)
        columns = Columns(user="row", item="column", rating="value")
        if len(files) > 1:
            raise DataError(f"{self.path}: holds {len(files)} files; name the one matrix")
        return Layout(
            files, MATRIX, columns, "int", None, self.separator, absent=repr(self.unobserved),
            dialect=Dialect(has_blanks=has_blanks), leading_columns=self.leading_columns,
        )  # fmt: skip


def _parse(text: bytes, layout: Layout) -> RawRows:
    """Parse a dense matrix of ratings, one user per line."""
    filled, taken = filled_lines(text)
    lines = pc.utf8_trim_whitespace(taken(filled))
    if layout.dialect.has_blanks:
        entries = pc.split_pattern_regex(lines, r"\s+")
    else:
        entries = pc.split_pattern(lines, layout.separator)
    if layout.leading_columns:
        entries = pc.list_slice(entries, layout.leading_columns)
    length = to_numpy(pc.list_value_length(entries))
    width = int(np.bincount(length).argmax()) if len(length) else 0  # the commonest
    is_whole = length == width
    malformed, filled = filled[~is_whole], filled[is_whole]
    value_N = whole(pc.list_flatten(entries.filter(pa.array(is_whole))))
    entry_N = np.arange(len(value_N))
    number_N = to_numpy(value_N.dictionary_encode().indices)
    absent = [
        code
        for code, word in enumerate(value_N.dictionary_encode().dictionary.to_pylist())
        if _is_number(word, float(layout.absent))
    ]
    entry_N = entry_N[~np.isin(number_N, absent)]
    line_N = filled[entry_N // max(width, 1)]
    table = pa.table(
        {"row": line_N, "column": entry_N % max(width, 1), "value": value_N.take(pa.array(entry_N))}
    )
    return RawRows(table, lambda rows: (line_N[rows], taken(line_N[rows])), malformed, taken)


def _is_number(word: str, number: float) -> bool:
    try:
        return float(word) == number
    except ValueError:
        return False


MATRIX = TextReader("matrix", _parse, is_user_per_line=True)
