"""Likes and dislikes through all jobs: prepare, train, evaluate, score."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from distrib.checkpoint.bundle import load_bundle
from distrib.config import load
from distrib.data.dataset import Dataset
from distrib.data.prepare.job import preflight as prepare_preflight
from distrib.data.prepare.job import prepare
from distrib.data.schema import Role
from distrib.errors import ConfigError, DataError, DistribError, DivergedError
from distrib.evaluation.job import evaluate
from distrib.report.summary import draw_curves
from distrib.run_file import RunFile
from distrib.scoring.bulk.job import score
from distrib.storage import Folder
from distrib.training.preflight.checks import preflight
from distrib.training.workers.launch import launch

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
RUN_FILE = """
run = "{folder}/gmf"

[data]
prepared = "{folder}/data"
source = {{ format = "csv", path = "{folder}/log.csv", columns = {{ user = "user", item = "item", rating = "event" }} }}
feedback = {{ likes = ["like"], dislikes = ["hide"] }}
split = {{ name = "entrywise", train_share = 0.6, valid_share = 0.2, exact = true }}
num_shards = 3

[model]
name = "gmf"
latent_width = 8

[objective]
name = "inverse_gradient"
form = "sketched"

[optimizer]
learning_rate = 0.02

[engine]
precision = "fp32"

[train]
num_epochs = 4
batch_users = 64
num_workers = 2

[score]
k = 5
"""  # noqa: E501


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Users of two kinds who like items of their own kind; a fifth of the events say nothing."""
    folder = tmp_path_factory.mktemp("feedback")
    rng = np.random.default_rng(0)
    lines = ["user,item,event"]
    for user in range(80):
        for item in rng.choice(40, 20, replace=False):
            event = "like" if (user + item) % 2 == 0 else "hide"
            lines.append(f"u{user},i{item},{'open' if rng.random() < 0.2 else event}")
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    (folder / "run.toml").write_text(RUN_FILE.format(folder=folder))
    return folder


def run_file(folder: Path, *overrides: str) -> RunFile:
    return load(RunFile, folder / "run.toml", overrides=overrides)


@pytest.fixture(scope="module")
def trained(cluster, folder):
    file = run_file(folder)
    prepare(file.data)
    launch(file.training())
    return file


def test_what_was_prepared_says_what_likes_are(trained):
    dataset = Dataset.open(trained.data.prepared)
    assert dataset.manifest.levels == (-1.0, 0.0, 1.0)
    assert dataset.manifest.made_from.feedback == dataset.vocabulary.facts.feedback == (0.0, -1.0)
    counts = dataset.manifest.counts
    assert counts.interactions(Role.INPUT) == int(0.6 * counts.kept)


def test_training_records_decisions_and_weights_and_draws_them(trained):
    history = Folder(trained.run).read_json("history.json")
    assert len(history) == 4
    for epoch in history:
        shares = [epoch["recorded"][f"share {name}"] for name in ("direct", "inverse", "stay")]
        assert sum(shares) == pytest.approx(1.0)
        bins = [v for name, v in epoch["recorded"].items() if " from " in name]
        assert sum(bins) == pytest.approx(1.0)
        assert epoch["pairs_per_s"] > 0
    draw_curves(trained.run, 1)
    assert (Path(trained.run) / "unlabeled_weights.png").read_bytes().startswith(b"\x89PNG")


def test_likes_rank_above_dislikes_and_every_user_is_kept(trained):
    result = evaluate(trained.run, trained.data.prepared, trained.evaluate)
    model = result.metrics["model"]
    assert model["auc"].mean > 0.8
    assert model["gauc"].mean > 0.8
    parts = sorted(Path(trained.run, "evaluation_by_user").glob("*.parquet"))
    users = pq.read_table([str(part) for part in parts]).to_pandas()
    assert len(users) == users["user"].nunique() == result.users["measured"]
    assert users["model_gauc"].mean() == pytest.approx(model["gauc"].mean)
    assert model["gauc"].num_observations == users["model_gauc"].notna().sum()
    assert "popularity_ndcg@100" in users


def test_everyone_is_scored_and_new_users_are_folded_in_or_rejected(trained, folder, tmp_path):
    found = score(trained.run, trained.data.prepared, trained.score)
    assert found.counts.users == 80
    likes = pq.read_table([str(p) for p in Path(found.output).glob("*.parquet")])
    own = [
        (int(user[1:]) + int(item[1:])) % 2 == 0
        for user, items in zip(*(likes[n].to_pylist() for n in ("user", "items")), strict=True)
        for item in items
    ]
    assert np.mean(own) > 0.8
    rows = ["user,item,event"] + [f"new{n},i{item},like" for n in range(3) for item in (0, 2, 4)]
    (tmp_path / "new.csv").write_text("\n".join(rows) + "\n")
    source = json.dumps(str(tmp_path / "new.csv"))
    more = [
        f'score.output="{tmp_path}/lists"',
        f'score.histories="{tmp_path}/data"',
    ]
    fresh = run_file(
        folder,
        f"data.source.path={source}",
        f'data.prepared="{tmp_path}/data"',
        'data.split={name="none"}',
    )
    prepare(fresh.data)
    folded = score(trained.run, trained.data.prepared, run_file(folder, *more).score)
    assert folded.counts.users == 3
    rejecting = run_file(folder, *more, 'score.new_users="reject"')
    with pytest.raises(ConfigError, match="only the prepared data of the run say which users"):
        score(trained.run, trained.data.prepared, rejecting.score)
    own = run_file(folder, 'score.new_users="reject"', f'score.output="{tmp_path}/own"')
    assert score(trained.run, trained.data.prepared, own.score).counts.users == 80


def test_neumf_starts_from_runs_on_the_same_data(trained, folder, tmp_path):
    small = ["train.num_workers=1", "train.num_epochs=1"]
    plain = 'objective={name="labeled"}'
    mlp = run_file(
        folder, f'run="{tmp_path}/mlp"', plain, *small,
        'model={name="mlp", latent_width=8, hidden_widths=[8, 4]}',
    )  # fmt: skip
    launch(mlp.training())
    neumf = [
        f'run="{tmp_path}/neumf"', plain, *small, "optimizer.learning_rate=1e-9",
        'model={name="neumf", gmf_width=8, mlp_width=8, hidden_widths=[8, 4]}',
    ]  # fmt: skip
    runs = json.dumps([f"{tmp_path}/mlp", trained.run])
    file = run_file(folder, *neumf, f"train.pretrained={runs}")
    launch(file.training())
    model = load_bundle(Folder(file.run) / "bundle").model
    gmf = load_bundle(Folder(trained.run) / "bundle").model
    np.testing.assert_allclose(model.gmf_user_UZ, gmf.user_UZ, atol=1e-6)
    np.testing.assert_allclose(model.gmf_head_Z, 0.5 * gmf.head_Z, atol=1e-6)
    for runs, why in [
        (json.dumps([trained.run]), r"names runs of \['gmf'\], but model 'neumf' starts from one"),
        (json.dumps([trained.run, f"{tmp_path}/none"]), "none"),
    ]:
        with pytest.raises(DistribError, match=why):
            preflight(run_file(folder, *neumf, f"train.pretrained={runs}").training())


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (['data.source.columns.rating="absent"'], "absent"),
        (["data.feedback={likes_above=3}", "data.ratings.levels=[1, 2, 3]"], "nothing is a like"),
    ],
)
def test_bad_labels_are_refused_before_anything_is_read(folder, overrides, why, tmp_path):
    with pytest.raises((ConfigError, DataError), match=why):
        prepare_preflight(run_file(folder, f'data.prepared="{tmp_path}/x"', *overrides).data)


def test_data_without_two_classes_are_refused_by_what_needs_them(trained, folder, tmp_path, capfd):
    rated = [f'data.prepared="{tmp_path}/one"', f'run="{tmp_path}/run"', "engine.zero_stage=0"]
    one = run_file(folder, *rated, 'data.feedback={likes=["like", "hide"], dislikes=["gone"]}')
    prepare(one.data)
    events = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line[:1] == "{"]
    prepared = next(event for event in events if event["event"] == "prepared")
    counts = prepared["training_feedback"]
    assert counts["dislikes"] == 0 < counts["without_sign"] < counts["likes"]
    assert sum(counts.values()) == prepared["counts"]["interactions_by_role"]["input"]
    warned = next(event for event in events if event["event"] == "no_feedback_of_a_kind")
    assert warned["none"] == ["dislikes"]
    with pytest.raises(ConfigError, match="has no dislikes in training, but objective"):
        preflight(one.training())
    none = run_file(
        folder,
        f'data.prepared="{tmp_path}/none"',
        f'run="{tmp_path}/run"',
        'data.feedback={likes=["yes"], dislikes=["no"]}',
        'objective={name="bpr"}',
    )
    prepare(none.data)
    with pytest.raises(ConfigError, match="has no likes in training, but model 'gmf' learns from"):
        preflight(none.training())
    tiny = 'objective={name="inverse_gradient", form="sketched", hold_out=0.001}'
    with pytest.raises(ConfigError, match="holds out none, so nothing would be decided"):
        preflight(run_file(folder, f'run="{tmp_path}/run"', tiny).training())
    beside = f'train.compare_with=["{trained.run}", "{tmp_path}/absent"]'
    with pytest.raises(ConfigError, match=r"compare_with names .*absent, which holds no"):
        preflight(run_file(folder, f'run="{tmp_path}/run"', beside).training())
    plain = [
        f'data.prepared="{tmp_path}/two"',
        'data.source.columns={user="user", item="item"}',
        "data.feedback={likes_above=0.5}",
    ]
    with pytest.raises(ConfigError, match="no rating column"):
        prepare_preflight(run_file(folder, *rated, *plain).data)


def test_a_run_whose_unlabeled_entries_all_become_likes_is_stopped(trained, folder, tmp_path):
    base = '{name="multinomial", anneal_steps=10}'
    file = run_file(
        folder,
        f'run="{tmp_path}/run"',
        'model={name="mult_vae", hidden_width=8, latent_width=4}',
        f'objective={{name="inverse_dual_rows", base={base}, warmup_steps=0, '
        "collapse_factor=1e-9}",
        "train.num_workers=1",
    )
    with pytest.raises(
        DivergedError, match=r"the objective has collapsed.*raise objective\.warmup"
    ):
        launch(file.training())
