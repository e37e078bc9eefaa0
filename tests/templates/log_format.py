"""Template of a log format: copy it into `distrib/data/logs/formats/`, then add it to the union."""

import re
from typing import Literal

import numpy as np
import pyarrow as pa

from distrib.config import Config
from distrib.data.logs.columns import Columns
from distrib.data.logs.files import log_files
from distrib.data.logs.layout import Layout, RawRows
from distrib.data.logs.text import first_lines
from distrib.data.logs.text_reader import TextReader, filled_lines
from distrib.errors import DataError

_LINE = r"^(?P<user>\d+) rated (?P<item>\d+) with (?P<rating>\d+)$"
_COLUMNS = Columns(user="user", item="item", rating="rating")


class SentencesSource(Config):
    """One sentence per line: ``7 rated 42 with 5``."""

    format: Literal["sentences"] = "sentences"

    path: str
    """Path or URL of a file or folder."""

    def inspect(self) -> Layout:
        """Return how to read the log; raise `DataError` where its first line is not a sentence."""
        files = log_files(self.path)
        first = first_lines(files[0], 1)[0]
        if not re.match(_LINE, first):
            raise DataError(
                f"{files[0].label}: {first[:80]!r} is not a rating; see SentencesSource"
            )
        return Layout(files, SENTENCES, _COLUMNS, "int", (1.0, 2.0, 3.0, 4.0, 5.0))


def _parse(text: bytes, layout: Layout) -> RawRows:
    filled, text_of = filled_lines(text)
    found = [re.match(_LINE, line) for line in text_of(filled).to_pylist()]
    is_rating = np.array([match is not None for match in found], dtype=bool)
    line_N = filled[is_rating]
    values = [match.groupdict() for match in found if match]
    table = pa.table({n: pa.array([v[n] for v in values]) for n in layout.columns.names()})
    return RawRows(
        table, lambda rows: (line_N[rows], text_of(line_N[rows])), filled[~is_rating], text_of
    )


SENTENCES = TextReader("sentences", _parse)
