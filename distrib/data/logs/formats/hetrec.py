"""HetRec 2011 tables."""

from typing import Literal

from distrib.config import Config
from distrib.data.logs.columns import Columns, TimeUnit
from distrib.data.logs.files import Path, log_files
from distrib.data.logs.formats.delimited import DELIMITED
from distrib.data.logs.layout import HALF_STARS, Layout
from distrib.data.logs.text import first_lines
from distrib.errors import DataError

_TABLES: dict[str, tuple[Columns, TimeUnit]] = {
    "artistID": (Columns(user="userID", item="artistID", rating="weight"), "s"),
    "timestamp": (
        Columns(user="userID", item="movieID", rating="rating", time="timestamp"),
        "ms",
    ),
    "movieID": (Columns(user="userID", item="movieID", rating="rating"), "s"),
}


class HetRecSource(Config):
    """A HetRec 2011 table: Last.fm ``user_artists.dat`` (counts), ``user_ratedmovies*.dat``."""

    format: Literal["hetrec"] = "hetrec"

    path: Path
    """Path or URL of the file; the header determines the layout."""

    def inspect(self) -> Layout:
        """Return how to read the log; raise `DataError` where its first lines do not show it."""
        files = log_files(self.path)
        header = tuple(first_lines(files[0], 1)[0].split("\t"))
        for mark, (columns, unit) in _TABLES.items():
            if mark in header and "userID" in header:
                levels = HALF_STARS if "rating" in header else None
                return Layout(
                    files, DELIMITED, columns, "int", levels, "\t", header,
                    has_header=True, is_quoted=False, time_unit=unit,
                )  # fmt: skip
        raise DataError(
            f"{files[0].label}: header {list(header)} is none of HetRec's tables of users and "
            'items; use format = "csv" with a column mapping'
        )
