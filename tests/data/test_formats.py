import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distrib.data import formats
from distrib.data.formats import Columns, CsvSource, MovieLensSource, ParquetSource
from distrib.data.schema import Status
from distrib.errors import DataError

COLUMNS = Columns(user="who", item="what", rating="stars", time="when")
ROWS = [(1, 10, 5.0, 100), (2, 20, 3.0, 200)]


def read(source):
    layout = formats.inspect(source)
    tables = [table for file in layout.files for table in formats.read(file, layout)]
    return pa.concat_tables(tables), layout


def statuses(table):
    return [Status(value) for value in table["status"].to_pylist()]


def kept(table):
    rows = table.filter(pa.array([s == Status.KEPT for s in statuses(table)])).to_pylist()
    return [(row["user"], row["item"], row["rating"], row["time"]) for row in rows]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("u.data", "1\t10\t5\t100\n2\t20\t3\t200\n"),
        ("ratings.dat", "1::10::5::100\n2::20::3::200\n"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n1,10,5.0,100\n2,20,3.0,200\n"),
        ("ratings.csv", "userId,movieId,rating,timestamp\r\n1,10,5.0,100\r\n2,20,3.0,200"),
    ],
)
def test_the_three_layouts_of_movielens_read_alike(tmp_path, name, text, compressed):
    path = tmp_path / (name + (".gz" if compressed else ""))
    path.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    table, layout = read(MovieLensSource(path=str(path)))
    assert kept(table) == ROWS
    assert len(layout.levels) == (10 if "csv" in name else 5)


def test_pieces_of_a_large_file_join_without_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_CHUNK_BYTES", 64)
    lines = [f"{n},{n % 7},4.5,{n}" for n in range(500)]
    path = tmp_path / "ratings.csv"
    path.write_text("\n".join(["userId,movieId,rating,timestamp", *lines]))
    table, _ = read(MovieLensSource(path=str(path)))
    assert kept(table) == [(n, n % 7, 4.5, n) for n in range(500)]


def test_every_bad_line_is_counted_with_its_reason(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        "who,what,stars,when\na,x,5,1\na,,5,1\nb,y,many,1\nb,z,9,1\nc,x,4,soon\nc,x\n"
        "d,x,3,\n d,y,2,1.7e9\n"
    )
    source = CsvSource(path=str(path), columns=COLUMNS, levels=(1.0, 2.0, 3.0, 4.0, 5.0))
    table, _ = read(source)
    assert sorted(statuses(table)) == sorted(
        [
            Status.KEPT,
            Status.MISSING_ID,
            Status.RATING_NOT_A_NUMBER,
            Status.RATING_OUTSIDE_SCALE,
            Status.TIME_NOT_A_NUMBER,
            Status.MALFORMED,
            Status.KEPT,
            Status.KEPT,
        ]
    )
    assert ("d", "x", 3.0, 0) in kept(table)
    assert (" d", "y", 2.0, 1_700_000_000) in kept(table)


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
    table, layout = read(source)
    assert kept(table) == [(7, 9, 1.0, 0), (8, 9, 1.0, 0)]
    assert layout.levels == (1.0,)


def test_parquet_with_any_columns_in_many_files(tmp_path):
    for part, row in enumerate(ROWS):
        columns = {name: [value] for name, value in zip(COLUMNS.names(), row, strict=True)}
        pq.write_table(pa.table({**columns, "more": ["x"]}), tmp_path / f"{part}.parquet")
    source = ParquetSource(path=str(tmp_path), columns=COLUMNS, levels=(1.0, 2.0, 3.0, 4.0, 5.0))
    table, layout = read(source)
    assert kept(table) == ROWS
    assert layout.id_kind == "int"


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
        formats.inspect(MovieLensSource(path=str(path)))


def test_unknown_columns_are_named_beside_those_there_are(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("who,what\n1,2\n")
    source = CsvSource(path=str(path), columns=Columns(user="who", item="thing"))
    with pytest.raises(DataError, match=r"no column\(s\) \['thing'\]; it has \['who', 'what'\]"):
        formats.inspect(source)


def test_ratings_need_their_levels():
    with pytest.raises(ValueError, match=r"columns\.rating and levels together"):
        CsvSource(path="x", columns=COLUMNS)


def test_a_damaged_gzip_file_is_named(tmp_path):
    path = tmp_path / "u.data.gz"
    path.write_bytes(gzip.compress(b"1\t10\t5\t100\n" * 1000)[:-20])
    layout = formats.inspect(MovieLensSource(path=str(path)))
    with pytest.raises(DataError, match="the gzip file is damaged"):
        list(formats.read(str(path), layout))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"who,what,stars,when\nJos\xe9,x,5,1\n", "cannot be read as text"),
        (b"PAR1 but no more", "is no Parquet file"),
    ],
)
def test_bytes_that_are_no_log_are_one_clear_error(tmp_path, content, message):
    path = tmp_path / "log"
    path.write_bytes(content)
    kind = ParquetSource if b"PAR1" in content else CsvSource
    source = kind(path=str(path), columns=COLUMNS, levels=(1.0, 5.0))
    with pytest.raises(DataError, match=message):
        read(source)


def test_marks_of_other_writers_are_no_data_and_every_file_has_its_header(tmp_path):
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "a.csv").write_text("who,what,stars,when\n1,10,5,100\n")
    (tmp_path / "b.csv").write_text("when,stars,what,who\n200,3,20,2\n")
    source = CsvSource(path=str(tmp_path), ids="int", columns=COLUMNS, levels=(3.0, 5.0))
    assert kept(read(source)[0]) == ROWS
    (tmp_path / "c.csv").write_text("who,thing\n1,2\n")
    with pytest.raises(DataError, match=r"c\.csv: no column\(s\) \['what', 'stars', 'when'\]"):
        read(source)


def test_odd_values_of_parquet_columns_are_rejected_not_bent(tmp_path):
    table = pa.table(
        {
            "who": [1, 2, 3],
            "what": [1, 2, 3],
            "stars": pa.array(["5", "x", "3"], pa.large_string()),
            "when": [float("nan"), 1.0, 1e30],
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    source = ParquetSource(path=str(tmp_path / "log.parquet"), columns=COLUMNS, levels=(3.0, 5.0))
    found, _ = read(source)
    wanted = [Status.TIME_NOT_A_NUMBER, Status.RATING_NOT_A_NUMBER, Status.TIME_NOT_A_NUMBER]
    assert statuses(found) == wanted
    assert Status.KEPT not in statuses(found)


def test_text_ids_like_na_are_ids_and_quotes_are_taken_off(tmp_path):
    path = tmp_path / "log.tsv"
    path.write_text('who\twhat\n"NA"\tnull\n')
    source = CsvSource(path=str(path), separator="\t", columns=Columns(user="who", item="what"))
    assert kept(read(source)[0]) == [("NA", "null", 1.0, 0)]


def test_levels_ascend_and_a_column_has_one_meaning():
    with pytest.raises(ValueError, match="ascending"):
        MovieLensSource(path="x", levels=(5.0, 1.0))
    with pytest.raises(ValueError, match="two meanings"):
        Columns(user="a", item="a")
