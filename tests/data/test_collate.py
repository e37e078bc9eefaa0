import numpy as np
import pyarrow as pa
import pytest

from distrib.data.feeds.collate import example, gather
from distrib.data.hashing import sampled
from distrib.data.history_arrays import (
    eval_rows,
    flat_list,
    history_arrays,
    merge,
    trained_numbers,
    training_rows,
)
from distrib.data.schema import Role, Subset
from distrib.errors import DataError

IN, _, VALID, TEST = (int(role) for role in Role)
TABLE = pa.table(
    {
        "subset": pa.array([Subset.TRAIN, Subset.TRAIN, Subset.TEST, Subset.TRAIN], pa.int8()),
        "items": pa.array([[1, 2, 3], [4], [5, 6], []], pa.list_(pa.int32())),
        "ratings": pa.array([[1.0, 2.0, 3.0], [4.0], [5.0, 1.0], []], pa.list_(pa.float32())),
        "roles": pa.array([[IN, VALID, TEST], [TEST], [IN, TEST], []], pa.list_(pa.int8())),
    }
)
SUBSETS = TABLE["subset"].to_numpy()


def test_training_sees_nothing_held_out_and_no_held_out_user():
    rows = training_rows(history_arrays(TABLE, first_number=100), SUBSETS)
    assert rows.number_B.tolist() == [100]
    assert rows.item_N.tolist() == [1]
    assert set(rows.role_N.tolist()) == {IN}


def test_validation_does_not_even_hold_the_test_targets():
    rows = eval_rows(history_arrays(TABLE), Role.VALID_TARGET)
    assert rows.item_N.tolist() == [1, 2]
    asked = example(rows, np.array([0]), Role.VALID_TARGET)
    assert asked.source.item_N.tolist() == asked.seen.item_N.tolist() == [1]
    assert asked.target.item_N.tolist() == [2]


def test_test_users_are_read_with_input_and_not_shown_their_validation_items():
    rows = eval_rows(history_arrays(TABLE), Role.TEST_TARGET)
    asked = example(rows, np.array([0, 1, 2]), Role.TEST_TARGET)
    assert asked.source.pointer_P.tolist() == [0, 1, 1, 2]
    assert asked.target.item_N.tolist() == [3, 4, 6]
    assert asked.seen.item_N.tolist() == [1, 2, 5]


def test_gather_takes_rows_in_any_order_and_shards_merge():
    rows = history_arrays(TABLE)
    batch, role_N = gather(rows, np.array([2, 3, 0]))
    assert batch.pointer_P.tolist() == [0, 2, 2, 5]
    assert batch.item_N.tolist() == [5, 6, 1, 2, 3]
    assert role_N.tolist() == [IN, TEST, IN, VALID, TEST]
    halves = merge(
        [history_arrays(TABLE.slice(0, 2)), history_arrays(TABLE.slice(2), first_number=2)]
    )
    for one, other in zip(rows, halves, strict=True):
        np.testing.assert_array_equal(one, other)


def test_slices_and_chunks_of_list_columns_are_honoured():
    chunked = pa.concat_tables([TABLE.slice(1, 2), TABLE.slice(0, 1)])
    pointer, values = flat_list(chunked, "items")
    assert pointer.tolist() == [0, 1, 3, 6]
    assert values.tolist() == [4, 5, 6, 1, 2, 3]


def test_null_lists_and_values_are_refused():
    with pytest.raises(DataError, match="1 null list"):
        flat_list(pa.table({"items": pa.array([[1], None])}), "items")
    with pytest.raises(DataError, match="1 null value"):
        flat_list(pa.table({"items": pa.array([[1, None]])}), "items")


def test_what_is_known_and_asked_at_once_stays_a_candidate():
    """Pairs of Coat's test part that its training part holds, too."""
    table = pa.table(
        {
            "items": [[7, 3, 7], [7]],
            "ratings": [[5.0, 1.0, 4.0], [2.0]],
            "roles": pa.array([[IN, IN, TEST], [IN]], pa.list_(pa.int8())),
        }
    )
    asked = example(
        eval_rows(history_arrays(table), Role.TEST_TARGET), np.array([0]), Role.TEST_TARGET
    )
    assert asked.source.item_N.tolist() == [7, 3]
    assert asked.target.item_N.tolist() == [7]
    assert asked.seen.item_N.tolist() == [3]


def test_repeats_are_new_targets_or_not_and_count_once():
    roles = [IN, VALID, TEST, TEST, TEST, TEST]
    table = pa.table(
        {
            "items": [[7, 3, 5, 3, 5, 9], [7]],
            "ratings": [[1.0] * 6, [1.0]],
            "roles": pa.array([roles, [TEST]], pa.list_(pa.int8())),
        }
    )
    rows, both = history_arrays(table), np.array([0, 1])
    new = example(rows, both, Role.TEST_TARGET, targets="new")
    assert new.target.item_N.tolist() == [5, 9, 7]
    assert new.target.length_B.tolist() == [2, 1]
    assert new.seen.item_N.tolist() == [7, 3]
    distinct = example(rows, both, Role.TEST_TARGET, targets="distinct")
    assert distinct.target.item_N.tolist() == [5, 3, 9, 7]


def test_a_chronological_split_shows_what_came_before():
    roles = [[IN, Role.TRAIN_TARGET, VALID, TEST]]
    table = pa.table(
        {
            "items": [[1, 2, 3, 4]],
            "ratings": [[1.0] * 4],
            "roles": pa.array(roles, pa.list_(pa.int8())),
        }
    )
    rows = eval_rows(history_arrays(table), Role.TEST_TARGET)
    plain = example(rows, np.array([0]), Role.TEST_TARGET)
    shown = example(rows, np.array([0]), Role.TEST_TARGET, is_chronological=True)
    assert plain.source.item_N.tolist() == [1, 2]
    assert shown.source.item_N.tolist() == [1, 2, 3]
    assert shown.seen.item_N.tolist() == plain.seen.item_N.tolist() == [1, 2, 3]
    valid = example(
        eval_rows(history_arrays(table), Role.VALID_TARGET), np.array([0]), Role.VALID_TARGET
    )
    assert valid.source.item_N.tolist() == [1, 2]


def test_only_users_who_were_trained_on_keep_a_number():
    rows = history_arrays(TABLE, first_number=100)
    known = trained_numbers(rows, SUBSETS)
    trained = set(training_rows(rows, SUBSETS).number_B.tolist())
    assert [n if n in trained else -1 for n in rows.number_B.tolist()] == known.number_B.tolist()
    assert -1 in known.number_B.tolist()
    assert len(trained) > 0


def test_a_sample_of_positions_is_even_and_the_same_for_any_part():
    whole = sampled(np.arange(100_000), 0.1)
    assert abs(len(whole) - 10_000) < 300
    assert abs(whole.mean() - 50_000) < 1_000
    parts = [sampled(np.arange(start, 100_000, 4), 0.1) for start in range(4)]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), whole)
    assert len(sampled(np.arange(7), 1.0)) == 7
