"""The tutorial runs from first to last cell, and shows outputs."""

import json
from pathlib import Path

import pytest

from tests.docs.notebook import executed

NOTEBOOK = Path(__file__).parents[2] / "docs/tutorial.ipynb"


@pytest.mark.timeout(600)
def test_every_cell_runs(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = json.loads(NOTEBOOK.read_text())
    shorter = json.loads(
        json.dumps(document).replace('\\"num_epochs\\": 30', '\\"num_epochs\\": 2')
    )
    assert shorter != document
    cells = [cell for cell in executed(shorter)["cells"] if cell["cell_type"] == "code"]
    kept = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    for new, old in zip(cells, kept, strict=True):
        kinds = [[output["output_type"] for output in cell["outputs"]] for cell in (new, old)]
        assert kinds[0] == kinds[1], "renew it: python -m tests.docs.notebook docs/tutorial.ipynb"
        assert "WARNING" not in json.dumps(old["outputs"])
