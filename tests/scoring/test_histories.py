"""Histories as people send them, to the model's items."""

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
import torch

from distrib.batch import Batch
from distrib.errors import DataError
from distrib.scoring.bulk.unseen import known_counts
from distrib.scoring.commit import ScoreCounts
from distrib.scoring.histories import NEW_USER, read_histories, without_new_users
from distrib.vocabulary import LogFacts, Vocabulary

STARS = (1.0, 2.0, 3.0, 4.0, 5.0)
VOCABULARY = Vocabulary(pa.array([10, 20, 30]), STARS, np.ones((3, 5), np.int64), 4)


def read(*rows):
    return read_histories(VOCABULARY, pa.Table.from_pylist(rows), None)


def test_a_rating_beyond_single_precision_is_off_the_scale():
    found = read({"user": 1, "items": [10, 20], "ratings": [4.0, 3.5e38]})
    assert found.source.item_N.tolist() == [0]
    assert found.row_status["rating outside scale"] == 1


def test_users_that_training_did_not_see_are_rejected_by_row():
    rows = [{"user": user, "items": [10], "ratings": [4.0]} for user in range(4)]
    found = read(*rows, {"user": 4, "items": None, "ratings": None})
    numbers = torch.tensor([7, -1, 3, -1])
    found = found._replace(source=found.source._replace(user_B=numbers))
    left = without_new_users(found)
    assert left.user.to_pylist() == [0, 2]
    assert isinstance(left.source, Batch)
    assert left.source.user_B.tolist() == [7, 3]
    assert left.rejected == {"no list of items": 1, NEW_USER: 2}
    assert left.kept_B.tolist() == [True, False, True, False, False]
    assert without_new_users(left) is left


def test_times_put_interactions_in_order_and_the_last_of_an_item_counts():
    rows = [
        {"user": 1, "items": [10, 20, 30, 20], "ratings": [1, 2, 3, 5], "times": [30, 40, 10, 20]},
        {"user": 2, "items": [30, 10], "ratings": [1, 2], "times": [5, 5]},
        {"user": 3, "items": [30, 10], "ratings": [1, 2], "times": [5]},
    ]
    found = read(*rows)
    assert found.source.item_N.tolist() == [2, 0, 1, 2, 0]
    assert found.source.value_N.tolist() == [3.0, 1.0, 2.0, 1.0, 2.0]
    assert found.row_status["duplicate"] == 1
    assert found.rejected == {"items, ratings and times differ in number": 1}
    ordered = read({"user": 1, "items": [30, 20, 10, 20], "ratings": [3, 5, 1, 2]})
    assert ordered.digest_B[0] == found.digest_B[0]


def test_repeats_stay_where_the_model_was_trained_on_them():
    ids, counts = pa.array([10, 20, 30]), np.ones((3, 1), np.int64)
    once = Vocabulary(ids, (1.0,), counts, 4)
    again = Vocabulary(ids, (1.0,), counts, 4, facts=LogFacts(has_repeats=True))
    sent = pa.Table.from_pylist([{"user": 1, "items": [10, 20, 10]}])
    stored = pa.Table.from_pylist([{"user": 1, "items": [0, 1, 0]}])
    for table, source in ((sent, None), (stored, again)):
        kept = read_histories(again, table, source)
        assert kept.source.item_N.tolist() == [0, 1, 0]
        assert kept.row_status["duplicate"] == 0
        reduced = read_histories(once, table, source)
        assert reduced.source.item_N.tolist() == [1, 0]
        assert reduced.row_status["duplicate"] == 1


@pytest.mark.parametrize(
    ("times", "why"),
    [(["a", "b"], "are string, not numbers"), ([1, None], "1 of the times are")],
)
def test_times_that_are_none_are_refused(times, why):
    with pytest.raises(DataError, match=why):
        read({"user": 1, "items": [10, 20], "ratings": [1, 2], "times": times})


LISTS = [
    pa.list_(pa.int64(), 2), pa.large_list(pa.int64()), pa.list_view(pa.int64()),
    pa.large_list_view(pa.int64()), pa.list_(pa.float64()), pa.list_(pa.decimal128(20, 0)),
]  # fmt: skip


def _as(lists, kind):
    is_view = pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)
    return pa.array(lists.to_pylist(), kind) if is_view else lists.cast(kind)


@pytest.mark.parametrize("kind", LISTS, ids=str)
def test_lists_of_any_type_are_histories(kind):
    plain = pa.array([[10, 20], [30, 10]], pa.list_(pa.int64()))
    items = pa.array([[Decimal(10), Decimal(20)], [Decimal(30), Decimal(10)]])
    items = items.cast(kind) if kind == LISTS[-1] else _as(plain, kind)
    rest = {"user": [1, 2], "ratings": [[4.0, 3.0], [2.0, 1.0]]}
    found = read_histories(VOCABULARY, pa.table({**rest, "items": items}), None)
    wanted = read_histories(VOCABULARY, pa.table({**rest, "items": plain}), None)
    assert found.source.item_N.tolist() == [0, 1, 2, 0]
    assert found.user.to_pylist() == [1, 2]
    if pa.types.is_int64(kind.value_type):
        assert found.digest_B.tolist() == wanted.digest_B.tolist()


def test_list_views_may_be_sliced_and_hold_nulls():
    items = pa.array([[1], [10, 20], None, [30]], pa.list_view(pa.int64())).slice(1)
    rest = {"user": [1, 2, 3], "ratings": [[4.0, 3.0], [1.0], [2.0]]}
    found = read_histories(VOCABULARY, pa.table({**rest, "items": items}), None)
    assert found.source.item_N.tolist() == [0, 1, 2]
    assert found.rejected == {"no list of items": 1}


@pytest.mark.parametrize(
    ("users", "wanted"),
    [
        (pa.array(["a", None], pa.string_view()), ["a"]),
        (pa.array([b"a", b"b"], pa.binary()), ["a", "b"]),
        (pa.array([7.0, 1.5]), [7]),
        (pa.array([Decimal(10**19), Decimal(5)], pa.decimal128(20, 0)), [str(10**19), "5"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array([2**64 - 1, 1], pa.uint64()), [2**64 - 1, 1]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_users_of_any_type(users, wanted):
    table = pa.table({"user": users, "items": [[10], [20]], "ratings": [[4.0], [3.0]]})
    found = read_histories(VOCABULARY, table, None)
    assert found.user.to_pylist() == wanted
    assert sum(found.rejected.values()) == 2 - len(wanted)


def test_histories_of_items_that_the_model_hardly_knows_are_refused():
    counts = ScoreCounts(
        users_read=2, users=2, users_unchanged=0, users_rejected={}, users_with_empty_lists={},
        interactions={"used": 1, "item unseen in training": 9},
    )  # fmt: skip
    ids = (pa.array(["7"]), pa.array(["007"]))
    assert known_counts(counts, lambda: ids, 0.9) is counts
    with pytest.raises(DataError, match=r"9 of 10 .*max_unseen_share = 0\.8.*'7', the model '007'"):
        known_counts(counts, lambda: ids, 0.8)
