"""The files of the Netflix Prize."""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distrib.config import Config
from distrib.data.arrow import to_numpy
from distrib.data.logs.columns import Columns
from distrib.data.logs.files import Path, log_files
from distrib.data.logs.layout import WHOLE_STARS, IntArray, Layout, LogPiece, Part, RawRows
from distrib.data.logs.text import LogFile, chunks, count_lines, first_lines
from distrib.data.logs.text_reader import filled_lines
from distrib.errors import DataError, excerpt

_COLUMNS = Columns(user="customer", item="movie", rating="rating", time="date")
_MOVIE = r"^\s*\d+:\s*$"
_FIELDS = 3


class NetflixSource(Config):
    """The Netflix Prize data: a movie on a line of its own (``1:``), then its ratings.

    Reads ``combined_data_*.txt`` and ``mv_*.txt``.
    """

    format: Literal["netflix"] = "netflix"

    path: Path
    """Path or URL of a file, folder or pattern, or a list of them."""

    def inspect(self) -> Layout:
        """Return how to read the log; raise `DataError` if it does not begin with a movie."""
        files = log_files(self.path)
        first = first_lines(files[0], 1)[0]
        if not re.match(_MOVIE, first):
            raise DataError(
                f"{files[0].label}: first line {excerpt(first)!r} is not a movie such as '1:'; "
                "check data.source"
            )
        return Layout(
            files, NetflixReader(), _COLUMNS, "int", WHOLE_STARS, time_unit="iso8601"
        )  # fmt: skip


class NetflixReader(NamedTuple):
    """A `Reader` that remembers the movie whose block it is in, so that a file is one piece."""

    name: str = "netflix"

    def parts(self, file: LogFile) -> list[Part]:
        """See `Reader.parts`."""
        del file
        return [(0, None, 0)]

    def tables(self, piece: LogPiece, layout: Layout) -> Iterator[RawRows]:
        """See `Reader.tables`."""
        del layout
        movie, first = "", 0
        for text in chunks(piece.file):
            raw, movie = _parsed(text, movie, first)
            yield raw
            first += count_lines(text)


def _parsed(text: bytes, movie: str, first: int) -> tuple[RawRows, str]:
    """Parse lines inside the block of a movie; return the rows and the movie of the last line."""
    filled, taken = filled_lines(text)
    lines = taken(filled)
    is_movie_N = to_numpy(pc.match_substring_regex(lines, _MOVIE))
    named = pc.replace_substring_regex(lines.filter(pa.array(is_movie_N)), r"[\s:]", "")
    movies = pa.concat_arrays([pa.array([movie or None], pa.string()), named.cast(pa.string())])
    words = pc.split_pattern(lines, ",")
    is_row_N = ~is_movie_N & (to_numpy(pc.list_value_length(words)) == _FIELDS)
    rows, block_N = words.filter(pa.array(is_row_N)), np.cumsum(is_movie_N)[is_row_N]
    customer, rating, date = (pc.list_element(rows, place) for place in range(_FIELDS))
    columns = (customer, movies.take(pa.array(block_N)), rating, date)
    line_N, malformed = filled[is_row_N], filled[~is_movie_N & ~is_row_N]
    texts = taken(malformed)

    def places(wanted: IntArray) -> tuple[IntArray, pa.Array]:
        return line_N[wanted] + first, taken(line_N[wanted])

    table = pa.table(dict(zip(_COLUMNS.names(), columns, strict=True)))
    return RawRows(table, places, malformed + first, lambda _: texts), movies[-1].as_py() or ""
