"""A new model, objective, scheme and log format: a file and an entry each, and a case where tested.

The templates are added to a copy of the library, which is then tested and used as a whole.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.forked_workers import running

ROOT = Path(__file__).parents[2]
TEMPLATES = Path(__file__).parent

ADDITIONS = [  # template, target, name, where it is listed, the entry, and before what it goes
    (
        "model",
        "distrib/models/two_tables.py",
        "TwoTablesConfig",
        "distrib/models/__init__.py",
        "    | TwoTablesConfig\n",
        "    | BiasedMfConfig\n",
    ),
    (
        "objective",
        "distrib/objectives/liked.py",
        "LikedConfig",
        "distrib/objectives/__init__.py",
        "    | LikedConfig\n",
        "    | CosineConfig\n",
    ),
    (
        "log_format",
        "distrib/data/logs/formats/sentences.py",
        "SentencesSource",
        "distrib/data/logs/config.py",
        "    | SentencesSource\n",
        "    | AmazonSource\n",
    ),
    (
        "scheme",
        "distrib/training/schemes/half_histories.py",
        "HalfHistories",
        "distrib/training/schemes/__init__.py",
        '    "half_histories": HalfHistories(),\n',
        '    "item_rows": ItemRows(),\n',
    ),
]
CASES = [  # battery, the configuration, its module, the case, and before what it goes
    (
        "tests/models/test_contract.py",
        "TwoTablesConfig",
        "distrib.models.two_tables",
        "    TwoTablesConfig(latent_width=8),\n",
        "    MultDaeConfig(latent_width=8),\n",
    ),
    (
        "tests/objectives/test_contract.py",
        "LikedConfig",
        "distrib.objectives.liked",
        "    (LikedConfig(), MultVaeConfig(**WIDTHS)),\n",
        "    (CosineConfig(), ElsaConfig(latent_width=4)),\n",
    ),
    (
        "tests/training/test_schemes.py",
        "TwoTablesConfig",
        "distrib.models.two_tables",
        '    "half_histories": (TwoTablesConfig(latent_width=8), None),\n',
        '    "item_rows": (AutoRecConfig(side="items", hidden_width=8), None),\n',
    ),
]
RUN_FILE = """
run = "{folder}/run"

[data]
prepared = "{folder}/data"
source = {{ format = "sentences", path = "{folder}/log.txt" }}
split = {{ name = "entrywise" }}
num_shards = 2

[model]
name = "two_tables"
latent_width = 8

[objective]
name = "liked"

[optimizer]
learning_rate = 0.01

[engine]
precision = "fp32"
zero_stage = 0

[train]
num_epochs = 6
batch_users = 32
num_workers = 1

[score]
k = 5
"""


def add(path, module, name, entry, before):
    """Import a name in a file, and insert an entry with it."""
    text = path.read_text()
    assert text.count(before) == 1, (path, before)
    text = text.replace(before, entry + before)
    first = text.index("\nfrom distrib") + 1
    path.write_text(f"{text[:first]}from {module} import {name}\n{text[first:]}")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of library, jobs and tests with all templates added."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("distrib", "jobs", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    for template, target, name, listed, entry, before in ADDITIONS:
        shutil.copy(TEMPLATES / f"{template}.py", tree / target)
        module = target.removesuffix(".py").replace("/", ".")
        add(tree / listed, module, name, entry, before)
    for battery, name, module, case, before in CASES:
        add(tree / battery, module, name, case, before)
    return tree


def run(tree, *command):
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.processes
@pytest.mark.long
def test_the_batteries_pass_with_a_case_for_each_template(tree):
    chosen = "two_tables or liked or half_histories or has_a_case"
    batteries = [path for path, *_ in CASES]
    pytest_of_tree = sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"
    found = run(tree, *pytest_of_tree, "-k", chosen, *batteries)
    assert int(re.search(r"(\d+) passed", found)[1]) > 30  # of each battery some


@pytest.mark.ray
@pytest.mark.long
def test_the_pipeline_trains_a_model_of_templates_on_a_log_of_a_template(
    tree, forked_workers, tmp_path
):
    model = tree / "distrib/models/two_tables.py"
    plain = "MultinomialConfig())"
    assert plain in model.read_text()
    model.write_text(model.read_text().replace(plain, 'MultinomialConfig(), "half_histories")'))
    rng = np.random.default_rng(0)
    lines = [
        f"{user} rated {item} with {5 if item % 2 else 2}"
        for user in range(120)
        for item in rng.choice(40, 12, replace=False)
    ]
    (tmp_path / "log.txt").write_text("\n".join(lines))
    (tmp_path / "run.toml").write_text(RUN_FILE.format(folder=tmp_path))
    run(tree, *running("jobs/pipeline.py", "--config", str(tmp_path / "run.toml")))
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    losses = [epoch["losses"]["liked"] for epoch in history]
    assert len(losses) == 6
    assert losses[-1] < 0.9 * losses[0]
