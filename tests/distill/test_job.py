"""Soft labels through the jobs: made in pieces, by any number of workers, and trained with."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distrib.config import load, sealed, unsealed
from distrib.data.dataset import Dataset
from distrib.data.prepare.job import prepare
from distrib.distill import job
from distrib.distill.config import SoftenConfig
from distrib.distill.job import soften
from distrib.errors import CheckpointError, ConfigError, DataError
from distrib.evaluation.config import EvaluateConfig
from distrib.evaluation.job import evaluate
from distrib.models import AutoRecConfig
from distrib.objectives import ImputedSquaredErrorConfig
from distrib.objectives.label_config import StoredLabel
from distrib.run_file import RunFile
from distrib.soft_labels import SoftLabels
from distrib.storage import Folder
from distrib.training.config import TrainConfig, TrainingRun
from distrib.training.engines.config import EngineConfig
from distrib.training.optimizer import OptimizerConfig
from distrib.training.preflight.checks import preflight
from distrib.training.workers.launch import launch
from tests.world import data_of, write_log, write_model

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
RUN_FILE = """
run = "{folder}/{model}"

[data]
prepared = "{folder}/data-{split}"
source = {{ format = "csv", path = "{folder}/log.csv", columns = {{ user = "user", item = "item", time = "time" }} }}
split = {{ {split_settings} }}
num_shards = 3

[model]
name = "{model}"
latent_width = 8

[optimizer]
learning_rate = 0.01

[engine]
precision = "fp32"

[train]
num_epochs = 3
batch_users = 16

[soften]
num_clusters = 4
num_neighbors = 8
min_mass_on_target = 0.0
"""  # noqa: E501
SPLITS = {
    "youtube_dnn": ("leave_last", 'name = "leave_last", count = 2'),
    "mult_vae": (
        "strong",
        'name = "strong_generalization", valid_users = 10, test_users = 10',
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Users of two kinds with items of their own kind; some users have one item only."""
    folder = tmp_path_factory.mktemp("soften")
    rng, lines = np.random.default_rng(0), ["user,item,time"]
    for user in range(90):
        count = 3 if user < 5 else 9
        items = rng.choice(20, count, replace=False) + 20 * (user % 2)
        lines += [f"u{user},i{item},{n}" for n, item in enumerate(items)]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module", params=SPLITS)
def trained(cluster, folder, request):
    split, settings = SPLITS[request.param]
    path = folder / f"{request.param}.toml"
    text = RUN_FILE.format(folder=folder, model=request.param, split=split, split_settings=settings)
    path.write_text(text)
    file = load(RunFile, path, overrides=())
    prepare(file.data)
    launch(file.training())
    return file


def made(file, output, **settings):
    config = file.soften.model_copy(update={"output": str(output), **settings})
    return soften(file.run, file.data.prepared, config)


def parts(output):
    return {path.name: path.read_bytes() for path in sorted(Path(output).glob("part-*"))}


def table(output):
    return pa.concat_tables([pq.read_table(path) for path in sorted(Path(output).glob("part-*"))])


def mass_of_own_kind(dataset, found):
    """Mean weight of the items that a user of the same kind meets."""
    ids = dataset.vocabulary.ids.to_pylist()
    own = [
        weight
        for row in found.to_pylist()
        for item, weight in zip(row["items"], row["weights"], strict=True)
        if (int(ids[item][1:]) >= 20) == int(row["user"][1:]) % 2
    ]
    return sum(own) / len(found)


def test_every_training_user_has_a_label_of_its_own_kind(trained, tmp_path):
    counts = made(trained, tmp_path / "a").counts
    dataset = Dataset.open(trained.data.prepared)
    assert counts.users_read == dataset.manifest.counts.users == 90
    assert counts.users + sum(counts.users_rejected.values()) == 90
    reasons = {"youtube_dnn": "nothing to read before the target", "mult_vae": "not in training"}
    wanted = {"youtube_dnn": 5, "mult_vae": 20}
    assert counts.users_rejected == {reasons[trained.model.name]: wanted[trained.model.name]}
    found = table(tmp_path / "a")
    assert len(found) == counts.users
    for row in found.to_pylist():
        assert sum(row["weights"]) == pytest.approx(1.0, abs=1e-5)
        assert row["items"] == sorted(row["items"])
    assert mass_of_own_kind(dataset, found) > 0.7
    assert counts.statistics["mass_on_target"] > 0.5
    assert made(trained, tmp_path / "a").counts == counts


def test_nothing_held_out_enters_labels(trained, tmp_path):
    made(trained, tmp_path / "a", max_items=1000, smallest=0.0)
    dataset = Dataset.open(trained.data.prepared)
    for entry in dataset.manifest.shards:
        train = dataset.training(entry)
        numbers = set(train.number_B.tolist())
        first, step = dataset.numbering(entry.shard)
        mine = [
            row for row in table(tmp_path / "a").to_pylist() if (row["number"] - first) % step == 0
        ]
        assert {row["number"] for row in mine} <= numbers
        if trained.model.name == "youtube_dnn":  # a label's own target is the last trained one
            last = dict(zip(train.number_B, train.item_N[train.pointer_P[1:] - 1], strict=True))
            for row in mine:
                heaviest = row["items"][int(np.argmax(row["weights"]))]
                assert heaviest == last[row["number"]]


def test_an_interrupted_softening_resumes_and_gives_the_same_bytes(trained, tmp_path, monkeypatch):
    made(trained, tmp_path / "whole")

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(job, "_require_worth", fail)
        with pytest.raises(KeyboardInterrupt):
            made(trained, tmp_path / "cut")
    assert not (tmp_path / "cut" / "_SUCCESS").exists()
    (work,) = (tmp_path / "cut").glob("_work-*")
    pieces = sorted((work / "pieces").glob("*.parquet"))
    before = {path: path.stat().st_mtime_ns for path in pieces}
    assert before
    pieces[0].with_suffix(".json").unlink()  # as if this one had not been finished
    touched = []
    monkeypatch.setattr(job, "k_means", lambda *_, **__: touched.append(1))
    made(trained, tmp_path / "cut")
    assert not touched
    assert parts(tmp_path / "cut") == parts(tmp_path / "whole")
    assert not list((tmp_path / "cut").glob("_work-*"))


@pytest.mark.parametrize("method", ["neighbors", "teacher"])
def test_other_labels_are_distributions_over_items_too(trained, tmp_path, method):
    counts = made(trained, tmp_path / "a", method=method, max_items=7).counts
    found = table(tmp_path / "a").to_pylist()
    assert len(found) == counts.users
    assert all(sum(row["weights"]) == pytest.approx(1.0, abs=1e-5) for row in found)
    assert max(len(row["items"]) for row in found) <= 7


def test_labels_of_a_log_with_ratings_hold_ratings_to_impute(cluster, tmp_path):
    write_log(tmp_path / "log.csv", range(80))
    data = data_of(tmp_path / "data", tmp_path / "log.csv")
    prepare(data)
    model = AutoRecConfig(side="users", hidden_width=8)
    run, labels = write_model(tmp_path / "run", data, config=model), tmp_path / "labels"
    any_label = {"min_mass_on_target": 0.0, "max_evenness": 1.0, "num_clusters": 3}
    soften(run, data.prepared, SoftenConfig(output=str(labels), **any_label))
    for row in table(labels).to_pylist():
        assert len(row["ratings"]) == len(row["weights"]) == len(row["items"])
        assert all(1.0 <= rating <= 5.0 for rating in row["ratings"])
    near = SoftenConfig(output=str(tmp_path / "near"), method="neighbors", **any_label)
    soften(run, data.prepared, near)
    assert "ratings" not in table(tmp_path / "near").column_names
    objective = ImputedSquaredErrorConfig(label={"kind": "stored", "path": str(labels)})
    trained = TrainingRun(
        run=str(tmp_path / "soft"),
        prepared=data.prepared,
        seed=0,
        model=model,
        objective=objective,
        optimizer=OptimizerConfig(),
        engine=EngineConfig(precision="fp32"),
        train=TrainConfig(num_epochs=2, batch_users=16),
        evaluate=EvaluateConfig(),
    )
    launch(trained)
    assert Folder(trained.run).read_json("history.json")[-1]["losses"]["imputed"] > 0
    other = objective.model_copy(update={"label": StoredLabel(path=str(tmp_path / "near"))})
    with pytest.raises(ConfigError, match="have no ratings to impute; run distrib soften"):
        preflight(trained.model_copy(update={"run": str(tmp_path / "no"), "objective": other}))


def test_bad_clusters_can_be_made_on_purpose(trained, tmp_path):
    clusters = []
    for share in (0.0, 0.5, 1.0):
        made(trained, tmp_path / f"{share:g}", shuffled_share=share)
        clusters.append(table(tmp_path / f"{share:g}")["cluster"].to_numpy())
    moved = [(clusters[0] != other).mean() for other in clusters[1:]]
    assert 0.3 < moved[0] < 0.7 < moved[1] == 1.0


def test_worthless_labels_are_refused_with_their_figures(trained, tmp_path):
    with pytest.raises(DataError, match=r"mean mass on the target is 0\.\d+, below .* = 0\.99"):
        made(trained, tmp_path / "a", min_mass_on_target=0.99)
    for settings, why in (
        ({"max_mass_on_target": 0.5}, r"on the target is 0\.\d+, above .*; make fewer clusters"),
        ({"max_evenness": 0.1}, r"are nearly even: 0\.\d+ of the largest entropy, above .* 0\.1"),
    ):
        with pytest.raises(DataError, match=why):
            made(trained, tmp_path / "a", **settings)
    assert not (tmp_path / "a" / "_SUCCESS").exists()


def with_labels(file, labels, **objective):
    settings = {"name": "soft_target", "label": {"kind": "stored", "path": str(labels)}}
    document = json.loads(file.training().model_dump_json())
    document["objective"] = settings | objective
    document["run"] = f"{file.run}-soft-{Path(labels).name}"
    return type(file.training()).model_validate_json(json.dumps(document))


def test_a_run_trains_with_them_and_only_on_their_own_data(trained, tmp_path):
    labels = tmp_path / "labels"
    made(trained, labels)
    document = json.loads(with_labels(trained, labels).model_dump_json())
    document["train"]["num_workers"] = 2
    run = type(trained.training()).model_validate_json(json.dumps(document))
    preflight(run)
    launch(run)
    history = Folder(run.run).read_json("history.json")
    assert history[-1]["losses"]["others"] > 0
    found = evaluate(run.run, run.prepared, run.evaluate).metrics
    assert found["model"]["recall@20"].mean > 0.2
    success = unsealed(Folder(str(labels)).read_json("_SUCCESS"), labels)
    success["recipe"] |= {"data": "other", "targets": "baskets"}
    Folder(str(labels)).write_json("_SUCCESS", sealed(success))
    wanted = "were made of data other(.|\n)* are of targets 'baskets'"
    with pytest.raises(ConfigError, match=wanted):
        preflight(run)


def test_labels_that_changed_since_are_not_trained_with(trained, tmp_path):
    labels = tmp_path / "changing"
    made(trained, labels, temperature=2.0)
    run = with_labels(trained, labels)
    launch(run)
    more = run.model_copy(update={"train": run.train.model_copy(update={"num_epochs": 9})})
    preflight(more)
    made(trained, labels, temperature=0.5)
    with pytest.raises(ConfigError, match=r"labels: '[0-9a-f]+' there, '[0-9a-f]+' now"):
        preflight(more)
    part = next(labels.glob("part-*"))
    part.write_bytes(part.read_bytes() + b"x")
    with pytest.raises(DataError, match="differs from its digest in _SUCCESS"):
        SoftLabels.open(str(labels))


def test_missing_labels_and_other_targets_are_refused_before_workers_start(trained, tmp_path):
    with pytest.raises(DataError, match="no _SUCCESS, so no complete soft labels"):
        preflight(with_labels(trained, tmp_path / "nothing"))
    if trained.model.name == "youtube_dnn":
        made(trained, tmp_path / "labels")
        run = with_labels(trained, tmp_path / "labels")
        model = run.model.model_copy(update={"targets": "every"})
        with pytest.raises(ConfigError, match="stored soft labels, which are of a user's last"):
            preflight(run.model_copy(update={"model": model}))


def test_a_run_without_bundle_cannot_be_softened(trained, tmp_path):
    with pytest.raises(CheckpointError, match="no bundle to embed users with"):
        soften(str(tmp_path), trained.data.prepared, trained.soften)
