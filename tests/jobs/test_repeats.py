"""People who come back to an item, through all jobs: prepare, train, evaluate, score."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from distrib.checkpoint.bundle import load_bundle
from distrib.config import load
from distrib.data.dataset import Dataset
from distrib.data.prepare.job import prepare
from distrib.errors import ConfigError
from distrib.evaluation.job import evaluate
from distrib.run_file import RunFile
from distrib.scoring.bulk.job import score
from distrib.storage import Folder
from distrib.training.preflight.checks import preflight
from distrib.training.workers.launch import launch

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
RUN_FILE = """
run = "{folder}/run"

[data]
prepared = "{folder}/data"
source = {{ format = "csv", path = "{folder}/log.csv", columns = {{ user = "user", item = "item", time = "time" }} }}
cleaning = {{ duplicates = "keep" }}
split = {{ name = "leave_last", count = 2 }}
num_shards = 3

[model]
name = "gru4rec"
latent_width = 16
dropout = 0.0

[optimizer]
learning_rate = 0.01

[engine]
precision = "fp32"

[train]
num_epochs = 12
batch_users = 8

[evaluate]
hit_rate_at = [1]
exclude_seen = false

[score]
k = 1
policy = {{ exclude_seen = false }}
"""  # noqa: E501
PERIOD = 5


@pytest.fixture(scope="module")
def file(cluster, tmp_path_factory):
    """Each user goes round in a circle of items, in the same direction."""
    folder = tmp_path_factory.mktemp("repeats")
    lines = [f"{user},{(user + n) % PERIOD},{n}" for user in range(60) for n in range(12)]
    (folder / "log.csv").write_text("\n".join(["user,item,time", *lines]) + "\n")
    (folder / "run.toml").write_text(RUN_FILE.format(folder=folder))
    file = load(RunFile, folder / "run.toml", overrides=())
    prepare(file.data)
    launch(file.training())
    return file


def test_every_interaction_is_kept_and_the_bundle_notes_it(file):
    dataset = Dataset.open(file.data.prepared)
    assert dataset.manifest.counts.kept == dataset.manifest.counts.read == 60 * 12
    assert load_bundle(Folder(file.run) / "bundle").vocabulary.facts.has_repeats


def test_the_next_item_is_found_though_all_items_are_known(file):
    found = evaluate(file.run, file.data.prepared, file.evaluate).metrics
    assert found["model"]["hit_rate@1"].mean == 1.0
    assert found["popularity"]["hit_rate@1"].mean < 0.5


def test_lists_follow_the_whole_sequence(file):
    output = score(file.run, file.data.prepared, file.score).output
    lists = pq.read_table([str(path) for path in Path(output).glob("*.parquet")]).to_pydict()
    wanted = [(int(user) + 12) % PERIOD for user in lists["user"]]
    assert np.ravel(lists["items"]).tolist() == [str(item) for item in wanted]


def test_a_model_that_reads_an_item_once_is_refused(file):
    path = Path(file.run).parent / "run.toml"
    other = load(RunFile, path, overrides=('model={name="ease"}', 'run="elsewhere"'))
    with pytest.raises(ConfigError, match=r"'ease' reads an item of a user once.* keeps"):
        preflight(other.training())
