import gzip
import io
import json
import zipfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.data.logs import readers, text
from distrib.data.logs.config import (
    AmazonSource,
    Columns,
    CsvSource,
    HetRecSource,
    JsonLinesSource,
    MatrixSource,
    MovieLensSource,
    ParquetSource,
    RecBoleSource,
    SessionsSource,
)
from distrib.data.logs.formats import delimited
from distrib.data.logs.layout import HALF_STARS, WHOLE_STARS
from distrib.data.logs.rating_scale import Scale
from distrib.data.schema import Status
from distrib.errors import DataError

COLUMNS = Columns(user="who", item="what", rating="stars", time="when")
STARS = Scale((1.0, 2.0, 3.0, 4.0, 5.0))
ROWS = [(1, 10, 5.0, 100), (2, 20, 3.0, 200)]


def readings(source, scale=None):
    layout = source.inspect()
    scale = scale or (Scale(layout.levels) if layout.levels else STARS)
    found = [
        r for piece in readers.log_pieces(layout) for r in readers.read_log(piece, layout, scale)
    ]
    return (
        pa.concat_tables([reading.interactions for reading in found]),
        pa.concat_tables([reading.quarantine for reading in found]),
    )


def kept(table):
    rows = table.filter(pa.array(table["status"].to_numpy() == Status.KEPT)).to_pylist()
    return [(row["user"], row["item"], row["rating"], row["time"]) for row in rows]


def rejected(table):
    rows = table.filter(pa.array(table["status"].to_numpy() != Status.KEPT)).to_pylist()
    found = Counter()
    for row in rows:
        found[Status(row["status"])] += row["time"]
    return found


MOVIELENS = [
    ("u.data", "1\t10\t5\t100\n2\t20\t3\t200\n"),
    ("ratings.dat", "1::10::5::100\n2::20::3::200\n"),
    ("ratings.csv", "userId,movieId,rating,timestamp\n1,10,5.0,100\n2,20,3.0,200\n"),
    ("ratings.csv", "userId,movieId,rating,timestamp\r\n1,10,5.0,100\r\n2,20,3.0,200"),
]


def packed(path, name, content, packing):
    """Write a file as a user would have it, and return its path."""
    content = content.encode() if isinstance(content, str) else content
    if packing == "zip":
        with zipfile.ZipFile(path / "log.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("folder/README", "nothing")
            archive.writestr(f"folder/{name}", content)
        return str(path / "log.zip")
    packers = {"": bytes, "gz": gzip.compress, "zst": lambda b: pa.compress(b, "zstd", True)}
    suffix = f".{packing}" if packing else ""
    (path / (name + suffix)).write_bytes(packers[packing](content))
    return str(path / (name + suffix))


@pytest.mark.parametrize("packing", ["", "gz", "zip", "zst"])
@pytest.mark.parametrize(("name", "content"), MOVIELENS)
def test_the_layouts_of_movielens_read_alike(tmp_path, name, content, packing):
    source = MovieLensSource(path=packed(tmp_path, name, content, packing))
    table, quarantine = readings(source)
    assert kept(table) == ROWS
    assert len(quarantine) == 0
    assert source.inspect().levels == (HALF_STARS if "csv" in name else WHOLE_STARS)


def test_movielens_10m_has_half_stars_in_the_older_layout(tmp_path):
    (tmp_path / "ratings.dat").write_text("1::10::5::100\n2::20::3.5::200\n")
    assert MovieLensSource(path=str(tmp_path / "ratings.dat")).inspect().levels == HALF_STARS


AMAZON = {
    "2018.csv": "B00000000A,A1USERUSERUSER,5.0,100\nB00000000B,A2USERUSERUSER,3.0,200\n",
    "2014.csv": "A1USERUSERUSER,B00000000A,5.0,100\nA2USERUSERUSER,B00000000B,3.0,200\n",
    "2018.json.gz": "".join(
        json.dumps(
            {"overall": rating, "reviewerID": user, "asin": item, "unixReviewTime": time, "x": [1]}
        )
        + "\n"
        for user, item, rating, time in (
            ("A1USERUSERUSER", "B00000000A", 5.0, 100),
            ("A2USERUSERUSER", "B00000000B", 3.0, 200),
        )
    ),
    "2023.csv": "user_id,parent_asin,rating,timestamp\n"
    "A1USERUSERUSER,B00000000A,5.0,100000\nA2USERUSERUSER,B00000000B,3.0,200999\n",
    "2023.jsonl": "".join(
        json.dumps({"rating": r, "user_id": u, "parent_asin": i, "asin": "other", "timestamp": t})
        + "\n"
        for u, i, r, t in (
            ("A1USERUSERUSER", "B00000000A", 5.0, 100_000),
            ("A2USERUSERUSER", "B00000000B", 3.0, 200_999),
        )
    ),
}


@pytest.mark.parametrize("name", sorted(AMAZON))
def test_amazon_reviews_of_all_years_read_alike(tmp_path, name):
    content = AMAZON[name].encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    table, _ = readings(AmazonSource(path=str(tmp_path / name)))
    assert kept(table) == [
        ("A1USERUSERUSER", "B00000000A", 5.0, 100),
        ("A2USERUSERUSER", "B00000000B", 3.0, 200),
    ]


def test_ids_that_do_not_tell_users_from_products_are_asked_about(tmp_path):
    (tmp_path / "r.csv").write_text("u1,i1,5.0,1\nu2,i2,5.0,1\n")
    with pytest.raises(
        DataError, match=r"cannot distinguish users from products.*data\.source\.order"
    ):
        AmazonSource(path=str(tmp_path / "r.csv")).inspect()
    table, _ = readings(AmazonSource(path=str(tmp_path / "r.csv"), order="item_first"))
    assert kept(table)[0] == ("i1", "u1", 5.0, 1)


def test_recbole_fields_are_found_by_their_names(tmp_path):
    (tmp_path / "x.inter").write_text(
        "timestamp:float\titem_id:token\tuser_id:token\trating:float\n"
        "100.0\t10\t1\t5\n200\t20\t2\t3\n"
    )
    table, _ = readings(RecBoleSource(path=str(tmp_path), ids="int"))
    assert kept(table) == ROWS
    table, _ = readings(RecBoleSource(path=str(tmp_path / "x.inter")))
    assert kept(table)[0][:2] == ("1", "10")


def test_hetrec_counts_have_no_levels(tmp_path):
    (tmp_path / "user_artists.dat").write_text("userID\tartistID\tweight\n1\t10\t5\n2\t20\t1388\n")
    source = HetRecSource(path=str(tmp_path / "user_artists.dat"))
    assert source.inspect().levels is None
    table, _ = readings(source, Scale((1.0,), confidence="log"))
    assert [row[:3] for row in kept(table)] == [(1, 10, 5.0), (2, 20, 1388.0)]


def test_a_session_is_a_user_and_padding_is_nobody(tmp_path):
    (tmp_path / "s.csv").write_text("0,0,7,8\n0,7,9,7\n\n5,x,0,0\n")
    table, quarantine = readings(SessionsSource(path=str(tmp_path / "s.csv")))
    found = sorted((user, time, item) for user, item, _, time in kept(table))
    assert [(user, item) for user, _, item in found] == [
        (0, 7),
        (0, 8),
        (1, 7),
        (1, 9),
        (1, 7),
        (3, 5),
    ]
    assert quarantine.to_pylist()[0]["line"] == 4
    assert rejected(table) == {Status.ID_NOT_AN_INTEGER: 1}


def test_sessions_in_several_files_are_told_apart(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text("0,7\n8,9\n")
    table, _ = readings(SessionsSource(path=str(tmp_path)))
    assert sorted({row[0] for row in kept(table)}) == ["a.csv:0", "a.csv:1", "b.csv:0", "b.csv:1"]


def test_a_dense_matrix_holds_its_observed_cells(tmp_path):
    (tmp_path / "m.ascii").write_text("0 5 0 \n3 0 nan\n1 2\n0 0 4\n")
    table, quarantine = readings(MatrixSource(path=str(tmp_path / "m.ascii")))
    assert [row[:3] for row in kept(table)] == [(0, 1, 5.0), (1, 0, 3.0), (3, 2, 4.0)]
    assert rejected(table) == {Status.RATING_NOT_A_NUMBER: 1, Status.MALFORMED: 1}
    assert quarantine["line"].to_pylist() == [2, 3]


def test_pieces_of_a_large_file_join_without_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "RANGE_BYTES", 301)
    monkeypatch.setattr(text, "_CHUNK_BYTES", 64)
    monkeypatch.setattr(text, "_STEP_BYTES", 7)
    lines = [f"{n},{n % 7},4.5,{n}" for n in range(500)]
    path = tmp_path / "ratings.csv"
    path.write_text("\n".join(["userId,movieId,rating,timestamp", *lines]))
    layout = MovieLensSource(path=str(path)).inspect()
    assert len(readers.log_pieces(layout)) > 10
    table, _ = readings(MovieLensSource(path=str(path)))
    assert kept(table) == [(n, n % 7, 4.5, n) for n in range(500)]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=40),
    ends_whole=st.booleans(),
    size=st.integers(1, 200),
)
def test_byte_ranges_give_every_line_once(tmp_path_factory, lengths, ends_whole, size):
    path = tmp_path_factory.mktemp("ranges") / "log"
    lines = [f"{n:x}" * length for n, length in enumerate(lengths)]
    path.write_text("\n".join(lines) + ("\n" if ends_whole else ""))
    content, file = path.read_bytes(), text.LogFile(str(path), 0)
    edges = [*range(0, len(content), size), len(content)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_CHUNK_BYTES", 16)
        patch.setattr(text, "_STEP_BYTES", 5)
        spans = list(pairwise(edges))
        found = b"".join(b"".join(text.chunks(file, *span)) for span in spans)
    assert found == content


DAMAGED = (
    "who,what,stars,when\na,x,5,1\na,,5,1\n\nb,y,many,1\nb,z,9,1\nc,x,4,soon\nc,x\n"
    "d,x,3,\n d,y,2,1.7e9\ne,x,nan,1\ne,y,inf,1\n"
)


def test_every_bad_line_is_quarantined_with_reason_and_place(tmp_path):
    (tmp_path / "log.csv").write_text(DAMAGED)
    table, quarantine = readings(CsvSource(path=str(tmp_path / "log.csv"), columns=COLUMNS))
    assert kept(table) == [
        ("a", "x", 5.0, 1),
        ("d", "x", 3.0, 0),
        (" d", "y", 2.0, 1_700_000_000),
    ]
    found = [(row["line"], row["reason"], row["text"]) for row in quarantine.to_pylist()]
    assert found == [
        (3, "missing id", "a,,5,1"),
        (5, "rating not a number", "b,y,many,1"),
        (6, "rating outside scale", "b,z,9,1"),
        (7, "time not a time", "c,x,4,soon"),
        (8, "malformed", "c,x"),
        (11, "rating not a number", "e,x,nan,1"),
        (12, "rating not a number", "e,y,inf,1"),
    ]
    assert rejected(table)[Status.RATING_NOT_A_NUMBER] == 3
    assert sum(rejected(table).values()) == 7


FIELD = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
    st.sampled_from(
        ["", " 7", "+5", "1e3", "0x10", "NaN", "inf", "-", "1.0", "a", "1,5", "٣", "1_0"]
    ),
)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(FIELD, FIELD, FIELD, FIELD), min_size=1, max_size=5),
    ids=st.sampled_from(["int", "string"]),
)
def test_typed_parsing_agrees_with_text_parsing(tmp_path_factory, rows, ids):
    """The fast path may only take what the plain one takes, and must read the same."""
    path = tmp_path_factory.mktemp("typed") / "log"
    path.write_text("".join("\x1d".join(row) + "\n" for row in rows))
    source = CsvSource(
        path=str(path), columns=COLUMNS, header=tuple(COLUMNS.names()), separator="\x1d", ids=ids
    )
    table, quarantine = readings(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "_guesses", lambda _: [])
        plain, plain_quarantine = readings(source)
    assert kept(table) == kept(plain)
    assert quarantine.to_pylist() == plain_quarantine.to_pylist()


def test_a_csv_with_any_separator_and_no_header(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("7||9\n8||9\n")
    source = CsvSource(
        path=str(path),
        separator="||",
        header=("who", "what"),
        ids="int",
        columns=Columns(user="who", item="what"),
    )
    table, _ = readings(source)
    assert [row[:3] for row in kept(table)] == [(7, 9, 1.0), (8, 9, 1.0)]
    assert [row[3] for row in kept(table)] == [0, 1]  # places in the log stand for times


def test_a_quoted_id_may_hold_the_separator(tmp_path):
    (tmp_path / "log.csv").write_text('who,what,stars,when\n"a,b",x,5,1\n"say ""hi""",x,5,1\n')
    table, _ = readings(CsvSource(path=str(tmp_path / "log.csv"), columns=COLUMNS))
    assert [row[0] for row in kept(table)] == ["a,b", 'say "hi"']


def test_parquet_with_any_columns_in_many_files(tmp_path):
    for part, row in enumerate(ROWS):
        columns = {name: [value] for name, value in zip(COLUMNS.names(), row, strict=True)}
        pq.write_table(pa.table({**columns, "more": ["x"]}), tmp_path / f"{part}.parquet")
    source = ParquetSource(path=str(tmp_path), columns=COLUMNS)
    table, _ = readings(source)
    assert kept(table) == ROWS
    assert source.inspect().id_kind == "int"


def test_an_item_of_two_types_becomes_text(tmp_path):
    for part, item in enumerate((10, "10")):
        table = pa.table({"who": [1], "what": [item], "stars": [5.0], "when": [part]})
        pq.write_table(table, tmp_path / f"{part}.parquet")
    table, _ = readings(ParquetSource(path=str(tmp_path), columns=COLUMNS))
    assert [row[:2] for row in kept(table)] == [("1", "10"), ("1", "10")]
    lines = [{"who": "a", "what": item, "stars": 5, "when": 1} for item in ("10", 10, 10.0, None)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = JsonLinesSource(path=str(tmp_path / "log.jsonl"), columns=COLUMNS)
    table, _ = readings(source)
    assert [row[1] for row in kept(table)] == ["10", "10", "10"]
    assert rejected(table) == {Status.MISSING_ID: 1}


def test_json_lines_that_are_none_are_quarantined(tmp_path):
    good = '{"who": 1, "what": 10, "stars": 5, "when": 100, "text": "a \\n b"}'
    (tmp_path / "log.jsonl").write_text(f'{good}\n\nnot json\n[1]\n{{"who": 2, "what": 20, ')
    source = JsonLinesSource(path=str(tmp_path / "log.jsonl"), columns=COLUMNS, ids="int")
    table, quarantine = readings(source)
    assert kept(table) == ROWS[:1]
    assert quarantine["line"].to_pylist() == [3, 4, 5]
    assert quarantine["text"].to_pylist()[0] == "not json"


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("unit", "value"),
    [
        ("s", 1_600_000_000),
        ("ms", 1_600_000_000_123),
        ("us", 1_600_000_000_123_456),
        ("ns", 1_600_000_000_123_456_789),
        ("iso8601", "2020-09-13T12:26:40"),
        ("iso8601", "2020-09-13 14:26:40.9+02:00"),
    ],
)
def test_times_in_any_unit_become_seconds(tmp_path, kind, unit, value):
    path = tmp_path / f"log.{kind}"
    if kind == "csv":
        path.write_text(f"who,what,when\na,x,{value}\n")
        source = CsvSource(
            path=str(path), columns=Columns(user="who", item="what", time="when"), time_unit=unit
        )
    else:
        path.write_text(json.dumps({"who": "a", "what": "x", "when": value}) + "\n")
        source = JsonLinesSource(
            path=str(path), columns=Columns(user="who", item="what", time="when"), time_unit=unit
        )
    table, _ = readings(source)
    assert kept(table) == [("a", "x", 1.0, 1_600_000_000)]


def test_dates_that_are_none_are_rejected_one_by_one(tmp_path):
    (tmp_path / "l.csv").write_text("who,what,when\na,x,2020-02-30\na,y,2020-02-03\na,z,soon\n")
    source = CsvSource(
        path=str(tmp_path / "l.csv"),
        columns=Columns(user="who", item="what", time="when"),
        time_unit="iso8601",
    )
    table, quarantine = readings(source)
    assert [row[1] for row in kept(table)] == ["y"]
    assert quarantine["line"].to_pylist() == [2, 4]


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path):
    (tmp_path / "log.csv").write_bytes(b"\xef\xbb\xbfwho,what,stars,when\na,x,5,1\n")
    table, _ = readings(CsvSource(path=str(tmp_path / "log.csv"), columns=COLUMNS))
    assert kept(table) == [("a", "x", 5.0, 1)]
    (tmp_path / "log.csv").write_bytes("who,what,stars,when\na,x,5,1\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"is UTF-16 text; set data.source.encoding"):
        CsvSource(path=str(tmp_path / "log.csv"), columns=COLUMNS).inspect()


def test_a_line_in_another_encoding_is_quarantined_alone(tmp_path):
    content = b"who,what,stars,when\nanna,x,5,1\ncaf\xe9,x,5,1\nr\xc3\xa9gis,y,4,2\n"
    (tmp_path / "log.csv").write_bytes(content)
    table, quarantine = readings(CsvSource(path=str(tmp_path / "log.csv"), columns=COLUMNS))
    assert [row[0] for row in kept(table)] == ["anna", "régis"]
    assert quarantine["reason"].to_pylist() == ["not utf8"]
    assert quarantine["line"].to_pylist() == [3]


@pytest.mark.parametrize("packing", ["gz", "zst", "zip"])
def test_a_truncated_archive_is_named(tmp_path, packing):
    content = "who,what,stars,when\n" + "".join(
        f"u{n},{hash(n) % 9973},5,1\n" for n in np.random.default_rng(0).integers(0, 10**9, 50_000)
    )
    path = packed(tmp_path, "log.csv", content, packing)
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"log\.(csv\.|zip).*(damaged|not a complete zip)"):
        readings(CsvSource(path=path, columns=COLUMNS))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file, folder or bucket"),
        ("", "the log is empty"),
        ("a;b;c\n1;2;3\n", "none of the MovieLens layouts"),
    ],
)
def test_a_log_that_is_no_movielens_is_refused_at_once(tmp_path, content, message):
    path = tmp_path / "ratings.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        MovieLensSource(path=str(path)).inspect()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b,c,d\n1,2,3,4\n", r"no column\(s\).*it has \['a', 'b', 'c', 'd'\]"),
        ("1,2,3,4\n1,2,3,4\n", r"is its header missing\? then set data\.source\.header"),
        ("who,what,stars,when\n0,a,x,5,1\n", "4 column names .* first row has 5 fields"),
        ("who,what,stars,when,who\na,x,5,1,b\n", r"column\(s\) \['who'\] are duplicates"),
    ],
)
def test_a_header_that_is_missing_or_shifted_is_seen_at_once(tmp_path, content, message):
    (tmp_path / "log.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        CsvSource(path=str(tmp_path / "log.csv"), columns=COLUMNS).inspect()


def test_marks_of_other_writers_are_no_data_and_every_file_has_its_header(tmp_path):
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "a.csv").write_text("who,what,stars,when\n1,10,5,100\n")
    (tmp_path / "b.csv").write_text("when,stars,what,who\n200,3,20,2\n")
    source = CsvSource(path=str(tmp_path), ids="int", columns=COLUMNS)
    assert kept(readings(source)[0]) == ROWS
    (tmp_path / "c.csv").write_text("who,thing\n1,2\n")
    with pytest.raises(DataError, match=r"c\.csv: no column\(s\) \['what', 'stars', 'when'\]"):
        readings(source)


def test_odd_values_of_parquet_columns_are_rejected_not_bent(tmp_path):
    columns = {
        "who": [1, 2, 3],
        "what": [1, 2, 3],
        "stars": pa.array(["5", "x", "3"], pa.large_string()),
        "when": [float("nan"), 1.0, 1e30],
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    found, _ = readings(ParquetSource(path=str(tmp_path / "log.parquet"), columns=COLUMNS))
    assert rejected(found) == {Status.TIME_NOT_A_TIME: 2, Status.RATING_NOT_A_NUMBER: 1}
    assert kept(found) == []


def test_text_ids_like_na_are_ids_and_quotes_are_taken_off(tmp_path):
    (tmp_path / "log.tsv").write_text('who\twhat\n"NA"\tnull\n')
    columns = Columns(user="who", item="what")
    source = CsvSource(path=str(tmp_path / "log.tsv"), separator="\t", columns=columns)
    assert [row[:3] for row in kept(readings(source)[0])] == [("NA", "null", 1.0)]


def test_a_column_has_one_meaning():
    with pytest.raises(ValueError, match="two meanings"):
        Columns(user="a", item="a")


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "log.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"log\.parquet: is not a complete Parquet file"):
        ParquetSource(path=str(tmp_path / "log.parquet"), columns=COLUMNS).inspect()


def test_quarantined_rows_of_parquet_have_their_number(tmp_path):
    sink = io.BytesIO()
    table = pa.table({"who": [1] * 5, "what": [1, 2, None, 4, 5], "stars": [5.0, 9.0, 1, 1, 1]})
    pq.write_table(table, sink, row_group_size=2)
    (tmp_path / "log.parquet").write_bytes(sink.getvalue())
    columns = Columns(user="who", item="what", rating="stars")
    _, quarantine = readings(ParquetSource(path=str(tmp_path / "log.parquet"), columns=columns))
    assert quarantine["line"].to_pylist() == [2, 3]


TEXT = st.characters(exclude_characters="\r\n\x00", exclude_categories=["Cs"])
LINE = st.one_of(
    st.lists(FIELD, min_size=1, max_size=6).map("\x1d".join),
    st.text(
        alphabet=st.characters(exclude_characters="\r\n\x00", exclude_categories=["Cs"]),
        max_size=12,
    ),
)


@settings(max_examples=150, deadline=None)
@given(lines=st.lists(LINE, max_size=12), garbage=st.binary(max_size=6))
def test_every_line_is_kept_or_quarantined_once(tmp_path_factory, lines, garbage):
    path = tmp_path_factory.mktemp("lines") / "log"
    content = "\n".join(["a\x1db\x1d5\x1d1", *lines]).encode()
    content += b"\n" + garbage.replace(b"\n", b"").replace(b"\r", b"").replace(b"\x00", b"")
    path.write_bytes(content)
    header = tuple(COLUMNS.names())
    table, quarantine = readings(
        CsvSource(path=str(path), columns=COLUMNS, header=header, separator="\x1d", quoted=False)
    )
    lines = enumerate(content.split(b"\n"), 1)
    filled = [number for number, line in lines if line.strip(b"\x1d")]
    assert len(kept(table)) + len(quarantine) == len(filled)
    assert sum(rejected(table).values()) == len(quarantine)
    assert set(quarantine["line"].to_pylist()) <= set(filled)
    assert len(set(quarantine["line"].to_pylist())) == len(quarantine)


QUOTED = st.text(alphabet='"a,b ', max_size=14)


@settings(max_examples=300, deadline=None)
@given(lines=st.lists(QUOTED, max_size=10), more=st.integers(0, 3))
def test_a_stray_quote_costs_its_own_line(tmp_path_factory, lines, more):
    """Arrow would read on to the next quote, and the rows between were gone.

    Separators alone are a blank line, which counts inside an open quote only.
    """
    path = tmp_path_factory.mktemp("quotes") / "log.csv"
    good = [f'"u{n}","i,{n}",5,{n}' for n in range(more)]
    path.write_text("\n".join(["who,what,stars,when", "first,x,5,1", *lines, *good]) + "\n")
    table, quarantine = readings(CsvSource(path=str(path), columns=COLUMNS))
    filled = sum(bool(line.strip(",")) for line in lines) + more + 1
    lost = [text for text in quarantine["text"].to_pylist() if text.strip(",")]
    assert len(kept(table)) + len(lost) == filled
    users = [row[0] for row in kept(table)]
    assert {"first", *(f"u{n}" for n in range(more))} <= set(users)
    assert not any("\n" in user for user in users)


def test_the_lines_of_damaged_rows_are_right_beside_stray_quotes(tmp_path):
    (tmp_path / "log.csv").write_text(
        'who,what,stars,when\na,x,5,1\nb,"y,5,1\nc,z,9,1\nd,"q,r",5,1\ne,5" disk,5,1\nf,z\n'
    )
    table, quarantine = readings(CsvSource(path=str(tmp_path / "log.csv"), columns=COLUMNS))
    assert [row[0] for row in kept(table)] == ["a", "d", "e"]
    found = [(row["line"], row["reason"], row["text"]) for row in quarantine.to_pylist()]
    assert found == [
        (3, "malformed", 'b,"y,5,1'),
        (4, "rating outside scale", "c,z,9,1"),
        (7, "malformed", "f,z"),
    ]


def test_a_missing_number_costs_its_own_row(tmp_path):
    rows = [{"who": "a", "what": "x", "stars": 3, "when": 5}, {"who": "b", "what": "x", "when": 5}]
    rows += [{"who": "c", "what": "x", "stars": None, "when": 5}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table, _ = readings(JsonLinesSource(path=str(tmp_path / "log.jsonl"), columns=COLUMNS))
    assert rejected(table) == {Status.RATING_NOT_A_NUMBER: 2}
    whole = {"who": ["a", "b"], "what": ["x", "x"], "when": [1, 2]}
    for kind in (pa.int64(), pa.decimal128(21, 2)):
        stars = pa.array([3, None], pa.int64()).cast(kind, safe=False)
        pq.write_table(pa.table({**whole, "stars": stars}), tmp_path / "log.parquet")
        table, _ = readings(ParquetSource(path=str(tmp_path / "log.parquet"), columns=COLUMNS))
        assert rejected(table) == {Status.RATING_NOT_A_NUMBER: 1}


def test_ids_are_never_bent(tmp_path):
    path = tmp_path / "log.parquet"
    columns = Columns(user="who", item="what")
    largest = 2**63 - 1
    who = pa.array([largest, 2**64 - 5, 7], pa.uint64())
    pq.write_table(pa.table({"who": who, "what": [1, 1, 1]}), path)
    table, _ = readings(ParquetSource(path=str(path), columns=columns, ids="int"))
    assert [row[0] for row in kept(table)] == [largest, 7]
    assert rejected(table) == {Status.ID_NOT_AN_INTEGER: 1}
    table, _ = readings(ParquetSource(path=str(path), columns=columns))
    assert [row[0] for row in kept(table)] == [str(largest), str(2**64 - 5), "7"]
    pq.write_table(pa.table({"who": [1.0, float("nan")], "what": [1, 2]}), path)
    table, _ = readings(ParquetSource(path=str(path), columns=columns))
    assert rejected(table) == {Status.MISSING_ID: 1}


def test_json_that_no_text_can_hold_is_quarantined(tmp_path):
    good = json.dumps({"who": "a", "what": "x", "stars": 5, "when": 1})
    odd = [
        '{"who": "\\ud800", "what": "x", "stars": 5, "when": 1}',
        '{"who": ["q"], "what": "x", "stars": 5, "when": 1}',
        "[" * 100_000,
        '{"who": "b", "what": "x", "stars": ' + "9" * 5000 + "}",
    ]
    (tmp_path / "log.jsonl").write_text("\n".join([good, *odd]) + "\n")
    table, quarantine = readings(JsonLinesSource(path=str(tmp_path / "log.jsonl"), columns=COLUMNS))
    assert [row[0] for row in kept(table)] == ["a"]
    assert quarantine["line"].to_pylist() == [2, 3, 4, 5]


def test_an_impossible_date_costs_its_own_row(tmp_path):
    days = [
        "2020-01-01T10:00:00Z",
        "2021-02-30T10:00:00Z",
        "2020-02-29",
        "2019-02-29",
        "2020-13-01",
    ]
    lines = "".join(f"u{n},x,{day}\n" for n, day in enumerate(days))
    (tmp_path / "log.csv").write_text("who,what,when\n" + lines)
    source = CsvSource(
        path=str(tmp_path / "log.csv"),
        columns=Columns(user="who", item="what", time="when"),
        time_unit="iso8601",
    )
    assert [row[0] for row in kept(readings(source)[0])] == ["u0", "u2"]


def test_folders_are_read_to_their_depth_and_empty_parts_are_nothing(tmp_path):
    (tmp_path / "day=1").mkdir()
    (tmp_path / "_tmp").mkdir()
    (tmp_path / "day=1" / "b.csv").write_text("who,what,stars,when\n2,20,3,200\n")
    (tmp_path / "_tmp" / "c.csv").write_text("of a writer who has not finished")
    (tmp_path / "a.csv").write_text("who,what,stars,when\n1,10,5,100\n")
    (tmp_path / "empty.csv").write_text("")
    source = CsvSource(path=str(tmp_path), columns=COLUMNS, ids="int")
    assert kept(readings(source)[0]) == ROWS
