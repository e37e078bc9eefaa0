import uuid
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrib.data.logs.config import Columns, ParquetSource
from distrib.errors import DataError
from distrib.ids import id_column, id_of, kind_of, plain
from distrib.scoring.histories import read_histories
from distrib.scoring.rules import item_table, positions_of
from distrib.serve.arrow_stream import stream_of, table_of
from distrib.serve.loaded import _titles
from distrib.vocabulary import Vocabulary
from tests.data.test_formats import readings

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


STORED = [  # as Parquet keeps them
    (column, integers, texts)
    for column, integers, texts in COLUMNS
    if not pa.types.is_null(column.type)
    and not pa.types.is_run_end_encoded(column.type)
    and not pa.types.is_float16(column.type)
]


@pytest.mark.parametrize("kind", ["int", "string"])
@pytest.mark.parametrize(("column", "integers", "texts"), STORED, ids=lambda c: str(type(c)))
def test_every_door_reads_a_column_by_the_one_rule(tmp_path, column, integers, texts, kind):
    """Logs, policies, titles, histories and streams: a user's item is the same one everywhere."""
    wanted = [value for value in (integers if kind == "int" else texts) if value is not None]
    path = str(tmp_path / "ids.parquet")
    length = len(column)
    columns = {"item": column, "title": ["t"] * length, "user": ["1"] * length}
    pq.write_table(pa.table(columns), path)
    source = ParquetSource(path=path, columns=Columns(user="user", item="item"), ids=kind)
    table, _ = readings(source)
    assert [i for i in table["item"].to_pylist() if i is not None] == [w for w in wanted if w != ""]
    ids = list(dict.fromkeys(w for w in wanted if w != ""))
    if not ids:
        return
    items = pa.array(ids, pa.int64() if kind == "int" else pa.string())
    vocabulary = Vocabulary(items, (1.0,), np.ones((len(ids), 1), np.int64), 1)
    is_text = pa.types.is_string(plain(column).type)
    are_numbers = all(str(item).isdigit() and str(int(item)) == str(item) for item in ids)
    if is_text if kind == "int" else not (is_text or are_numbers):  # of the other kind
        with pytest.raises(DataError, match="cast the column"):
            vocabulary.positions(column)
        return
    found = vocabulary.positions(plain(column))
    assert [ids[place] for place in found if place >= 0] == [w for w in wanted if w != ""]
    chosen = positions_of(
        item_table(path, ("item",), kind)["item"].combine_chunks(), vocabulary, ""
    )
    assert [ids[place] for place in chosen] == sorted(ids, key=ids.index)
    titles = _titles(path, kind)
    assert {item: titles[item] for item in ids} == dict.fromkeys(ids, "t")
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    lists = pa.ListArray.from_arrays(pa.array([0, length], pa.int32()), whole)
    history = pa.table({"user": ["u"], "items": lists})
    streamed = history if is_encoded(column) else table_of(stream_of(history))
    for lists in (history, streamed):
        if plain(column).null_count:
            continue  # a list with nulls is refused as a whole
        read = read_histories(vocabulary, lists, None)
        assert {ids[place] for place in read.source.item_N.tolist()} == set(ids)


def is_encoded(column):
    """Streams with dictionaries are refused."""
    return pa.types.is_dictionary(column.type)
