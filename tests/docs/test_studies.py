"""Every figure of a study in the documentation leads to runs, and every run to its settings."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from distrib.config import checked
from distrib.run_file import RunFile
from distrib.storage import Folder
from distrib.studies.plan import run_address
from tests.docs.study_records import ROOT

DOCS = Path(__file__).parents[2] / "docs"
RECORDS = sorted((DOCS / "studies").glob("*.json"))
ADDRESS = re.compile(r"^[0-9a-f]{8}$")


def tables():
    """Tables of the documentation whose last column names runs: page, head and row."""
    for page in sorted(DOCS.glob("*.md")):
        head = []
        for line in page.read_text().split("\n"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if cells[-1] == "runs":
                head = cells
            elif head and line.startswith("|") and ADDRESS.match(cells[-1].split(" ")[0]):
                yield page, head, cells
            elif not line.startswith("|"):
                head = []


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_addresses_are_hashes_of_settings_and_data(path):
    document = json.loads(path.read_text())
    assert document["rows"]
    for row in document["rows"]:
        settings = {**row["settings"], "run": "r"}
        settings["data"] = {**settings["data"], "prepared": "d"}
        run = checked(RunFile, settings, where=path.name).training()
        assert run_address(run, row["data"], Folder(ROOT)) == row["address"]


def test_figures_are_means_of_the_runs_that_their_rows_name():
    runs = {}
    for row in (row for path in RECORDS for row in json.loads(path.read_text())["rows"]):
        known = runs.setdefault(row["address"], {**row, "metrics": {}})  # studies share runs
        known["metrics"] |= row["metrics"]
    num_figures, seen = 0, set()
    for page, head, cells in tables():
        found = [runs[address] for name in cells[-1].split(" ") for address in starting(runs, name)]
        assert len(found) == len(cells[-1].split(" ")), (page, cells)
        seen |= {row["address"] for row in found}
        for metric, cell in zip(head[1:-1], cells[1:-1], strict=True):
            if cell == "-":
                continue
            mean = np.mean([row["metrics"][metric] for row in found])
            assert float(cell.split(" ")[0].strip("*")) == pytest.approx(mean, abs=5.1e-5), cells
            num_figures += 1
    assert num_figures
    assert seen == {*runs}  # and no record that no page uses


def starting(runs, name):
    return [address for address in runs if address.startswith(name)]


def test_records_are_of_studies_in_the_repository():
    for path in RECORDS:
        study = DOCS.parent / "configs" / "studies" / f"{path.stem}.toml"
        assert study.exists(), path
        assert json.loads(path.read_text())["environment"]["commit"]
        assert set(re.findall(r'"(/[^/"]*)', path.read_text())) <= {ROOT}  # no place of a machine
