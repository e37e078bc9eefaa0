from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrib.errors import DataError
from distrib.vocabulary import Vocabulary, nearest_level, on_scale

VALUES = st.one_of(st.floats(-3, 12, width=32), st.integers(-4, 24).map(lambda n: n / 4))


@given(
    values=st.lists(VALUES, max_size=30),
    first=st.sampled_from([0.0, 0.5, 1.0]),
    step=st.sampled_from([0.5, 1.0, 2.0]),
    count=st.integers(1, 6),
)
def test_even_levels_are_found_by_division_as_by_comparison(values, first, step, count):
    levels = [first + step * n for n in range(count)]
    given_N = np.array(values, np.float32)
    distance = np.abs(given_N[:, None].astype(float) - np.array(levels))
    np.testing.assert_array_equal(nearest_level(given_N, levels), distance.argmin(1))
    np.testing.assert_array_equal(on_scale(given_N, levels), distance.min(1) < 1e-4)


def test_uneven_levels_and_nan():
    levels = [1.0, 2.0, 5.0]
    given_N = np.array([0.0, 1.5, 1.6, 3.5, 3.6, 9.0])
    assert nearest_level(given_N, levels).tolist() == [0, 0, 1, 1, 2, 2]
    for scale in (levels, [1.0, 2.0, 3.0]):
        assert on_scale(np.array([np.nan, 2.0, 2.5, np.inf]), scale).tolist() == [
            False,
            True,
            False,
            False,
        ]


def test_ids_of_any_type_find_their_items_and_no_kind_is_bent_to_another():
    counts = np.ones((3, 1), np.int64)
    numbers = Vocabulary(pa.array([7, 8, 9]), (1.0,), counts, 1)
    texts = Vocabulary(pa.array(["007", "8", "x"]), (1.0,), counts, 1)
    for ids in (pa.array([9.0, 7.5, 7]), pa.array([Decimal(9), Decimal("7.5"), Decimal(7)])):
        assert numbers.positions(ids).tolist() == [2, -1, 0]
    coded = pa.dictionary(pa.int8(), pa.string())
    for kind in (pa.string_view(), pa.large_string(), pa.binary(), coded):
        assert texts.positions(pa.array(["x", "7", "007"]).cast(kind)).tolist() == [2, -1, 0]
    assert texts.positions(pa.nulls(2)).tolist() == [-1, -1]
    assert texts.positions(pa.array([], pa.float64())).tolist() == []  # as of a frame without rows
    for ids in (pa.array([8]), pa.array([8.0]), pa.array([Decimal(8)])):
        with pytest.raises(DataError, match=r"the vocabulary holds string, such as '007'"):
            texts.positions(ids)
    with pytest.raises(DataError, match="the vocabulary holds int64, such as 7"):
        numbers.positions(pa.array(["7"]))


def test_numbers_find_text_ids_where_all_are_the_text_of_numbers():
    texts = Vocabulary(pa.array(["7", "18446744073709551615", "0"]), (1.0,), np.ones((3, 1)), 1)
    assert texts.positions(pa.array([2**64 - 1, 7, 1], pa.uint64())).tolist() == [1, 0, -1]
    assert texts.positions(pa.array([7.0, 0.0])).tolist() == [0, 2]
