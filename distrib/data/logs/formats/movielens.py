"""MovieLens releases."""

from typing import Literal

from distrib.config import Config
from distrib.data.logs.columns import Columns
from distrib.data.logs.files import Path, log_files, sample_rows
from distrib.data.logs.formats.delimited import DELIMITED
from distrib.data.logs.layout import HALF_STARS, WHOLE_STARS, Layout
from distrib.data.logs.text import first_lines
from distrib.errors import DataError

_HEADER = ("userId", "movieId", "rating", "timestamp")
_FILES = ("u.data", "ratings.dat", "ratings.csv")
_COLUMNS = Columns(user="userId", item="movieId", rating="rating", time="timestamp")


class MovieLensSource(Config):
    """A MovieLens release: ``u.data``, ``ratings.dat`` or ``ratings.csv``, or the ``.zip``."""

    format: Literal["movielens"] = "movielens"

    path: Path
    """Path or URL of the file; the first line determines the layout."""

    def inspect(self) -> Layout:
        """Return how to read the log; raise `DataError` where its first lines do not show it."""
        files = log_files(self.path, _FILES)
        first = first_lines(files[0], 1)[0]
        if tuple(name.strip('"') for name in first.split(",")) == _HEADER:
            return Layout(
                files, DELIMITED, _COLUMNS, "int", HALF_STARS, header=_HEADER, has_header=True
            )
        for separator in ("::", "\t"):
            fields = first.split(separator)
            if len(fields) == len(_HEADER):
                levels = (
                    HALF_STARS
                    if any("." in f[2] for f in sample_rows(files[0], separator))
                    else None
                )
                return Layout(
                    files,
                    DELIMITED,
                    _COLUMNS,
                    "int",
                    levels or WHOLE_STARS,
                    separator,
                    _HEADER,
                    is_quoted=False,
                )
        raise DataError(
            f"{files[0].label}: first line {first[:80]!r} is none of the MovieLens layouts "
            '(u.data, ratings.dat, ratings.csv); use format = "csv" with a column mapping'
        )
