"""VAE-BMF through Ray Train: ranks, restarts, divergence, and equal ratings on every path."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from distrib.batch import Batch
from distrib.checkpoint.bundle import BundleFacts, load_bundle
from distrib.data.config import DataConfig
from distrib.data.dataset import Dataset
from distrib.data.feeds.tiles import TileConfig
from distrib.data.logs.config import Columns, CsvSource, SyntheticLog
from distrib.data.logs.rating_scale import RatingsConfig
from distrib.data.prepare.job import prepare
from distrib.data.splits.rules import NoSplit
from distrib.errors import ConfigError, DataError, DivergedError
from distrib.models import MultVaeConfig, VaeBmfConfig
from distrib.scoring.bulk.job import score
from distrib.scoring.bulk.new_items import require_extended
from distrib.scoring.policy import PolicyConfig, ScoreConfig
from distrib.scoring.scorer import Scorer
from distrib.storage import Folder
from distrib.training.optimizer import OptimizerConfig
from distrib.training.preflight.checks import check_run
from distrib.training.preflight.doctor import examine
from distrib.training.workers.launch import launch
from tests.training.test_launch import config_of, losses, only_checkpoint

pytestmark = pytest.mark.ray

COLUMNS = Columns(user="user", item="item", rating="rating", time="time")
MODEL = VaeBmfConfig(
    latent_width=8, branch_width=8, hidden_width=8, centering="means", input_dropout=0.2
)


@pytest.fixture(scope="module")
def both_sides(cluster, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("data"))
    source = SyntheticLog(num_users=600, num_items=60, num_interactions=9_000)
    prepare(DataConfig(prepared=folder, source=source, num_shards=3, item_histories=True))
    return folder


def blocks_of(run, prepared, order="nested", model=MODEL, **train):
    blocks = TileConfig(order=order, items=20, ratings=500)
    config = config_of(run, prepared, **{"batch_users": 150, "tiles": blocks} | train)
    fitting = {"model": model, "objective": model.spec.objective}
    return config.model_copy(update=fitting)


@pytest.fixture(scope="module")
def whole(both_sides, tmp_path_factory):
    """Three passes on two workers, undisturbed."""
    run = tmp_path_factory.mktemp("whole")
    return run, launch(blocks_of(run, both_sides))


def test_one_worker_gives_the_losses_of_two_and_a_restart_goes_on_bit_for_bit(
    both_sides, whole, tmp_path
):
    run, result = whole
    assert result.valid["rmse"] < 1.2
    assert result.speed.per_s > 0
    often = {"checkpoint": {"every_steps": 4, "keep": 99}}
    launch(blocks_of(tmp_path, both_sides, num_workers=1, **often))
    one = losses(tmp_path)
    np.testing.assert_allclose(one, losses(run), rtol=1e-4)
    only_checkpoint(tmp_path, 16)  # 12 tiles per epoch: within the second
    launch(blocks_of(tmp_path, both_sides, num_workers=1, **often))
    assert losses(tmp_path) == one
    only_checkpoint(tmp_path, 24)  # between the second and the third
    launch(blocks_of(tmp_path, both_sides, num_workers=1, **often))
    assert losses(tmp_path) == one


def test_the_printed_attention_diverges_and_is_told_what_it_is(both_sides, tmp_path):
    """At a rate at which softmax trains; also where all numbers stay finite."""
    adam = OptimizerConfig(name="adam", learning_rate=0.01)
    for norm in ("softmax", "linear"):
        model = MODEL.model_copy(update={"attention_norm": norm, "centering": "none"})
        run = tmp_path / norm
        often = {"num_epochs": 12, "engine": {"zero_stage": 0}, "checkpoint": {"every_epochs": 0}}
        config = blocks_of(run, both_sides, model=model, num_workers=1, **often)
        config = config.model_copy(update={"optimizer": adam})
        if norm == "softmax":
            assert launch(config).valid["rmse"] < 1.3  # the mean rating: 1.37
        else:
            with pytest.raises(DivergedError, match=r"attention_norm to softmax .* cross 0"):
                launch(config)


def test_bulk_scoring_returns_the_ratings_of_the_model_called_directly(both_sides, whole):
    run, _ = whole
    result = score(str(run), both_sides, ScoreConfig(k=5))
    model = load_bundle(Folder(str(run)) / "bundle").model
    scorer = Scorer.from_bundle(Folder(str(run)) / "bundle")
    manifest = Dataset.open(both_sides).manifest
    parts = Folder(result.output).files(".parquet")
    for part, shard in zip(parts, manifest.shards, strict=True):
        histories = pq.read_table(f"{both_sides}/{shard.name}").to_pylist()
        lists = pq.read_table(f"{result.output}/{part}").to_pylist()
        first, step = shard.shard, len(manifest.shards)
        for place, (history, found) in enumerate(zip(histories, lists, strict=True)):
            source = Batch.from_lists(
                [history["items"]], [history["ratings"]], [first + step * place]
            )
            position = torch.from_numpy(scorer.vocabulary.positions(pa.array(found["items"])))
            users = model.encode_users(source)
            mean = users.mean_BZ @ model.mean_IZ[position].T + users.offset_B
            rating = (mean + model.offset_I[position])[0]
            np.testing.assert_allclose(found["scores"], rating, rtol=1e-5, atol=1e-5)
            spread = (
                users.log_variance_BZ.exp()
                @ (model.variance_IZ + model.mean_IZ.square())[position].T
                + users.mean_BZ.square() @ model.variance_IZ[position].T
            )
            np.testing.assert_allclose(found["deviations"], spread[0].sqrt(), rtol=1e-4)


def test_an_item_that_came_after_training_is_recommended_by_its_ratings(tmp_path):
    log = tmp_path / "log"
    log.mkdir()
    rng = np.random.default_rng(0)
    lines = [
        f"{user},{item},{5 if item % 2 == user % 2 else 1},{time}"
        for time, (user, item) in enumerate(
            (user, item) for user in range(80) for item in rng.permutation(30)[:18]
        )
    ]
    (log / "0.csv").write_text("user,item,rating,time\n" + "\n".join(lines))
    folder, run = str(tmp_path / "data"), tmp_path / "run"
    data = DataConfig(
        prepared=folder,
        source=CsvSource(path=str(log), columns=COLUMNS),
        ratings=RatingsConfig(levels=(1.0, 5.0)),
        split=NoSplit(),
        item_histories=True,
        num_shards=2,
    )
    prepare(data)
    often = {"num_epochs": 24, "batch_users": 16, "checkpoint": {"every_epochs": 0}}
    launch(blocks_of(run, folder, num_workers=1, **often))
    # Item 100 comes after training; of those who rate it, half are new themselves.
    late = [f"{user},100,{5 if user % 2 == 0 else 1},9999" for user in range(60, 100)]
    (log / "1.csv").write_text("user,item,rating,time\n" + "\n".join(late))
    prepare(data.model_copy(update={"extend": True}))
    found = {}
    for new_items in (False, True):
        result = score(
            str(run),
            folder,
            ScoreConfig(k=31, new_items=new_items, policy=PolicyConfig(exclude_seen=False)),
        )
        found[new_items] = pq.read_table(result.output).to_pylist()
    assert not any("100" in row["items"] for row in found[False])
    rating = {int(row["user"]): row["ratings"][row["items"].index("100")] for row in found[True]}
    loves = [rating[user] for user in range(0, 60, 2)]
    hates = [rating[user] for user in range(1, 60, 2)]
    assert min(loves) > max(hates)
    with pytest.raises(DataError, match="is not the data that the model was trained on"):
        require_extended(BundleFacts(), Folder(folder))


def test_the_doctor_tries_blocks(both_sides, tmp_path):
    estimate = examine(blocks_of(tmp_path, both_sides)).estimate
    assert estimate["steps an epoch"] == 12


def test_what_blocks_do_not_go_with_is_refused(both_sides, tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)feed = 'streaming'.*micro_batch_users = 5"):
        check_run(
            blocks_of(tmp_path, both_sides, feed="streaming", engine={"micro_batch_users": 5})
        )
    with pytest.raises(ConfigError, match=r"\[train\.tiles\] with model 'mult_vae'"):
        check_run(config_of(tmp_path, both_sides, "mult_vae", tiles=TileConfig(items=7)))
    assert MultVaeConfig().spec.scheme in ("user_rows", "closed_form")
