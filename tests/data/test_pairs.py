"""Feeds of labeled pairs, and the items sampled for them."""

import numpy as np
import pytest
import torch

from distrib.data.feeds.base import BatchSharding, ResidentRows
from distrib.data.feeds.epoch_order import LazyOrder
from distrib.data.feeds.negatives import UnlabeledSampler
from distrib.data.feeds.pairs import PairFeed, Phase, labeled_places
from distrib.data.history_arrays import HistoryArrays, empty_like
from distrib.feedback import Feedback
from distrib.rng import CounterRng
from tests.conftest import rows_of


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 17, 1000, 4097])
def test_a_lazy_order_is_a_permutation_that_can_be_read_in_parts(count):
    order = LazyOrder(count, 0, 1)
    whole = order.part(0, count)
    assert sorted(whole.tolist()) == list(range(count))
    parts = [order.part(start, start + 7) for start in range(0, count, 7)]
    assert np.array_equal(np.concatenate([np.zeros(0, np.int64), *parts]), whole)


def test_a_lazy_order_depends_on_its_keys_and_mixes():
    first, second = (LazyOrder(10_000, 0, epoch).part(0, 10_000) for epoch in (0, 1))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, LazyOrder(10_000, 0, 0).part(0, 10_000))
    for found in (first, second):  # about as far from sorted as numpy's own permutations
        assert abs(np.corrcoef(found, np.arange(10_000))[0, 1]) < 0.05
        assert (np.diff(found) > 0).mean() == pytest.approx(0.5, abs=0.03)
    place_E = [int(np.flatnonzero(LazyOrder(50, seed).part(0, 50) == 3)[0]) for seed in range(2000)]
    counts = np.bincount(place_E, minlength=50)
    assert ((counts - 40) ** 2 / 40).sum() < 49 + 4 * 98**0.5  # chi-square, mean 49


def resident(small, feedback=None):
    rows = rows_of(small.batch)
    columns = (small.catalog.item_count, small.catalog.user_index_size)
    return ResidentRows(rows, rows, empty_like(rows), columns, feedback)


def drawn(sampler, rows, num=4, epoch=0):
    row_M = np.repeat(np.arange(rows.num_users), np.diff(rows.pointer_P))
    items = rows.item_N.astype(np.int64)
    return row_M, sampler.draw(CounterRng.of(0, epoch), row_M, rows.number_B[row_M], items, num)


@pytest.mark.parametrize("power", [0.0, 0.75])
def test_no_sampled_item_has_a_training_interaction(small, power):
    rows = rows_of(small.batch)
    sampler = UnlabeledSampler(rows, 50, power)
    row_M, found = drawn(sampler, rows)
    known = set(zip(row_M.tolist(), rows.item_N.tolist(), strict=True))
    assert ((found >= 0) & (found < 50)).all()
    pairs = zip(np.repeat(row_M, 4).tolist(), found.reshape(-1).tolist(), strict=True)
    assert not known & set(pairs)


def test_a_draw_depends_on_epoch_user_and_item_alone(small):
    rows = rows_of(small.batch)
    sampler = UnlabeledSampler(rows, 50, 0.0)
    row_M, found = drawn(sampler, rows)
    user, item = rows.number_B[row_M[100:101]], rows.item_N[100:101].astype(np.int64)
    alone = sampler.draw(CounterRng.of(0, 0), row_M[100:101], user, item, 4)
    assert np.array_equal(alone[0], found[100])
    assert not np.array_equal(drawn(sampler, rows, epoch=1)[1], found)
    assert len({tuple(row) for row in found.tolist()}) > len(found) // 2


def test_items_are_drawn_evenly_or_by_their_interactions():
    """One user without history; item i has i interactions of other users."""
    items = np.concatenate([np.full(count, item) for item, count in enumerate(range(10))])
    rows = HistoryArrays(
        np.arange(len(items) + 1),
        np.concatenate([[0], np.arange(len(items) + 1)]),
        items.astype(np.int32),
        np.ones(len(items), np.float32),
        np.zeros(len(items), np.int8),
    )
    for power, mass in [(0.0, np.ones(10)), (1.0, np.arange(1.0, 11.0))]:
        sampler = UnlabeledSampler(rows, 10, power)
        keys = np.zeros(1, np.int64)
        found = sampler.draw(CounterRng.of(0, 0), keys, keys, keys, 20_000)
        share = np.bincount(found[0], minlength=10) / 20_000
        np.testing.assert_allclose(share, mass / mass.sum(), atol=0.012)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_user_who_knows_nearly_everything_gets_the_rest_and_one_who_knows_all_nothing(power):
    everything = np.arange(200, dtype=np.int32)
    rows = HistoryArrays(
        np.arange(2),
        np.array([0, 198, 398]),
        np.concatenate([everything[2:], everything]),
        np.ones(398, np.float32),
        np.zeros(398, np.int8),
    )
    sampler = UnlabeledSampler(rows, 200, power)
    keys = np.arange(2)
    found = sampler.draw(CounterRng.of(0, 0), keys, keys, keys, 400)
    assert {*found[0].tolist()} == {0, 1}
    assert {*found[1].tolist()} == {-1}


def test_a_batch_holds_labeled_pairs_and_their_samples(small):
    feedback = Feedback(3.0, 2.0)
    rows = resident(small, feedback)
    phases = [Phase(labeled_places(rows), 2)]
    feed = PairFeed(rows, BatchSharding(16, 0, 0, 1), phases, 0.0)
    seen = []
    for batch in feed.batches(0):
        target = batch.target
        assert torch.equal(batch.inputs.users.user_B, target.user_B)
        assert target.length_B.tolist() == [3] * target.num_users
        assert batch.size == 3 * target.num_users
        values = target.value_N.view(-1, 3)
        assert not values[:, 0].isnan().any()
        assert values[:, 1:].isnan().all()
        items = target.item_N.view(-1, 3)[:, 0]
        seen += list(
            zip(target.user_B.tolist(), items.tolist(), values[:, 0].tolist(), strict=True)
        )
    sign_N = feedback.sign(small.batch.value_N)
    labeled = small.batch.keep(sign_N != 0)
    users, items = labeled.user_B[labeled.row_N].tolist(), labeled.item_N.tolist()
    assert sorted(seen) == sorted(zip(users, items, labeled.value_N.tolist(), strict=True))


def test_without_feedback_every_interaction_is_a_like(small):
    assert len(labeled_places(resident(small))) == len(small.batch.item_N)
