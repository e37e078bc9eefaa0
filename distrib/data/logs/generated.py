"""Generated logs; each piece can be generated on its own."""

from functools import lru_cache

import pyarrow as pa

from distrib.data.logs.columns import Columns
from distrib.data.logs.config import ExpandedLog, SyntheticLog
from distrib.data.logs.kronecker import Expansion, expansion_of
from distrib.data.logs.layout import Layout, LogPiece
from distrib.data.logs.rating_scale import Scale
from distrib.data.logs.readers import CheckedRows, log_pieces, read_log
from distrib.data.logs.synthetic import SyntheticWorld
from distrib.data.logs.text import LogFile
from distrib.data.logs.validate import checked
from distrib.data.schema import QUARANTINE, Origin
from distrib.errors import DataError

_COLUMNS = Columns(user="user", item="item", rating="rating", time="time")

DrawnSource = SyntheticLog | ExpandedLog


def drawn_layout(source: DrawnSource) -> Layout:
    """Return the layout of a generated log; its files are those of the log to expand.

    Args:
        source: The ``data.source`` settings.

    Returns:
        The layout.

    Raises:
        DataError: The log to expand cannot be read.
    """
    if isinstance(source, SyntheticLog):
        return Layout((), None, _COLUMNS, "int", source.levels)
    base = source.base.inspect()
    absent = {name: None for name in ("rating", "time") if getattr(base.columns, name) is None}
    columns = _COLUMNS.model_copy(update=absent)
    return Layout(base.files, None, columns, "int", base.levels)


def drawn_pieces(source: DrawnSource) -> list[LogPiece]:
    """Return the pieces of a generated log."""
    nowhere = LogFile("", int(Origin.LOG))
    if isinstance(source, SyntheticLog):
        count = SyntheticWorld(source).num_chunks
    else:
        count = source.user_copies
    return [LogPiece(number, nowhere, number) for number in range(count)]


def draw(piece: LogPiece, source: DrawnSource, layout: Layout, scale: Scale) -> CheckedRows:
    """Generate a piece, deterministically.

    Args:
        piece: One of `drawn_pieces`.
        source: The ``data.source`` settings.
        layout: `drawn_layout`.
        scale: The rating scale.

    Returns:
        Its interactions; the quarantine is always empty.
    """
    if isinstance(source, SyntheticLog):
        drawn = SyntheticWorld(source).draw(piece.start)
    else:
        drawn = _expansion(source, scale).draw(piece.start)
    raw = pa.table(dict(zip(("user", "item", "rating", "time"), drawn, strict=True)))
    found = checked(raw, layout, scale, raw["time"].to_numpy(), int(Origin.LOG))
    return CheckedRows(found.kept, QUARANTINE.empty_table())


@lru_cache(maxsize=1)
def _expansion(source: ExpandedLog, scale: Scale) -> Expansion:
    """Read the log to expand, once per process."""
    layout = source.base.inspect()
    tables = [
        reading.interactions
        for piece in log_pieces(layout)
        for reading in read_log(piece, layout, scale)
    ]
    table = pa.concat_tables(tables)
    kept = table.filter(pa.compute.equal(table["status"], 0))
    if not len(kept):
        raise DataError(f"{source.base.path}: no valid interactions to expand")
    return expansion_of(kept, source)
