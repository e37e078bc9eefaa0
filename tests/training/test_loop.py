"""The loop and its feeds: who comes when, on how many ranks, and what a restart changes."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from distrib.checkpoint.state import SavedState, write_pieces
from distrib.data.dataset import Dataset, DatasetManifest, ShardEntry
from distrib.data.feeds.base import BatchSharding, ahead
from distrib.data.feeds.collate import gather
from distrib.data.feeds.resident import ResidentFeed
from distrib.data.feeds.sequences import SequenceFeed
from distrib.data.feeds.streaming import Shard, StreamingFeed
from distrib.data.schema import Role, Subset
from distrib.errors import CheckpointError, DataError
from distrib.models.sequential.config import SequenceConfig
from distrib.storage import Folder
from distrib.training.engines.local import LocalEngine
from distrib.training.loop import TrainState, run_epochs
from distrib.training.optimizer import OptimizerConfig
from distrib.training.schemes import iterative_scheme_of
from tests.conftest import rows_of
from tests.in_process import feed_of, run_of
from tests.training.engine_ranks import CASES, make_step


def resident(small, folder, sharding):
    del folder
    rows = rows_of(small.batch)
    return ResidentFeed(rows, rows, sharding)


def write_shards(small, folder, num_shards=5):
    """Lay the users out as prepare does, one in three of them held out for validation."""
    shards = []
    for shard in range(num_shards):
        users = list(range(shard, 37, num_shards))
        held_out = [user % 9 == 8 for user in users]
        roles = [
            [int(Role.VALID_TARGET if held else Role.INPUT)] * len(small.items[user])
            for user, held in zip(users, held_out, strict=True)
        ]
        subset = [int(Subset.VALID if held else Subset.TRAIN) for held in held_out]
        lists = {
            "items": pa.array([small.items[user] for user in users], pa.list_(pa.int32())),
            "ratings": pa.array([small.values[user] for user in users], pa.list_(pa.float32())),
            "roles": pa.array(roles, pa.list_(pa.int8())),
        }
        name = f"shard-{shard}.parquet"
        pq.write_table(pa.table({"subset": pa.array(subset, pa.int8()), **lists}), folder / name)
        content = (folder / name).read_bytes()
        entry = ShardEntry(
            name=name,
            sha256=hashlib.sha256(content).hexdigest(),
            bytes=len(content),
            shard=shard,
            users=len(users),
            interactions=sum(len(small.items[user]) for user in users),
            unseen_items=0,
            roles={},
            subsets={},
        )
        shards.append(Shard(entry, held_out.count(False)))
    return shards


def dataset_of(folder, shards):
    """A prepared folder of these shards, as far as feeds read it."""
    manifest = DatasetManifest.model_construct(
        recipe={"num_shards": len(shards)}, shards=tuple(shard.entry for shard in shards)
    )
    return Dataset(Folder(str(folder)), manifest)


def streaming(small, folder, sharding, window_users=12):
    shards = write_shards(small, folder)
    dataset = dataset_of(folder, shards)
    return StreamingFeed(dataset, shards, sharding, window_users=window_users)


FEEDS = {"resident": resident, "streaming": streaming}
every_feed = pytest.mark.parametrize("make_feed", FEEDS.values(), ids=FEEDS)


def users_of(feed, epoch, first_step=0):
    return [(b.inputs.user_B.tolist(), b.size) for b in feed.batches(epoch, first_step)]


@every_feed
def test_an_epoch_shows_every_user_once_in_an_order_of_its_own(make_feed, small, tmp_path):
    feed = make_feed(small, tmp_path, BatchSharding(8, 3, 0, 1))
    orders = [[u for users, _ in users_of(feed, epoch) for u in users] for epoch in range(2)]
    everyone = [user for user in range(37) if make_feed is resident or user % 9 != 8]
    assert sorted(orders[0]) == sorted(orders[1]) == everyone
    assert orders[0] != orders[1]
    assert [size for _, size in users_of(feed, 0)][:-1] == [8] * (feed.num_users // 8)


@every_feed
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_share_each_global_batch_without_dropping_anyone(
    make_feed, world_size, small, tmp_path
):
    whole = users_of(make_feed(small, tmp_path, BatchSharding(8, 3, 0, 1)), 0)
    ranks = [
        users_of(make_feed(small, tmp_path, BatchSharding(8, 3, rank, world_size)), 0)
        for rank in range(world_size)
    ]
    assert {len(batches) for batches in ranks} == {len(whole)}
    for step, (users, num_users) in enumerate(whole):
        assert {rank[step][1] for rank in ranks} == {num_users}
        assert sorted(u for rank in ranks for u in rank[step][0]) == sorted(users)


@every_feed
def test_an_epoch_can_be_entered_at_any_step(make_feed, small, tmp_path):
    feed = make_feed(small, tmp_path, BatchSharding(8, 3, 1, 2))
    whole = users_of(feed, 4)
    for step in range(len(whole) + 1):
        assert users_of(feed, 4, step) == whole[step:]


@every_feed
def test_a_batch_holds_its_users_histories(make_feed, small, tmp_path):
    for batch, *_ in make_feed(small, tmp_path, BatchSharding(8, 3, 0, 1)).batches(0):
        for place, user in enumerate(batch.user_B.tolist()):
            row = batch.slice(place, place + 1)
            assert row.item_N.tolist() == small.items[user]
            assert row.value_N.tolist() == small.values[user]


@every_feed
def test_each_validation_user_falls_to_one_rank(make_feed, small, tmp_path):
    found = []
    for rank in range(3):
        feed = make_feed(small, tmp_path, BatchSharding(8, 3, rank, 3))
        for rows, mine in feed.valid_parts():
            bounds = [(rows.pointer_P[row], rows.pointer_P[row + 1]) for row in mine]
            found += [rows.item_N[start:stop].tolist() for start, stop in bounds]
    asked = [u for u in range(37) if make_feed is resident or u % 9 == 8]
    assert sorted(found) == sorted(small.items[user] for user in asked)


def test_windows_hold_whole_shards_and_a_changed_shard_is_noticed(small, tmp_path):
    feed = streaming(small, tmp_path, BatchSharding(8, 3, 0, 1), window_users=1)
    first = users_of(feed, 0)[0][0]
    assert len({user % 5 for user in first}) <= 2  # a window is one shard of about seven
    wrong = [shard._replace(num_train=shard.num_train + 1) for shard in feed._shards]
    dataset = dataset_of(tmp_path, feed._shards)
    changed = StreamingFeed(dataset, wrong, BatchSharding(8, 3, 0, 1), window_users=9)
    with pytest.raises(DataError, match="when training began"):
        list(changed.batches(0))


def test_rows_on_a_device_give_the_same_batches(small):
    rows, sharding = rows_of(small.batch), BatchSharding(8, 3, 0, 2)
    on_device = ResidentFeed(rows, rows, sharding, torch.device("cpu"))
    for found, wanted in zip(
        on_device.batches(0), ResidentFeed(rows, rows, sharding).batches(0), strict=True
    ):
        for part, other in zip(found.inputs[:4], wanted.inputs[:4], strict=True):
            assert torch.equal(part, other)
            assert part.dtype == other.dtype
    assert torch.equal(gather(rows, np.array([5, 2]))[0].user_B, torch.tensor([5, 2]))


def test_ahead_keeps_order_and_passes_errors_on():
    def items():
        yield from range(5)
        raise DataError("sixth")

    coming = ahead(items(), 3)
    assert [next(coming) for _ in range(5)] == list(range(5))
    with pytest.raises(DataError, match="sixth"):
        next(coming)
    assert list(ahead(iter([]), 3)) == []


class Run:
    """A training run by hand, that can be stopped after any step and begun again elsewhere."""

    def __init__(self, case, feed):
        self.engine = LocalEngine(make_step(case), OptimizerConfig())
        self.feed, self.state, self.losses = feed, TrainState(seed=0), []

    def train(self, num_epochs, until_step=10**9):
        def on_step(state, update):
            self.losses.append({name: float(term) for name, term in update.terms.items()})
            return state.step < until_step

        run_epochs(
            self.state,
            self.engine,
            self.feed,
            num_epochs=num_epochs,
            on_step=on_step,
            on_epoch=lambda _state: True,
        )

    def save(self, folder):
        folder.mkdir()
        write_pieces(folder / "state.safetensors", self.engine.pieces())
        (folder / "position.json").write_text(json.dumps(self.state.position()))

    def load(self, folder):
        self.engine.restore(SavedState(folder), {})
        self.state.go_to(json.loads((folder / "position.json").read_text()))


@every_feed
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("step", [1, 5, 7, 10])
def test_stopping_after_any_step_and_going_on_changes_nothing(
    case, make_feed, step, small, tmp_path
):
    feed = make_feed(small, tmp_path, BatchSharding(8, 3, 0, 1))
    model, objective = CASES[case]
    if model.spec.scheme == "pairs":
        if make_feed is streaming:
            pytest.skip("pairs are drawn from all histories")
        run = run_of(model, objective, batch_users=64)
        feed = feed_of(iterative_scheme_of(run), run, small)
    if isinstance(model, SequenceConfig):
        feed = SequenceFeed(feed, model.max_length, every=model.every)
    whole, first, second = (Run(case, feed) for _ in range(3))
    whole.train(4)
    first.train(4, until_step=step)
    first.save(tmp_path / "saved")
    second.load(tmp_path / "saved")
    second.train(4)
    assert len(first.losses) == step
    assert first.losses + second.losses == whole.losses
    for name, tensor in whole.engine.weights().items():
        assert torch.equal(tensor, second.engine.weights()[name]), name


def test_a_state_of_another_model_is_refused(small, tmp_path):
    run = Run("mult_vae", resident(small, tmp_path, BatchSharding(8, 3, 0, 1)))
    run.save(tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"value of \w+: the checkpoint holds 0 of"):
        Run("conv4rec", run.feed).load(tmp_path / "saved")


def test_a_listener_can_end_training(small, tmp_path):
    run = Run("mult_vae", resident(small, tmp_path, BatchSharding(8, 3, 0, 1)))
    run_epochs(
        run.state,
        run.engine,
        run.feed,
        num_epochs=9,
        on_step=lambda _state, _update: True,
        on_epoch=lambda state: state.epoch < 3,
    )
    assert run.state.epoch == 3


def test_histories_that_are_cut_are_counted_once(small, tmp_path, capfd):
    feed = SequenceFeed(resident(small, tmp_path, BatchSharding(8, 3, 0, 1)), 5, every=True)
    targets = sum(batch.target.num_users for batch in feed.batches(0))
    event = json.loads(capfd.readouterr().err)
    lengths = [len(items) for items in small.items]
    assert event["users"] == sum(length > 6 for length in lengths)
    assert event["oldest_interactions_not_read"] == sum(max(n - 6, 0) for n in lengths)
    assert targets == sum(min(n, 6) - (n > 6) for n in lengths)
    list(feed.batches(1))
    assert not capfd.readouterr().err
