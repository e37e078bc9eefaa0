from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.data.dataset import Recipe
from distrib.data.hashing import hash_ids
from distrib.data.prepare.quantile import added, digit_counts, smallest
from distrib.data.schema import Role, Subset, interactions
from distrib.data.splits import rules as splits
from distrib.data.splits.liang_2018 import held_out, require_published, with_targets
from distrib.data.splits.rules import SplitState
from distrib.errors import DataError


def rows(users, items, times=None, kind="int64", origins=None):
    """Interactions as passes hand them on: ordered by user, time and item."""
    count = len(users)
    columns = {
        "user": pa.array(users).cast(kind),
        "item": pa.array(items).cast(kind),
        "rating": np.ones(count, np.float32),
        "time": np.asarray(times if times is not None else np.zeros(count), np.int64),
        "status": np.zeros(count, np.int8),
        "origin": np.asarray(origins if origins is not None else np.zeros(count), np.int8),
        "shard": np.zeros(count, np.int32),
    }
    table = pa.table(columns, schema=interactions(columns["user"].type))
    return table.sort_by([("user", "ascending"), ("time", "ascending"), ("item", "ascending")])


def grid(num_users=300, num_items=40, kind="int64"):
    return rows(
        np.repeat(np.arange(num_users), num_items),
        np.tile(np.arange(num_items), num_users),
        kind=kind,
    )


def split_state(table, split):
    ranks = splits.limit_ranks(split, len(table))
    keys = splits.limit_keys(table, split)
    found = smallest(ranks, lambda prefixes, shift: digit_counts(keys, prefixes, shift))
    return SplitState(tuple(found))


@pytest.mark.parametrize("kind", ["int64", "string"])
def test_entrywise_roles_have_their_shares_and_do_not_depend_on_order(kind):
    table = grid(kind=kind)
    split = splits.EntrywiseSplit()
    _, roles = splits.assign(table, split, SplitState())
    shares = [(roles == role).mean() for role in (Role.INPUT, Role.VALID_TARGET, Role.TEST_TARGET)]
    assert shares == pytest.approx([0.7, 0.15, 0.15], abs=0.015)  # 12,000 draws
    order = pa.array(np.random.default_rng(0).permutation(len(table)))
    _, moved = splits.assign(table.take(order), split, SplitState())
    np.testing.assert_array_equal(moved, roles[order.to_numpy()])
    _, other = splits.assign(table, split.model_copy(update={"seed": 1}), SplitState())
    assert (other != roles).mean() > 0.3


def test_a_smaller_training_share_is_a_part_of_a_larger_and_the_rest_is_halved():
    """The sparsity study of VAE-BMF."""
    table, before = grid(), np.zeros(12_000, dtype=bool)
    for share in (0.01, 0.02, 0.03, 0.05, 0.1):
        _, roles = splits.assign(table, splits.EntrywiseSplit(train_share=share), SplitState())
        trains = roles == Role.INPUT
        assert trains.mean() == pytest.approx(share, abs=0.005)
        assert (roles == Role.VALID_TARGET).sum() == pytest.approx(
            (roles == Role.TEST_TARGET).sum(), rel=0.05
        )
        assert (before <= trains).all()
        before = trains


def test_exact_shares_hold_to_the_row():
    """Inverse Learning: 60/20/20 of ML-1M is 600,125, 200,042 and 200,042 rows."""
    split = splits.EntrywiseSplit(train_share=0.6, valid_share=0.2, exact=True)
    assert splits.limit_ranks(split, 1_000_209) == [600_125, 800_167]
    table = grid(num_users=7, num_items=11)
    _, roles = splits.assign(table, split, split_state(table, split))
    assert Counter(roles.tolist()) == {Role.INPUT: 46, Role.VALID_TARGET: 15, Role.TEST_TARGET: 16}


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=60),
    st.lists(st.integers(0, 59), min_size=1, max_size=3),
    st.integers(1, 5),
)
def test_selection_over_many_parts_is_that_of_the_whole(keys, ranks, num_parts):
    ranks = [rank % len(keys) for rank in ranks]
    parts = np.array_split(np.array(keys, dtype=np.uint64), num_parts)

    def count(prefixes, shift):
        return added([digit_counts(part, prefixes, shift) for part in parts])

    assert smallest(ranks, count) == [sorted(keys)[rank] for rank in ranks]


def test_strong_generalisation_holds_out_exactly_the_users_and_shares_wanted():
    table = grid()
    split = splits.StrongGeneralizationSplit(valid_users=50, test_users=70)
    everyone = splits.user_hash(pa.array(np.arange(300)), split)
    limits = splits.held_out_limits(split, np.sort(everyone)[:121])
    subset, roles = splits.assign(table, split, SplitState(limits))
    subset, roles = subset.reshape(300, 40)[:, 0], roles.reshape(300, 40)
    assert [(subset == s).sum() for s in (Subset.TRAIN, Subset.VALID, Subset.TEST)] == [180, 50, 70]
    assert (roles[subset == Subset.TRAIN] == Role.INPUT).all()
    assert ((roles[subset == Subset.VALID] == Role.VALID_TARGET).sum(1) == 8).all()
    assert ((roles[subset == Subset.TEST] == Role.TEST_TARGET).sum(1) == 8).all()
    assert not (roles[subset == Subset.VALID] == Role.TEST_TARGET).any()


def test_short_histories_are_asked_nothing():
    table = grid(num_users=100, num_items=4)
    split = splits.StrongGeneralizationSplit(valid_users=30, test_users=30)
    subset, roles = splits.assign(table, split, SplitState((2**64 - 1, 2**64 - 1)))
    assert (subset == Subset.TEST).all()
    assert (roles == Role.INPUT).all()


def test_too_many_held_out_users_are_refused():
    split = splits.StrongGeneralizationSplit(valid_users=5, test_users=5)
    with pytest.raises(DataError, match="holds out 10 users, but only 10 are left"):
        splits.held_out_limits(split, np.arange(10, dtype=np.uint64))


def plain_liang(log, num_held_out, min_items=5, share=0.2, seed=98765):
    """The recipe as one reads it, with pandas on one machine; returns roles by (user, item)."""
    users = np.sort(log["user"].unique())
    np.random.seed(seed)  # noqa: NPY002  the source's generator
    shuffled = users[np.random.permutation(len(users))]  # noqa: NPY002
    train_users = shuffled[: -2 * num_held_out]
    groups = {
        Role.VALID_TARGET: shuffled[-2 * num_held_out : -num_held_out],
        Role.TEST_TARGET: shuffled[-num_held_out:],
    }
    known = set(log[log["user"].isin(train_users)]["item"])
    roles = {}
    for role, held in groups.items():
        part = log[log["user"].isin(held) & log["item"].isin(known)]
        np.random.seed(seed)  # noqa: NPY002
        for user, history in part.groupby("user"):
            asked = np.zeros(len(history), dtype=bool)
            if len(history) >= min_items:
                count = int(share * len(history))
                asked[np.random.choice(len(history), size=count, replace=False)] = True  # noqa: NPY002
            for item, is_asked in zip(history["item"], asked, strict=True):
                roles[user, item] = role if is_asked else Role.INPUT
    return train_users, known, roles


def test_the_recipe_of_liang_is_reproduced_draw_for_draw(real_data):
    log = pd.read_csv(real_data / "ml-latest-small/ratings.csv")
    log = log[log["rating"] > 3.5].rename(columns={"userId": "user", "movieId": "item"})
    log = log[log.groupby("user")["item"].transform("size") >= 5].sort_values(["user", "item"])
    train_users, known, wanted = plain_liang(log, num_held_out=80)
    split = splits.LiangSplit(valid_users=80, test_users=80)
    table = rows(log["user"].to_numpy(), log["item"].to_numpy(), log["timestamp"].to_numpy())
    draw = held_out(pa.array(np.sort(log["user"].unique())), split)
    subset, _ = splits.assign(table, split, SplitState(draw=draw))
    users, items = table["user"].to_numpy(), table["item"].to_numpy()
    assert set(users[subset == Subset.TRAIN]) == set(train_users)
    left = table.filter(pa.array(np.isin(items, list(known))))
    lengths = [int((left["user"].to_numpy() == user).sum()) for user in draw.users.to_pylist()]
    drawn = with_targets(draw, np.array(lengths), split)
    subset, roles = splits.assign(left, split, SplitState(draw=drawn))
    found = zip(left["user"].to_pylist(), left["item"].to_pylist(), roles, strict=True)
    held = {(u, i): role for u, i, role in found if u not in set(train_users)}
    assert held == wanted
    assert sum(role == Role.TEST_TARGET for role in held.values()) > 300


def test_the_recipe_is_held_to_its_published_counts():
    good = {"users": 136_677, "interactions": 9_990_682, "items": 20_108, "training users": 116_677}
    require_published(good)
    with pytest.raises(DataError, match=r"gives \{'items': 20720\}.*report \{'items': 20108\}"):
        require_published({**good, "items": 20_720})


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_last_interactions_are_held_out_by_time(count):
    times = [50, 10, 40, 20, 30, 1, 2, 3]
    table = rows([1] * 5 + [2] * 3, [1, 2, 3, 4, 5, 1, 2, 3], times)
    _, roles = splits.assign(table, splits.LeaveLastSplit(count=count), SplitState())
    targets = [Role.TRAIN_TARGET, Role.VALID_TARGET, Role.TEST_TARGET][3 - count :]
    assert roles[:5].tolist() == [Role.INPUT] * (5 - count) + targets
    short = [Role.INPUT] * 3 if count == 3 else [Role.INPUT] * (3 - count) + targets
    assert roles[5:].tolist() == short


def test_global_time_cuts_at_moments_and_keeps_a_second_together():
    times = [-5, 1, 2, 2, 2, 3, 4, 5, 6, 7]
    table = rows(range(10), range(10), times)
    split = splits.GlobalTimeSplit(train_share=0.4, valid_share=0.3)
    _, roles = splits.assign(table, split, split_state(table, split))
    assert roles.tolist() == [Role.INPUT] * 2 + [Role.VALID_TARGET] * 5 + [Role.TEST_TARGET] * 3
    named = splits.GlobalTimeSplit(valid_from=0, test_from=5)
    _, roles = splits.assign(table, named, SplitState(splits.moments(named)))
    assert roles.tolist() == [Role.INPUT] + [Role.VALID_TARGET] * 6 + [Role.TEST_TARGET] * 3


def test_splits_say_whether_tests_follow_validation():
    found = [
        splits.LeaveLastSplit(),
        splits.GlobalTimeSplit(),
        splits.GivenSplit(test="t", valid="v", chronological=True),
        splits.GivenSplit(test="t", valid="v"),
        splits.EntrywiseSplit(),
    ]
    said = [Recipe({"split": split.model_dump()}).is_chronological for split in found]
    assert said == [True, True, True, False, False]


def test_a_given_split_goes_by_the_file():
    table = rows([1, 1, 1], [1, 2, 3], origins=[0, 1, 2])
    _, roles = splits.assign(table, splits.GivenSplit(test="t"), SplitState())
    assert roles.tolist() == [Role.INPUT, Role.VALID_TARGET, Role.TEST_TARGET]


ALL = [
    splits.EntrywiseSplit(),
    splits.LeaveLastSplit(),
    splits.GlobalTimeSplit(valid_from=3, test_from=6),
    splits.StrongGeneralizationSplit(),
]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), split=st.sampled_from(ALL))
def test_what_a_user_is_asked_depends_on_that_user_alone(data, split):
    """So shards, blocks and workers do not matter, and neither do users who come later."""
    cell = st.tuples(st.integers(0, 8), st.integers(0, 9), st.integers(0, 9))
    cells = data.draw(st.lists(cell, min_size=1, max_size=40, unique_by=lambda c: c[:2]))
    limits = SplitState((2**62, 2**63))
    if isinstance(split, splits.GlobalTimeSplit):
        limits = SplitState(splits.moments(split))
    table = rows(*(list(column) for column in zip(*cells, strict=True)))
    both = splits.assign(table, split, limits)
    for user in set(table["user"].to_pylist()):
        mine = pa.compute.equal(table["user"], user)
        alone = splits.assign(table.filter(mine), split, limits)
        for part, whole in zip(alone, both, strict=True):
            np.testing.assert_array_equal(part, whole[mine.to_numpy()])


def test_hashes_are_the_same_on_every_machine():
    """These numbers may never change: prepared data and their splits would no longer fit."""
    ints = hash_ids(pa.array([1, 2]), use=1, seed=0).tolist()
    texts = hash_ids(pa.array(["a", "b"]), use=1, seed=0).tolist()
    assert ints == [9716232063330790915, 13608149317741381227]
    assert texts == [4697957398050076420, 7661748695464845643]
