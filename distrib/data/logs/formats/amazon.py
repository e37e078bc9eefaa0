"""Amazon reviews."""

import re
from typing import Literal

from distrib.config import Config
from distrib.data.logs.columns import Columns, TimeUnit
from distrib.data.logs.files import SAMPLE_LINES, Path, log_files, require_columns, sample_rows
from distrib.data.logs.formats.delimited import DELIMITED
from distrib.data.logs.formats.jsonl import JSON_LINES, with_json_types
from distrib.data.logs.layout import WHOLE_STARS, Layout
from distrib.data.logs.text import LogFile, first_lines
from distrib.errors import DataError

_COLUMNS_2018 = Columns(user="reviewerID", item="asin", rating="overall", time="unixReviewTime")
_COLUMNS_2023 = Columns(user="user_id", item="parent_asin", rating="rating", time="timestamp")
_ITEM, _USER = r"[0-9A-Z]{10}", r"A[0-9A-Z]{9,}"
_NUM_COLUMNS = 4


class AmazonSource(Config):
    """Amazon reviews: ratings CSV or JSON lines of 2014, 2018 and 2023."""

    format: Literal["amazon"] = "amazon"

    path: Path
    """Path or URL of a file or folder; the first lines determine the layout."""

    order: Literal["auto", "user_first", "item_first"] = "auto"
    """Order of the two ids in a CSV without header; ``auto`` infers it from the ids."""

    def inspect(self) -> Layout:
        """Return how to read the log; raise `DataError` where its first lines do not show it."""
        files = log_files(self.path, unlike=frozenset({".parquet"}))
        lines = first_lines(files[0], SAMPLE_LINES)
        if lines[0].startswith("{"):
            columns = _COLUMNS_2018 if f'"{_COLUMNS_2018.user}"' in lines[0] else _COLUMNS_2023
            unit: TimeUnit = "s" if columns is _COLUMNS_2018 else "ms"
            layout = Layout(files, JSON_LINES, columns, "string", WHOLE_STARS, time_unit=unit)
            return with_json_types(layout)
        if lines[0].split(",")[0] == _COLUMNS_2023.user:
            header = tuple(lines[0].split(","))
            require_columns(_COLUMNS_2023.names(), header, files[0])
            unit, columns = "ms", _COLUMNS_2023
            has_header = True
        else:
            order = self.order if self.order != "auto" else _order_of(files[0])
            ids = ("user", "item") if order == "user_first" else ("item", "user")
            header, unit, has_header = (*ids, "rating", "timestamp"), "s", False
            columns = Columns(user="user", item="item", rating="rating", time="timestamp")
        return Layout(
            files, DELIMITED, columns, "string", WHOLE_STARS,
            header=header, has_header=has_header, time_unit=unit,
        )  # fmt: skip


def _order_of(file: LogFile) -> str:
    """Find which of the first two columns holds products; their ids have ten characters."""
    rows = sample_rows(file, ",")

    def share(column: int, pattern: str) -> float:
        return sum(bool(re.fullmatch(pattern, row[column])) for row in rows) / len(rows)

    if len(rows[0]) == _NUM_COLUMNS:
        fits = {
            "item_first": share(0, _ITEM) * share(1, _USER),
            "user_first": share(1, _ITEM) * share(0, _USER),
        }
        best = max(fits, key=lambda order: fits[order])
        if fits[best] > 0.9 and min(fits.values()) < 0.1:
            return best
    raise DataError(
        f"{file.label}: cannot distinguish users from products in {','.join(rows[0])[:80]!r}; set "
        'data.source.order to "user_first" or "item_first"'
    )
