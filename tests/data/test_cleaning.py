import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distrib.data.config import CleaningConfig
from distrib.data.hashing import hash_ids, mixed
from distrib.data.logs.config import Columns
from distrib.data.logs.rating_scale import ALREADY_APPLIED, RatingsConfig, Scale, scale_of
from distrib.data.prepare import cleaning, kcore
from distrib.data.prepare.cleaning import cleaned
from distrib.data.schema import Status, interactions
from distrib.errors import ConfigError

STARS = Scale((1.0, 2.0, 3.0, 4.0, 5.0))
RATED = Columns(user="u", item="i", rating="r")


def table(rows):
    """Interactions from (user, item, rating, time) or (..., origin)."""
    columns = list(zip(*[(*row, 0)[:5] for row in rows], strict=True)) or [[]] * 5
    user, item, rating, time, origin = (list(column) for column in columns)
    schema = interactions(pa.int64())
    zeros = np.zeros(len(rows))
    parts = [user, item, rating, time, zeros, origin, zeros]
    return pa.table(
        [pa.array(part, field.type) for part, field in zip(parts, schema, strict=True)],
        schema=schema,
    )


def tie(row, repeat):
    """What puts interactions of the same user and time in order."""
    user, item = (hash_ids(pa.array([part]), 7) for part in row[:2])
    again = mixed(np.array([repeat], np.uint64))
    with np.errstate(over="ignore"):
        moment = mixed(np.array([row[3]], np.int64).view(np.uint64) + again)
    return int(mixed(mixed(user ^ mixed(item)) ^ moment)[0])


def history_arrays(found):
    kept = found.kept.to_pylist()
    return [(row["user"], row["item"], row["rating"], row["time"]) for row in kept]


ROW = st.tuples(
    st.integers(0, 4), st.integers(0, 4), st.sampled_from(STARS.levels), st.integers(-3, 3)
)


@settings(max_examples=150, deadline=None)
@example(rows=[(0, 0, 1.0, 0), (0, 0, 2.0, 0)], policy="keep", above=None)
@given(
    rows=st.lists(ROW, max_size=40),
    policy=st.sampled_from(["last", "first", "max", "mean", "sum", "keep"]),
    above=st.sampled_from([None, 2.0]),
)
def test_cleaning_is_that_of_plain_python(rows, policy, above):
    config = CleaningConfig(duplicates=policy, keep_above=above)
    scale = Scale((1.0,), ALREADY_APPLIED)
    found = cleaned(table(rows), config, scale)
    cells = {}
    for user, item, rating, time in rows:
        cells.setdefault((user, item), []).append((time, rating))
    wanted = []
    for (user, item), said in cells.items():
        said.sort()
        if policy == "keep":
            wanted += [(user, item, rating, time) for time, rating in said]
            continue
        ratings = [rating for _, rating in said]
        value = {
            "last": ratings[-1],
            "first": ratings[0],
            "max": max(ratings),
            "mean": float(np.float32(math.fsum(ratings) / len(ratings))),
            "sum": math.fsum(ratings),
        }[policy]
        time = said[0][0] if policy == "first" else said[-1][0]
        wanted.append((user, item, value, time))
    passed = [row for row in wanted if above is None or row[2] > above]
    repeats, keyed = Counter(), []
    for row in sorted(passed, key=lambda row: row[2]):
        user, item, _, time = row
        keyed.append(((user, time, tie(row, repeats[user, item, time])), row))
        repeats[user, item, time] += 1
    assert history_arrays(found) == [row for _, row in sorted(keyed)]
    assert sum(found.counts.values()) == len(rows)
    assert found.counts[Status.DUPLICATE] == len(rows) - len(wanted)
    assert found.counts[Status.NOT_ABOVE_THRESHOLD] == len(wanted) - len(passed)


def test_equal_times_are_in_no_order_of_items_whoever_else_is_there():
    rows = [(user, item, 1.0, user) for user in range(200) for item in (3, 5)]
    found = cleaned(table(rows), CleaningConfig(), STARS).kept
    firsts = found["item"].to_pylist()[::2]
    assert 60 < firsts.count(3) < 140
    alone = cleaned(table(rows[14:16]), CleaningConfig(), STARS).kept
    assert alone["item"].to_pylist()[0] == firsts[7]


def test_the_same_items_at_once_have_another_order_at_another_time():
    config = CleaningConfig(duplicates="keep")
    basket = [(1, item, 1.0, time) for time in range(60) for item in (3, 5, 7)]
    items = cleaned(table(basket), config, STARS).kept["item"].to_pylist()
    orders = [tuple(items[place : place + 3]) for place in range(0, 180, 3)]
    assert len(set(orders)) == 6
    copies = [(1, item, 1.0, 0) for item in (3, 5) for _ in range(20)]
    items = cleaned(table(copies), config, STARS).kept["item"].to_pylist()
    assert sum(one != other for one, other in pairwise(items)) > 8


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-(2**40), 2**40)), max_size=50))
def test_one_key_orders_like_several(pairs):
    user_N, time_N = (np.array([p[n] for p in pairs], dtype=np.int64) for n in (0, 1))
    order = cleaning.by_user_and_time(user_N, time_N)
    np.testing.assert_array_equal(order, np.lexsort((time_N, user_N)))
    far = cleaning.by_user_and_time(user_N * 2**20, time_N)  # does not fit into one key
    np.testing.assert_array_equal(far, order)


def test_rows_of_several_shards_stand_shard_by_shard():
    rows = table([(n, 1, 1.0, 0) for n in range(6)])
    shards = pa.array(np.array([1, 0, 1, 0, 2, 0], np.int32))
    rows = rows.set_column(rows.schema.get_field_index("shard"), "shard", shards)
    found = cleaned(rows, CleaningConfig(), STARS).kept
    assert found["shard"].to_pylist() == [0, 0, 0, 1, 1, 2]
    assert found["user"].to_pylist() == [1, 3, 5, 0, 2, 4]


@pytest.mark.parametrize(
    ("rounding", "wanted"),
    [
        ("exact", {1.0: 1.0, 4.0: 4.0}),
        ("nearest", {1.0: 1.0, 1.4: 1.0, 1.5: 1.0, 1.6: 2.0, 4.0: 4.0, 0.6: 1.0, 4.9: 4.0}),
        ("up", {0.5: 1.0, 0.6: 1.0, 1.0: 1.0, 1.4: 2.0, 1.5: 2.0, 1.6: 2.0, 4.0: 4.0}),
        ("down", {1.0: 1.0, 1.4: 1.0, 1.5: 1.0, 1.6: 1.0, 4.0: 4.0, 4.9: 4.0, 5.0: 4.0}),
    ],
)
def test_ratings_between_levels_are_brought_to_one_or_rejected(rounding, wanted):
    scale = Scale((1.0, 2.0, 4.0), rounding)
    given = np.array([0.0, 0.5, 0.6, 1.0, 1.4, 1.5, 1.6, 4.0, 4.9, 5.0, 6.0], np.float32)
    holds = scale.holds(given)
    found = {round(float(v), 1): float(scale.apply(np.array([v]))[0]) for v in given[holds]}
    if rounding == "nearest":
        wanted |= {5.0: 4.0} if 5.0 in found else {}
    assert {k: v for k, v in found.items() if k in wanted} == wanted
    assert not {0.0, 6.0} & set(found)


def test_counts_become_confidence():
    count = np.array([1, 10], np.float32)
    linear = Scale((1.0,), confidence="linear", alpha=40.0)
    np.testing.assert_allclose(linear.apply(count), [41, 401])
    log = Scale((1.0,), confidence="log", alpha=2.0, epsilon=0.5)
    np.testing.assert_allclose(log.apply(count), 1 + 2 * np.log1p(count / 0.5), rtol=1e-6)
    assert linear.holds(np.array([0.0, -1.0, 3.0], np.float32)).tolist() == [False, False, True]


def test_a_held_out_pair_that_is_known_stays_or_goes_as_told():
    rows = table([(1, 1, 3.0, 0, 0), (1, 1, 5.0, 0, 2), (1, 2, 4.0, 0, 2), (1, 2, 4.0, 0, 2)])
    assert cleaned(rows, CleaningConfig(), STARS).counts == {Status.KEPT: 3, Status.DUPLICATE: 1}
    found = cleaned(rows, CleaningConfig(), STARS, drops_known=True)
    assert found.counts == {Status.KEPT: 2, Status.DUPLICATE: 1, Status.ALREADY_KNOWN: 1}
    assert found.kept["origin"].to_pylist() == [0, 2]


@pytest.mark.parametrize(
    ("ratings", "known", "columns", "policy", "message"),
    [
        (RatingsConfig(), None, RATED, "last", r"set data\.ratings\.levels"),
        (RatingsConfig(levels=(1.0,)), None, Columns(user="u", item="i"), "last", "no rating"),
        (RatingsConfig(levels=(1.0, 2.0)), None, RATED, "mean", r"set data\.ratings\.rounding"),
    ],
)
def test_ratings_that_mean_nothing_are_refused(ratings, known, columns, policy, message):
    with pytest.raises(ConfigError, match=message):
        scale_of(ratings, known, columns, policy)


def test_levels_ascend_and_exclude_confidence():
    with pytest.raises(ValueError, match="ascending"):
        RatingsConfig(levels=(5.0, 1.0))
    with pytest.raises(ValueError, match="exclude each other"):
        RatingsConfig(levels=(1.0, 5.0), confidence="log")


def plain_core(cells, min_user_items, min_item_users):
    """Peel one row kind after the other, until nothing changes."""
    while True:
        users, items = (Counter(cell[n] for cell in cells) for n in (0, 1))
        left = {
            (u, i) for u, i in cells if users[u] >= min_user_items and items[i] >= min_item_users
        }
        if left == cells:
            return cells
        cells = left


@settings(max_examples=150, deadline=None)
@given(
    cells=st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=45),
    least=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    num_parts=st.integers(1, 3),
)
def test_the_core_is_that_of_plain_peeling(cells, least, num_parts):
    config = CleaningConfig(min_user_items=least[0], min_item_users=least[1])
    parts = [sorted(c for c in cells if c[0] % num_parts == n) for n in range(num_parts)]
    edges = [np.array(part, dtype=np.int64).reshape(-1, 2).T for part in parts]
    alive = np.ones(8, dtype=bool)
    while True:
        counts = sum(kcore.item_counts(*edge, alive, config.min_user_items) for edge in edges)
        left = kcore.next_alive(alive, counts, config)
        if (left == alive).all():
            break
        alive = left
    kept = set()
    for part, (user_N, item_N) in zip(parts, edges, strict=True):
        row_status = kcore.row_status(user_N, alive[item_N], config.min_user_items)
        kept |= {
            cell for cell, status in zip(part, row_status, strict=True) if status == Status.KEPT
        }
    assert kept == plain_core(cells, *least)
