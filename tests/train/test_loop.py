import numpy as np

from distrib.data.collate import Rows
from distrib.data.feed import Feed
from distrib.train.engine import LocalEngine
from distrib.train.loop import TrainState, run_epochs
from distrib.train.optimizer import OptimizerConfig
from tests.train.engine_ranks import make_step


def rows_of(small):
    batch = small.batch
    return Rows(
        np.arange(37),
        batch.pointer_P.numpy(),
        batch.item_N.numpy().astype(np.int32),
        batch.value_N.numpy(),
        np.zeros(len(batch.item_N), np.int8),
    )


def feed_of(small, rank=0, world_size=1):
    return Feed(rows_of(small), batch_users=8, seed=3, rank=rank, world_size=world_size)


def train(small, epochs, engine=None, state=None):
    engine = engine or LocalEngine(make_step("mult_vae"), OptimizerConfig())
    state = state or TrainState(seed=0)
    found = []
    run_epochs(
        state,
        engine,
        feed_of(small),
        num_epochs=epochs,
        on_step=lambda _state, terms: found.append(sum(float(term) for term in terms.values())),
        on_epoch=lambda _state: True,
    )
    return found, engine, state


def test_stopping_after_an_epoch_and_going_on_changes_nothing(small):
    whole, _, _ = train(small, 4)
    first, engine, state = train(small, 2)
    second, _, _ = train(small, 4, engine, state)
    assert first + second == whole
    assert state.step == 4 * 5


def test_an_epoch_shows_every_user_once_in_an_order_of_its_own(small):
    orders = []
    for epoch in range(2):
        users = [b.batch.user_B for b in feed_of(small).batches(epoch)]
        orders.append(np.concatenate([u.numpy() for u in users]).tolist())
        assert sorted(orders[-1]) == list(range(37))
    assert orders[0] != orders[1]


def test_ranks_share_each_global_batch_without_dropping_anyone(small):
    whole = list(feed_of(small).batches(0))
    for world_size in (2, 3, 7):
        ranks = [list(feed_of(small, rank, world_size).batches(0)) for rank in range(world_size)]
        assert {len(batches) for batches in ranks} == {len(whole)}
        for step, (batch, num_users) in enumerate(whole):
            parts = [rank[step] for rank in ranks]
            assert {part.num_users for part in parts} == {num_users}
            joined = [user for part in parts for user in part.batch.user_B.tolist()]
            assert joined == batch.user_B.tolist()


def test_a_listener_can_end_training(small):
    engine = LocalEngine(make_step("mult_vae"), OptimizerConfig())
    state = TrainState(seed=0)
    run_epochs(
        state,
        engine,
        feed_of(small),
        num_epochs=9,
        on_step=lambda _state, _terms: None,
        on_epoch=lambda state: state.epoch < 3,
    )
    assert state.epoch == 3
