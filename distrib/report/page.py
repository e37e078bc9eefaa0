"""Self-contained HTML pages: tables and charts that zoom, without a network."""

import functools
import json
from collections.abc import Sequence
from typing import NamedTuple

from distrib.redaction import redacted
from distrib.report.charts import AnyChart, plotly_of


class Cell(NamedTuple):
    """A cell of a table."""

    text: str
    note: str = ""
    """Small, under the text."""

    is_best: bool = False
    link: str = ""
    """Anchor on the page, or an address."""

    title: str = ""
    """Shown beside the pointer."""


TableRow = Sequence[Cell | str]


class Table(NamedTuple):
    """A table; its first column names the rows."""

    title: str
    columns: Sequence[str]
    rows: Sequence[TableRow]
    note: str = ""
    anchors: Sequence[str] = ()
    """Anchor of each row, if any."""


class Facts(NamedTuple):
    """Names and values."""

    title: str
    lines: Sequence[tuple[str, str]]


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Code(NamedTuple):
    """Text as it is, such as a command or a run file."""

    title: str
    text: str


class Section(NamedTuple):
    """A part of a page, named in its menu."""

    title: str
    parts: "Sequence[Table | Facts | Text | Code | AnyChart]"


def page(title: str, about: str, sections: Sequence[Section]) -> str:
    """Make a page.

    Args:
        title: Of the page.
        about: Under the title.
        sections: What it shows.

    Returns:
        HTML with all that it needs; secrets are hidden.
    """
    from jinja2 import Environment, PackageLoader  # not needed by other reports

    library = Environment(
        loader=PackageLoader("distrib.report", "templates"), autoescape=True, trim_blocks=True
    )
    library.tests["table"] = lambda part: isinstance(part, Table)
    library.tests["facts"] = lambda part: isinstance(part, Facts)
    library.tests["text"] = lambda part: isinstance(part, Text)
    library.tests["code"] = lambda part: isinstance(part, Code)
    library.tests["cell"] = lambda part: isinstance(part, Cell)
    library.tests["chart"] = _is_chart
    library.filters["chart"] = _chart
    library.filters["anchor"] = anchor
    has_charts = any(_is_chart(part) for section in sections for part in section.parts)
    text = library.get_template("page.html").render(
        title=title, about=about, sections=sections, has_charts=has_charts
    )
    # After the text, so that hiding secrets does not search megabytes of script.
    return redacted(text).replace("<!-- plotly -->", _plotly() if has_charts else "", 1)


def anchor(text: str) -> str:
    """Return text as the name of a place on a page."""
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-")


def _is_chart(part: object) -> bool:
    return not isinstance(part, Table | Facts | Text | Code)


def _chart(chart: AnyChart) -> str:
    """Return the data of a chart, safe inside a script element."""
    return json.dumps(plotly_of(chart)).replace("</", "<\\/")


@functools.cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()}</script>"
