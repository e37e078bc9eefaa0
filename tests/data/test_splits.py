import numpy as np
import pyarrow as pa
import pytest

from distrib.data import splits
from distrib.data.schema import Role, Subset
from distrib.errors import DataError


def pairs(num_users=300, num_items=40, kind="int64"):
    users = np.repeat(np.arange(num_users), num_items)
    items = np.tile(np.arange(num_items), num_users)
    return pa.array(users).cast(kind), pa.array(items).cast(kind)


@pytest.mark.parametrize("kind", ["int64", "string"])
def test_entrywise_roles_have_their_shares_and_do_not_depend_on_order(kind):
    users, items = pairs(kind=kind)
    split = splits.EntrywiseSplit()
    subset = np.zeros(len(users), np.int8)
    roles = splits.roles(users, items, subset, split)
    shares = [(roles == role).mean() for role in Role]
    assert shares == pytest.approx([0.7, 0.15, 0.15], abs=0.015)  # 12,000 draws
    order = np.random.default_rng(0).permutation(len(users))
    moved = splits.roles(users.take(pa.array(order)), items.take(pa.array(order)), subset, split)
    np.testing.assert_array_equal(moved, roles[order])
    other = splits.roles(users, items, subset, split.model_copy(update={"seed": 1}))
    assert (other != roles).mean() > 0.3


def test_strong_generalisation_holds_out_exactly_the_users_and_shares_wanted():
    users, items = pairs()
    split = splits.StrongGeneralisationSplit(valid_users=50, test_users=70)
    everyone = splits.user_hash(pa.array(np.arange(300)), split)
    limits = splits.subset_limits(split, everyone)
    subset = splits.subsets(everyone, limits)
    assert [(subset == s).sum() for s in (Subset.TRAIN, Subset.VALID, Subset.TEST)] == [180, 50, 70]
    subset_N = subset[users.to_numpy()]
    roles = splits.roles(users, items, subset_N, split).reshape(300, 40)
    assert (roles[subset == Subset.TRAIN] == Role.INPUT).all()
    assert ((roles[subset == Subset.VALID] == Role.VALID_TARGET).sum(1) == 8).all()
    assert ((roles[subset == Subset.TEST] == Role.TEST_TARGET).sum(1) == 8).all()
    assert not (roles[subset == Subset.VALID] == Role.TEST_TARGET).any()


def test_short_histories_are_asked_nothing():
    users, items = pairs(num_users=100, num_items=4)
    split = splits.StrongGeneralisationSplit(valid_users=30, test_users=30)
    subset_N = np.full(len(users), Subset.TEST, np.int8)
    assert (splits.roles(users, items, subset_N, split) == Role.INPUT).all()


def test_too_many_held_out_users_are_refused():
    split = splits.StrongGeneralisationSplit(valid_users=5, test_users=5)
    with pytest.raises(DataError, match="holds out 10 users, but only 10 are left"):
        splits.subset_limits(split, np.arange(10, dtype=np.uint64))


def test_hashes_are_the_same_on_every_machine():
    """These numbers may never change: prepared data and their splits would no longer fit."""
    ints = splits.hash_ids(pa.array([1, 2]), use=1, seed=0).tolist()
    texts = splits.hash_ids(pa.array(["a", "b"]), use=1, seed=0).tolist()
    assert ints == [9716232063330790915, 13608149317741381227]
    assert texts == [4697957398050076420, 7661748695464845643]
