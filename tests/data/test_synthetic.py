import numpy as np
import pytest

from distrib.data.logs.synthetic import SyntheticSource, SyntheticWorld
from distrib.errors import DataError

SOURCE = SyntheticSource(num_users=4096, num_items=60, num_interactions=40_000)


@pytest.fixture(scope="module")
def world():
    return SyntheticWorld(SOURCE)


def test_the_same_seed_draws_the_same_log_and_another_one_another(world):
    first, again = world.draw(0), SyntheticWorld(SOURCE).draw(0)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    other = SyntheticWorld(SOURCE.model_copy(update={"seed": 1})).draw(0)
    assert not np.array_equal(first.item_N[:1000], other.item_N[:1000])


def test_what_is_drawn_follows_the_true_probabilities(world):
    drawn = world.draw(0)
    true_BIC = world.probability(np.arange(4096), np.arange(60))
    np.testing.assert_allclose(true_BIC.sum(-1), 1.0)
    counts_IL = np.zeros((60, 5))
    np.add.at(counts_IL, (drawn.item_N, drawn.rating_N.astype(int) - 1), 1)
    expected_IL = true_BIC[..., 1:].sum(0)
    variance_IL = (true_BIC[..., 1:] * (1 - true_BIC[..., 1:])).sum(0)
    deviations = (counts_IL - expected_IL) / np.sqrt(variance_IL)
    assert abs(deviations).max() < 5  # 300 counts, each within five standard deviations
    assert 0.8 < deviations.std() < 1.2
    by_user = np.bincount(drawn.user_N, minlength=4096) - true_BIC[..., 1:].sum((1, 2))
    assert 0.9 < (by_user / np.sqrt((true_BIC[..., 0] * (1 - true_BIC[..., 0])).sum(1))).std() < 1.1


def test_no_pair_comes_twice_and_the_length_is_as_wanted(world):
    drawn = world.draw(0)
    assert len(np.unique(drawn.user_N * 60 + drawn.item_N)) == len(drawn.item_N)
    assert len(drawn.item_N) == pytest.approx(40_000, rel=0.05)


def test_probabilities_belong_to_the_pair_not_to_the_question(world):
    whole = SyntheticWorld(SOURCE.model_copy(update={"num_users": 9000}))
    users, items = np.array([8000, 3, 4097]), np.array([50, 2])
    both = whole.probability(users, items)
    alone = whole.probability(np.array([4097]), np.array([2]))
    np.testing.assert_array_equal(both[2, 1], alone[0, 0])


def test_a_log_that_does_not_fit_is_refused():
    with pytest.raises(DataError, match="num_interactions = 601 does not fit"):
        SyntheticWorld(SyntheticSource(num_users=10, num_items=60, num_interactions=601)).draw(0)
