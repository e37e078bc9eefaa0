"""Pages of studies and runs in headless Chromium."""

import numpy as np
import pytest

from distrib.redaction import hide
from distrib.report.charts import Chart, HeatMap, RankChart, Series, png_of
from distrib.report.page import Cell, Code, Facts, Section, Table, Text, page

CHARTS = [
    Chart("lines", "Lines", "x", "y", [Series("a", [1, 2], [0.1, 0.2], [0.0, 0.1], [0.2, 0.3])]),
    Chart(
        "names", "Names", "", "y", [Series("a </script>", ["p", "q"], [1.0, np.nan])], log_y=True
    ),
    HeatMap("heat", "Heat", "x", "y", [0, 1], [0, 1], [[1.0, None], [2.0, 3.0]], "z"),
    RankChart("ranks", "Ranks", {"a": 1.2, "b": 1.9, "c": 2.9}, 1.0),
]


def whole_page():
    wide = [f"column number {n}" for n in range(20)]
    rows = [[f"row {n}", *[Cell("0.1234*", "(0.0001; 0.0002)", n == 1)] * 19] for n in range(3)]
    parts = [Table("A wide table", wide, rows, "A note.", ["r0", "r1", "r2"])]
    facts = Facts("", [("a very long path", "/x" * 200), ("name", "value")])
    return page(
        "A title <b>",
        "About <i>it</i>.",
        [
            Section("Tables", parts),
            Section("Charts", CHARTS),
            Section("Rest", [facts, Text("Text."), Code("File", "a = 1\n" * 3)]),
        ],
    )


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)
def test_every_chart_is_drawn_as_a_picture_too(chart):
    assert png_of(chart).startswith(b"\x89PNG")


def test_a_page_needs_no_network_escapes_text_and_hides_secrets():
    hide("a-secret-value")
    text = page("a-secret-value", "", [Section("<script>", [Text("token=a-secret-value")])])
    assert "a-secret-value" not in text
    assert "&lt;script&gt;" in text
    assert "plotly" not in text.lower().split("</style>")[1]  # no chart, no library
    outside = ("<script src", "<link", "<img src", "@import")
    assert not any(mark in whole_page() for mark in outside)


@pytest.mark.processes
def test_the_page_works_in_a_browser_and_on_a_phone(browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(whole_page(), encoding="utf-8")
    browser.get(f"file://{path}")
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors
    drawn = browser.execute_script("return document.querySelectorAll('.main-svg').length")
    assert drawn >= len(CHARTS)
    for number in range(1, len(CHARTS) + 1):
        script = f"return document.querySelectorAll('#chart-{number} .main-svg').length"
        assert browser.execute_script(script)
    size = browser.get_window_size()
    browser.set_window_size(340, 800)
    try:
        width, inner = browser.execute_script(
            "return [document.documentElement.scrollWidth, window.innerWidth]"
        )
        assert width <= inner
    finally:
        browser.set_window_size(size["width"], size["height"])
    focusable = browser.execute_script("return document.querySelectorAll('[tabindex]').length")
    assert focusable >= 2
