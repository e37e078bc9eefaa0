import uuid
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrib.ids import id_column, id_of, kind_of

UUID = uuid.UUID("17ea8626-4fe0-4fe0-acdb-34276e3a3be8")
NAN = float("nan")
COLUMNS = [
    (pa.array([1, None], pa.int8()), [1, None], ["1", None]),
    (pa.array([1, 2**64 - 1], pa.uint64()), [1, None], ["1", str(2**64 - 1)]),
    (pa.array([1.0, 1.5, NAN, 2.0**53]), [1, None, None, None], ["1", "1.5", None, None]),
    (pa.array([76561190000.0]), [76561190000], ["76561190000"]),
    (pa.array([7.0, 2.0**24], pa.float32()), [7, None], ["7", None]),
    (pa.array([3.0], pa.float16()), [3], ["3"]),
    (pa.array([Decimal("1.00"), Decimal("1.50")]), [1, None], ["1", "1.50"]),
    (pa.array([Decimal(10**19)], pa.decimal128(20, 0)), [None], [str(10**19)]),
    (pa.array([Decimal(5)], pa.decimal256(50, 0)), [5], ["5"]),
    (pa.array(["007", "100.0", "1.5", "", None]), [7, 100, None, None, None],
     ["007", "100.0", "1.5", "", None]),
    (pa.array(["a"], pa.string_view()), [None], ["a"]),
    (pa.array(["a"], pa.large_string()), [None], ["a"]),
    (pa.array([b"ab", None]), [None, None], ["ab", None]),
    (pa.array([b"ab"], pa.binary(2)), [None], ["ab"]),
    (pa.array([b"ab"], pa.binary_view()), [None], ["ab"]),
    (pa.array([b"ab"], pa.large_binary()), [None], ["ab"]),
    (pa.ExtensionArray.from_storage(pa.uuid(), pa.array([UUID.bytes], pa.binary(16))), [None],
     [str(UUID)]),
    (pa.array(["1", "2", "1"]).dictionary_encode(), [1, 2, 1], ["1", "2", "1"]),
    (pa.RunEndEncodedArray.from_arrays([2], pa.array([4])), [4, 4], ["4", "4"]),
    (pa.array([True, False]), [None, None], ["true", "false"]),
    (pa.nulls(1), [None], [None]),
    (pa.chunked_array([[1], [2]]), [1, 2], ["1", "2"]),
]  # fmt: skip


@pytest.mark.parametrize(("column", "integers", "texts"), COLUMNS, ids=lambda c: str(type(c)))
def test_columns_of_every_type_have_one_rule(column, integers, texts):
    assert id_column(column, "int").ids.to_pylist() == integers
    assert id_column(column, "string").ids.to_pylist() == texts


def test_the_kind_follows_from_the_values():
    assert kind_of(pa.array([1.0, None, NAN])) == "int"
    assert kind_of(pa.array([1.0, 1.5])) == "string"
    assert kind_of(pa.array([2**63 - 1], pa.uint64())) == "int"
    assert kind_of(pa.array([2**63], pa.uint64())) == "string"
    assert kind_of(pa.array(["1"])) == "string"
    assert kind_of(pa.array([Decimal(1)])) == "string"


def test_bytes_that_are_not_utf8_are_given_and_are_no_text():
    found = id_column(pa.array([b"\xff", None, b"x"]), "string")
    np.testing.assert_array_equal(found.is_given_N, [True, False, True])
    np.testing.assert_array_equal(found.is_text_N, [False, True, True])


VALUE = st.one_of(
    st.integers(-(2**65), 2**65),
    st.floats(allow_infinity=False),
    st.text(alphabet="0123456789.+- e\u00e9", max_size=22),
    st.sampled_from(
        ["9223372036854775807", "9223372036854775808", "-9223372036854775808", "\ufffd"]
    ),
)


@given(value=VALUE, kind=st.sampled_from(["int", "string"]))
def test_a_value_of_json_reads_like_a_column(value, kind):
    try:
        column = pa.array([value])
    except OverflowError:
        column = pa.nulls(1)
    found = id_column(column, kind)
    plain = found.ids[0].as_py() if found.is_given_N[0] and found.is_text_N[0] else None
    is_fraction = isinstance(value, float) and plain is not None and not value.is_integer()
    assert id_of(value, kind) == (None if is_fraction else plain)


@pytest.mark.parametrize("value", [True, None, [1], {"a": 1}, "\ud800", ""])
def test_what_is_no_id_is_none(value):
    assert id_of(value, "string") is None
    assert id_of(value, "int") is None
