"""Models of other packages: named by an entry point, held to the same contract."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch

from distrib.models.autoencoders.mult_vae import MultVaeConfig
from distrib.testing import check_model
from tests.models.test_contract import CASES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("config", CASES, ids=repr)
def test_our_models_pass_the_checks_for_others(config):
    check_model(config)


class Forgetful(MultVaeConfig):
    """Decodes otherwise each time."""

    name: Literal["forgetful"] = "forgetful"

    def build(self, catalog):
        model = super().build(catalog)
        plain = model.decode_rows
        model.decode_rows = lambda users, rows: plain(users, rows) + torch.rand(1)
        return model


class Lopsided(MultVaeConfig):
    """Decodes ranges of items shifted."""

    name: Literal["lopsided"] = "lopsided"

    def build(self, catalog):
        model = super().build(catalog)
        plain = model.decode
        model.decode = lambda users, items: plain(users, items).cumsum(1)
        return model


@pytest.mark.parametrize(
    ("kind", "message"),
    [(Forgetful, "pure function of the history"), (Lopsided, "a range of items decodes otherwise")],
)
def test_a_model_that_breaks_the_contract_is_caught(kind, message):
    with pytest.raises(AssertionError, match=message):
        check_model(kind(hidden_width=8, latent_width=4))


def package(folder, target):
    """An installed package with an entry point."""
    about = folder / "shop_models-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-models\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[distrib.models]\ntwo_tables = {target}\n")
    (folder / "shop_models.py").write_text((ROOT / "tests/templates/model.py").read_text())


def run(folder, code):
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def test_a_model_of_another_package_is_one_of_ours(tmp_path):
    package(tmp_path, "shop_models:TwoTablesConfig")
    code = (
        "from distrib.config import checked\n"
        "from distrib.run_file import RunFile\n"
        "from distrib.testing import check_model\n"
        "file = checked(RunFile, {'run': 'r', 'data': {'prepared': 'p'},\n"
        "    'model': {'name': 'two_tables', 'latent_width': 4}}, where='here')\n"
        "check_model(file.model)\n"
        "print(type(file.model).__module__)\n"
    )
    found = run(tmp_path, code)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "shop_models"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("shop_models:Absent", "cannot be imported"),
        ("no_such_module:Config", "cannot be imported"),
        ("shop_models:TwoTables", "is not the configuration of a model"),
    ],
)
def test_an_entry_point_that_leads_nowhere_is_one_clear_error(tmp_path, target, message):
    package(tmp_path, target)
    found = run(tmp_path, "import distrib.models")
    assert found.returncode != 0
    assert message in found.stderr
    assert "of shop-models" in found.stderr
