"""Settings by their earlier names: read with a warning, rewritten on request, in every document."""

import json
import warnings
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from distrib.checkpoint.bundle import BundleFacts, load_bundle, write_bundle
from distrib.config import load, sealed, unsealed
from distrib.console import cli
from distrib.data.dataset import MANIFEST, Dataset
from distrib.errors import ConfigError
from distrib.models.autoencoders.mult_vae import MultVaeConfig
from distrib.renamed import NAMES, RenamedWarning, present, renamed
from distrib.run_file import RunFile
from distrib.serve.schemas import RecommendRequest
from distrib.settings.migrate import migrated
from distrib.settings.reference import schema
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary

OLD = """
# a run file of 0.1
run = "runs/a"
[data]
prepared = "runs/a-data"
source = { format = "csv", path = "l", columns = { user = "u", item = "i" }, is_quoted = false }
cleaning = { is_iterated = false }   # the k-core
split = { name = "strong_generalisation", valid_users = 5 }
[model]
name = "mult_vae"
reads = "interactions" # not ratings
[objective]
name = "multinomial"
divergence_cap = 0.3
[train]
room_s = 5.0
hang_s = 7.0
max_skipped = 1
[score]
form = "long"
since = "runs/b"
[serve]
fronts = 2
max_waiting = 9
[search]
space = { "train.hang_s" = { values = [60.0, 90.0] } }
"""


def test_an_old_run_file_means_the_same_and_warns_of_each_name(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(OLD)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        old = load(RunFile, path, overrides=["train.rows_on_gpu=true"])
    said = [str(one.message) for one in caught if one.category is RenamedWarning]
    assert len(said) == 13
    assert any("'fronts' is now 'http_workers'" in text for text in said)
    assert any("'rows_on_gpu' is now 'histories_on_gpu'" in text for text in said)
    text, changes = migrated(OLD)
    assert len(changes) == 12
    assert "# the k-core" in text
    assert "# not ratings" in text
    path.write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = load(RunFile, path, overrides=["train.histories_on_gpu=true"])
    assert new == old
    assert new.data.split.valid_users == 5
    assert migrated(text) == (text, [])


def test_the_command_rewrites_files(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(OLD)
    found = CliRunner().invoke(cli, ["config", "migrate", str(path)])
    assert found.exit_code == 0, found.output
    assert path.read_text() == migrated(OLD)[0]
    report = json.loads(found.stdout)[str(path)]
    assert "score: 'form' is now 'layout'" in report["renamed"]
    assert report["faults"] == []
    path.write_text(OLD.replace("[serve]", "[engine]\ncompile = true\n[serve]"))
    found = CliRunner().invoke(cli, ["config", "migrate", str(path)])
    (fault,) = json.loads(found.stdout)[str(path)]["faults"]
    assert "engine.compile" in fault
    old = path.read_text()
    found = CliRunner().invoke(cli, ["config", "migrate", str(path), "no.toml"])
    assert (found.exit_code, path.read_text()) == (2, old)
    path.write_text("not = [toml")
    assert CliRunner().invoke(cli, ["config", "migrate", str(path)]).exit_code == 2


def test_both_names_at_once_are_an_error(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(OLD.replace("[serve]", "[serve]\nhttp_workers = 3"))
    with (
        pytest.warns(RenamedWarning),
        pytest.raises(ConfigError, match=r"serve\.fronts.*unknown key"),
    ):
        load(RunFile, path)


def test_every_present_name_is_a_setting_and_no_earlier_one_is():
    text = json.dumps(schema())
    for old, new in NAMES.items():
        assert f'"{new}": {{' in text, new
        assert present(old).rpartition(".")[2] == new
    assert present("train.room_s") == "train.resource_timeout_s"
    assert present("score.events.cleaning.is_iterated") == "score.events.cleaning.iterate_kcore"
    assert present("train.num_epochs") == "train.num_epochs"


def test_a_bundle_of_before_is_read(small, tmp_path):
    folder = Folder(str(tmp_path / "bundle"))
    config = MultVaeConfig(hidden_width=8, latent_width=4, input="ratings")
    vocabulary = Vocabulary(
        pa.array(range(50)), small.catalog.levels, small.catalog.train_count_IL, 37
    )
    state = config.build(small.catalog).state_dict()
    write_bundle(folder, state, config, vocabulary, BundleFacts())
    old = folder.read("model.json").replace(b'"input":', b'"reads":')
    manifest = unsealed(folder.read_json("manifest.json"), "here")
    from distrib.checkpoint.manifest import describe

    manifest["files"]["model.json"] = describe(old).model_dump()
    Path(folder.path, "model.json").write_bytes(old)
    folder.write_json("manifest.json", sealed(manifest))
    assert load_bundle(folder).config == config


def test_requests_of_before_are_read():
    for name in ("options", "wishes"):
        found = RecommendRequest.model_validate({"history": {"items": [1]}, name: {"k": 3}})
        assert found.options.k == 3
    assert "wishes" not in json.dumps(RecommendRequest.model_json_schema())


@pytest.mark.ray
def test_prepared_data_of_before_are_the_same(cluster, tmp_path):
    from distrib.data.config import DataConfig
    from distrib.data.logs.config import SyntheticLog
    from distrib.data.prepare.job import prepare

    source = SyntheticLog(num_users=60, num_items=20, num_interactions=400)
    config = DataConfig(prepared=str(tmp_path / "data"), source=source)
    prepare(config)
    folder = Folder(config.prepared)
    document = unsealed(folder.read_json(MANIFEST), "here")
    recipe = document["recipe"]
    recipe["source"]["taste"] = recipe["source"].pop("interaction_effect")
    recipe["cleaning"]["is_iterated"] = recipe["cleaning"].pop("iterate_kcore")
    folder.write_json(MANIFEST, sealed(document))
    before = folder.read(MANIFEST)
    assert prepare(config).hash == Dataset.open(folder).hash  # nothing to do
    assert folder.read(MANIFEST) == before
    assert renamed(recipe, "data")[1]
