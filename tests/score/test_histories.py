"""Histories as people send them, to the model's items."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from distrib.batch import Batch
from distrib.errors import DataError
from distrib.score.histories import NEW_USER, read_histories, without_new_users
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
    ("times", "why"), [(["a", "b"], "holds string, not numbers"), ([1, None], "has 1 null value")]
)
def test_times_that_are_none_are_refused(times, why):
    with pytest.raises(DataError, match=why):
        read({"user": 1, "items": [10, 20], "ratings": [1, 2], "times": times})
