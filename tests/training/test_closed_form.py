"""Models that are computed at once, from shards on the cluster; and training on rows of items."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from distrib.batch import Batch
from distrib.checkpoint.bundle import BUNDLE, load_bundle
from distrib.config import load, unsealed
from distrib.data.config import DataConfig
from distrib.data.dataset import Dataset
from distrib.data.feeds.base import BatchSharding
from distrib.data.feeds.loader import load_training_data
from distrib.data.logs.config import SyntheticLog
from distrib.data.logs.formats.delimited import CsvSource
from distrib.data.prepare.job import prepare
from distrib.data.splits.rules import GlobalTimeSplit, NoSplit
from distrib.errors import ConfigError
from distrib.evaluation.config import EvaluateConfig
from distrib.evaluation.job import evaluate
from distrib.models import AutoRecConfig, EaseConfig, ItemKnnConfig, MultVaeConfig, PopularityConfig
from distrib.models.shallow.popularity import Popularity
from distrib.objectives import CosineConfig, MultinomialConfig
from distrib.run_file import RunFile
from distrib.scoring.bulk.job import score
from distrib.scoring.policy import ScoreConfig
from distrib.scoring.scorer import Scorer
from distrib.storage import Folder
from distrib.training.config import TrainConfig, TrainingRun
from distrib.training.engines.config import EngineConfig
from distrib.training.optimizer import OptimizerConfig
from distrib.training.preflight.checks import preflight
from distrib.training.run_folder import HISTORY
from distrib.training.workers.launch import launch

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def prepared(cluster, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("data"))
    source = SyntheticLog(num_users=1500, num_items=60, num_interactions=20_000)
    prepare(DataConfig(prepared=folder, source=source, num_shards=3, item_histories=True))
    return folder


def config_of(run, prepared, model, **settings):
    objective = settings.pop("objective", model.spec.objective)
    return TrainingRun(
        run=str(run),
        prepared=prepared,
        seed=0,
        model=model,
        objective=objective,
        optimizer=OptimizerConfig(name="adam", learning_rate=0.003),
        engine=EngineConfig(precision="fp32"),
        train=TrainConfig(**settings),
        evaluate=EvaluateConfig(),
    )


def multi_hot(prepared):
    manifest = Dataset.open(prepared).manifest
    x_UI = np.zeros((manifest.counts.training_users, len(Dataset.open(prepared).vocabulary)))
    first = 0
    for entry in manifest.shards:
        train = Dataset.open(prepared).training(entry)
        row_N = np.repeat(np.arange(train.num_users), np.diff(train.pointer_P))
        x_UI[first + row_N, train.item_N] = 1.0
        first += train.num_users
    return x_UI


def test_ease_from_shards_equals_a_plain_solution_and_is_solved_once(prepared, tmp_path):
    config = config_of(tmp_path / "run", prepared, EaseConfig(penalty=20.0))
    reported = []
    result = launch(config, reported.append)
    assert result.valid == reported[0].valid
    assert result.valid["recall@20"] > 0.3
    x_UI = multi_hot(prepared)
    p_II = np.linalg.inv(x_UI.T @ x_UI + 20.0 * np.eye(x_UI.shape[1]))
    wanted = -p_II / np.diag(p_II)
    np.fill_diagonal(wanted, 0.0)
    model = load_bundle(Folder(str(tmp_path / "run")) / BUNDLE).model
    np.testing.assert_allclose(model.weight_II.numpy(), wanted, atol=1e-6)
    before = (tmp_path / "run" / HISTORY).stat().st_mtime_ns
    assert launch(config).valid == result.valid
    assert (tmp_path / "run" / HISTORY).stat().st_mtime_ns == before
    measured = evaluate(str(tmp_path / "run"), prepared, EvaluateConfig()).metrics
    assert measured["model"]["ndcg@100"].mean > measured["popularity"]["ndcg@100"].mean
    with pytest.raises(ConfigError, match=r"model\.penalty: 20\.0 there, 5\.0 now"):
        launch(config_of(tmp_path / "run", prepared, EaseConfig(penalty=5.0)))


def test_popularity_is_a_model_like_others(prepared, tmp_path):
    launch(config_of(tmp_path / "run", prepared, PopularityConfig()))
    bundle = load_bundle(Folder(str(tmp_path / "run")) / BUNDLE)
    counted = Popularity(Dataset.open(prepared).vocabulary.catalog)
    assert torch.equal(bundle.model.logit_IC, counted.logit_IC)


def logged(tmp_path, has_time):
    """A log in which item 1 was popular long ago, and item 2 is now; item 3 is held out."""
    day = 86_400
    rows = [(user, 1, 10 * day + user) for user in range(20)]
    rows += [(user, 2, 60 * day + user) for user in range(9)]
    rows += [(user, 3, 80 * day + user) for user in range(15)]
    path = tmp_path / "log.csv"
    path.write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    columns = {"user": "user", "item": "item", **({"time": "time"} if has_time else {})}
    split = GlobalTimeSplit(valid_from=70 * day, test_from=75 * day) if has_time else NoSplit()
    source = CsvSource(path=str(path), columns=columns)
    folder = str(tmp_path / "prepared")
    prepare(DataConfig(prepared=folder, source=source, num_shards=2, split=split))
    return folder


def test_popularity_of_the_last_days_counts_no_others_and_nothing_held_out(cluster, tmp_path):
    folder = logged(tmp_path, has_time=True)
    for days, wanted in ((7.0, [1, 0, 2]), (None, [0, 1, 2]), (51.0, [0, 1, 2])):
        run = tmp_path / f"run-{days}"
        launch(config_of(run, folder, PopularityConfig(window_days=days)))
        scorer = Scorer.from_bundle(Folder(str(run)) / BUNDLE)
        found = scorer.recommend(Batch.from_lists([[]], [[]]), None, 3)
        assert found.item_BK[0].tolist() == wanted


def test_recent_popularity_in_a_table_is_that_of_the_days_before_testing(cluster, tmp_path):
    day = 86_400
    rows = [(user, 1, 10 * day + user) for user in range(20)]
    rows += [(user, 2, 60 * day + user) for user in range(9)]  # the last days of training
    rows += [(user, 3, 72 * day + user) for user in range(5)]  # of validation
    rows += [(user, 3, 80 * day + user) for user in range(10, 15)]  # to be found in testing
    path = tmp_path / "log.csv"
    path.write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    source = CsvSource(path=str(path), columns={"user": "user", "item": "item", "time": "time"})
    split, folder = GlobalTimeSplit(valid_from=70 * day, test_from=75 * day), str(tmp_path / "data")
    prepare(DataConfig(prepared=folder, source=source, num_shards=2, split=split))
    launch(config_of(tmp_path / "run", folder, PopularityConfig()))
    found = {}
    for days in (7.0, 1000.0):
        config = EvaluateConfig(mrr_at=(3,), recent_days=days)
        metrics = evaluate(str(tmp_path / "run"), folder, config).metrics
        found[days] = {name: values["mrr@3"].mean for name, values in metrics.items()}
    # Users 10 to 14 have met item 1 only, so that items 2 and 3 are left.
    assert found[7.0] == {"model": 0.5, "popularity": 0.5, "recent_popularity": 1.0}
    assert found[1000.0]["recent_popularity"] == 0.5


def test_a_window_needs_times(cluster, tmp_path):
    folder = logged(tmp_path, has_time=False)
    run = config_of(tmp_path / "run", folder, PopularityConfig(window_days=7.0))
    with pytest.raises(ConfigError, match="log has no times; remove it, or set"):
        preflight(run)


def test_item_autorec_trains_on_rows_of_items_and_every_way_of_scoring_agrees(prepared, tmp_path):
    model = AutoRecConfig(side="items", hidden_width=8)
    config = config_of(tmp_path / "run", prepared, model, num_epochs=2, batch_users=7)
    result = launch(config)
    assert result.valid["rmse"] < 1.4
    run = str(tmp_path / "run")
    measured = evaluate(run, prepared, EvaluateConfig()).metrics["model"]
    assert measured["rmse"].mean == pytest.approx(result.valid["rmse"], abs=0.1)
    written = score(run, prepared, ScoreConfig(k=5, output=str(tmp_path / "lists")))
    lists = Folder(written.output)
    table = lists.read_parquet(lists.files(".parquet")[1]).to_pylist()
    dataset = Dataset.open(prepared)
    train = dataset.training(dataset.manifest.shards[1])
    scorer = Scorer.from_bundle(Folder(run) / BUNDLE)
    number = int(train.number_B[4])  # a user in its shard, known by number
    weight, bias = scorer.model.weight_UZ[number], scorer.model.bias_U[number]
    row = table[(number - 1) // 3]
    places = scorer.vocabulary.ids.to_pylist()
    wanted = [float(scorer.model.code_IZ[places.index(i)] @ weight + bias) for i in row["items"]]
    assert row["scores"] == pytest.approx(wanted, rel=1e-4)
    assert set(row) == {"user", "history_digest", "items", "scores", "ratings"}


def test_rows_of_items_are_the_transposed_rows_of_users(prepared):
    by_item = {}
    for kind in ("resident", "streaming"):
        source = load_training_data(prepared, kind, "items")
        feed = source.open_rows(BatchSharding(7, 0, 0, 1), window_users=20)
        found = {}
        for batch, *_ in feed.batches(0):
            for row, item in enumerate(batch.user_B.tolist()):
                part = slice(batch.pointer_P[row], batch.pointer_P[row + 1])
                assert item not in found
                found[item] = dict(
                    zip(batch.item_N[part].tolist(), batch.value_N[part].tolist(), strict=True)
                )
        by_item[kind] = found
        valid = sum(len(mine) for _, mine in feed.valid_parts())
        assert valid == source.num_valid > 0
    assert by_item["resident"] == by_item["streaming"]
    cells = {}
    for entry in Dataset.open(prepared).manifest.shards:
        train = Dataset.open(prepared).training(entry)
        user_N = np.repeat(train.number_B, np.diff(train.pointer_P))
        for user, item, value in zip(user_N, train.item_N, train.value_N, strict=True):
            cells.setdefault(int(item), {})[int(user)] = float(value)
    assert by_item["resident"] == cells


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (EaseConfig(), {"objective": MultinomialConfig()}, "nothing is minimized; remove it"),
        (ItemKnnConfig(), {"use_gpu": True}, "it is computed on CPUs"),
        (MultVaeConfig(), {"objective": CosineConfig()}, "tied weights"),
        (AutoRecConfig(side="users"), {"objective": MultinomialConfig()}, "outputs ratings, but"),
        (AutoRecConfig(), {"warm_start": "elsewhere"}, "parameters for each user"),
        (
            MultVaeConfig(),
            {"warm_start": "elsewhere", "select_by": ("rmse",)},
            r"(?s)2 fault.*names \['rmse'\].*elsewhere/bundle",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(model, settings, message, prepared, tmp_path):
    with pytest.raises(ConfigError, match=message):
        preflight(config_of(tmp_path / "run", prepared, model, **settings))


def test_data_that_lack_what_a_model_reads_are_refused(prepared, tmp_path):
    manifest = unsealed(Folder(prepared).read_json("manifest.json"), prepared)
    config = config_of(tmp_path / "run", str(tmp_path / "data"), AutoRecConfig())
    for change, message in (
        ({"item_histories": None}, "set data.item_histories = true"),
        ({"levels": [1.0]}, "holds interactions without ratings"),
    ):
        lacking = {k: v for k, v in (manifest | change).items() if v is not None}
        Folder(config.prepared).write("manifest.json", json.dumps(lacking).encode())
        with pytest.raises(ConfigError, match=message):
            preflight(config)


@pytest.mark.slow
def test_ease_on_real_data_equals_a_plain_solution(cluster, real_data, tmp_path):
    environment = {"DISTRIB_DATA": str(real_data)}
    places = [f'run="{tmp_path}/run"', f'data.prepared="{tmp_path}/data"', "data.num_shards=1"]
    file = load(RunFile, ROOT / "configs/ml1m_ease.toml", overrides=places, environment=environment)
    manifest = prepare(file.data)
    launch(file.training())
    train = Dataset.open(file.data.prepared).training(manifest.shards[0])
    x_UI = np.zeros((train.num_users, manifest.counts.items))
    x_UI[np.repeat(np.arange(train.num_users), np.diff(train.pointer_P)), train.item_N] = 1.0
    p_II = np.linalg.inv(x_UI.T @ x_UI + file.model.penalty * np.eye(x_UI.shape[1]))
    wanted = -p_II / np.diag(p_II)
    np.fill_diagonal(wanted, 0.0)
    model = load_bundle(Folder(f"{tmp_path}/run") / BUNDLE).model
    np.testing.assert_allclose(model.weight_II.numpy(), wanted, atol=1e-6)
