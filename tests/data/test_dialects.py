"""Text logs as people have them."""

import csv
import io
import lzma
import tarfile
import zipfile

import pyarrow as pa
import pytest
from dateutil import parser as dateutil
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.data.logs import text
from distrib.data.logs.config import CsvSource, JsonLinesSource, MatrixSource, SessionsSource
from distrib.data.logs.formats.netflix import NetflixSource
from distrib.data.logs.parse_values import parse_times
from distrib.data.logs.rating_scale import RatingsConfig, Scale, scale_of
from distrib.data.schema import Status
from distrib.errors import ConfigError, DataError
from tests.data.test_formats import kept, readings, rejected

PAIRS = {"user": "u", "item": "i"}
RATED = {**PAIRS, "rating": "r"}


def csv_source(path, **settings):
    return CsvSource(path=str(path), **{"columns": PAIRS, **settings})


def pairs(table):
    return [row[:2] for row in kept(table)]


FIELD = st.text(alphabet='a,"\n\r ;1', max_size=6)


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.tuples(FIELD, FIELD, FIELD), min_size=1, max_size=12), cut=st.booleans())
def test_records_of_several_lines_read_as_the_csv_module_does(tmp_path_factory, rows, cut):
    path = tmp_path_factory.mktemp("records") / "log.csv"
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([("note", "u", "i"), *rows])
    path.write_bytes(sink.getvalue().replace("\r", "").encode())
    wanted = list(csv.reader(io.StringIO(sink.getvalue().replace("\r", ""), newline="")))[1:]
    wanted = [tuple(cell.replace("\n", " ") for cell in row[1:]) for row in wanted]
    wanted = [row for row in wanted if all(row)]
    with pytest.MonkeyPatch.context() as patch:
        if cut:
            patch.setattr(text, "_CHUNK_BYTES", 16)
        table, _ = readings(csv_source(path, multiline=True))
    assert pairs(table) == wanted


PLAIN = st.text(alphabet='ab1\u00e9 ,;|\t"#\\\\', min_size=1, max_size=5).map(str.strip)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(PLAIN, PLAIN, PLAIN), min_size=1, max_size=10),
    separator=st.sampled_from(",;|\t"),
    escape=st.sampled_from(["", "\\"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "latin-1", "utf-16"]),
    everything=st.booleans(),
    cut=st.booleans(),
)
def test_dialects_read_as_the_csv_module_does(
    tmp_path_factory, rows, separator, escape, end, encoding, everything, cut
):
    path, sink = tmp_path_factory.mktemp("dialects") / "log.csv", io.StringIO(newline="")
    if not escape:
        rows = [tuple(cell.replace("\\", "") or "x" for cell in row) for row in rows]
    rows = [row for row in rows if all(row) and "#" not in row[0][:1]]
    dialect = {"delimiter": separator, "lineterminator": end}
    dialect |= {"escapechar": escape, "doublequote": False} if escape else {}
    dialect |= {"quoting": csv.QUOTE_ALL if everything else csv.QUOTE_MINIMAL}
    writer = csv.writer(sink, **dialect)
    writer.writerow(("u", "i", "n"))
    for row in rows:
        sink.write(f"# a comment{separator}{end}")
        writer.writerow(row)
    path.write_bytes(sink.getvalue().encode(encoding))
    more = {"separator": separator, "encoding": encoding, "comment": "#"}
    more |= {"escape": escape} if escape else {}
    with pytest.MonkeyPatch.context() as patch:
        if cut:
            patch.setattr(text, "_CHUNK_BYTES", 16)
        table, _ = readings(csv_source(path, **more))
    assert pairs(table) == [row[:2] for row in rows]


@settings(max_examples=150, deadline=None)
@given(
    notes=st.lists(st.text(alphabet='ab,"\n', max_size=8), min_size=1, max_size=12),
    size=st.integers(20, 200),
)
def test_a_line_inside_an_open_quote_is_never_a_row(tmp_path_factory, notes, size):
    """Whatever the notes hold, and wherever the file is cut into ranges."""
    path = tmp_path_factory.mktemp("open") / "log.csv"
    sink = io.StringIO(newline="")
    rows = [(f"u{n}", f"i{n}", note) for n, note in enumerate(notes)]
    csv.writer(sink, lineterminator="\n").writerows([("u", "i", "note"), *rows])
    path.write_bytes(sink.getvalue().encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_CHUNK_BYTES", 16)
        table, quarantine = readings(csv_source(path))
    whole = [row[:2] for row in rows if "\n" not in row[2]]
    assert pairs(table) == whole
    lines = len([line for line in sink.getvalue().split("\n")[1:] if line])
    assert len(quarantine) >= lines - len(whole) - sum(row[2].count("\n\n") for row in rows) - 12


def test_a_record_over_the_cut_of_two_ranges_is_quarantined(tmp_path, monkeypatch):
    rows = [f'u{n},i{n},"one\nv{n},j{n},two\nthree"\n' for n in range(40)]
    (tmp_path / "log.csv").write_text("u,i,note\n" + "".join(rows))
    for size in range(60, 160, 7):
        monkeypatch.setattr(text, "RANGE_BYTES", size)
        table, quarantine = readings(csv_source(tmp_path / "log.csv"))
        assert kept(table) == []
        assert len(quarantine) == 120
    monkeypatch.undo()
    table, _ = readings(csv_source(tmp_path / "log.csv", multiline=True))
    assert pairs(table) == [(f"u{n}", f"i{n}") for n in range(40)]


def test_lines_are_numbered_through_records_of_several(tmp_path):
    (tmp_path / "log.csv").write_text('u,i,r\na,"x\ny",5\nb,z,none\n')
    source = csv_source(tmp_path / "log.csv", columns=RATED, multiline=True)
    table, quarantine = readings(source)
    assert pairs(table) == [("a", "x y")]
    assert quarantine["line"].to_pylist() == [4]


def test_a_lone_carriage_return_costs_its_own_line(tmp_path):
    """Arrow ends a row there, so that the second half would be a row of another user."""
    (tmp_path / "log.csv").write_bytes(b"u,i\na,x\njunk\rvictim,y\nb,z\r\nc,w\r")
    table, quarantine = readings(csv_source(tmp_path / "log.csv"))
    assert pairs(table) == [("a", "x"), ("b", "z"), ("c", "w")]
    assert quarantine["reason"].to_pylist() == ["malformed"]


def test_lines_may_end_in_carriage_returns_alone(tmp_path, monkeypatch):
    rows = [f"u{n},i{n}" for n in range(50)]
    (tmp_path / "log.csv").write_bytes("\r".join(["u,i", *rows, ",,", ","]).encode())
    monkeypatch.setattr(text, "RANGE_BYTES", 64)
    table, quarantine = readings(csv_source(tmp_path / "log.csv"))
    assert pairs(table) == [tuple(row.split(",")) for row in rows]
    assert len(quarantine) == 0  # separators alone are a blank line


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-32", "shift_jis"])
def test_text_in_any_encoding(tmp_path, encoding, monkeypatch):
    name = "\N{HIRAGANA LETTER A}" if encoding == "shift_jis" else "Am\u00e9lie"
    rows = "".join(f"{n},{name}\n" for n in range(30))
    (tmp_path / "log.csv").write_bytes(f"u,i\n{rows}".encode(encoding))
    monkeypatch.setattr(text, "RANGE_BYTES", 64)
    table, _ = readings(csv_source(tmp_path / "log.csv", encoding=encoding))
    assert pairs(table) == [(str(n), name) for n in range(30)]


def test_an_encoding_that_nobody_knows_is_refused():
    for name in ("nonsense", "zlib_codec"):
        with pytest.raises(ValueError, match="no encoding that Python knows"):
            csv_source("x", encoding=name)


@pytest.mark.parametrize(
    ("content", "settings", "wanted"),
    [
        ("% a\n%b\nu i\n  1   2 \n3\t4\n", {"separator": "whitespace", "comment": "%"},
         [("1", "2"), ("3", "4")]),
        ("u,i\n#1,2\n3,4\n", {"comment": "#"}, [("3", "4")]),
        ("u\ti\n\\N\tx\nNULL\ty\na\tz\n", {"separator": "\t", "null_values": ("\\N", "NULL")},
         [("a", "z")]),
        ('u,i\n"a\\"b,c",x\n', {"escape": "\\"}, [('a"b,c', "x")]),
        ('u::i\n"a::b"::x\n', {"separator": "::"}, [("a::b", "x")]),
        ('"u","i"\na,x\n', {}, [("a", "x")]),
        ("u,i\n,\n,,,\na,x\n", {}, [("a", "x")]),
    ],
)  # fmt: skip
def test_dialects(tmp_path, content, settings, wanted):
    (tmp_path / "log.txt").write_text(content)
    table, quarantine = readings(csv_source(tmp_path / "log.txt", **settings))
    assert pairs(table) == wanted
    assert all(row["reason"] == "missing id" for row in quarantine.to_pylist())


def test_a_header_is_read_like_a_row(tmp_path):
    (tmp_path / "log.csv").write_text('"the, user",i,"say ""r"""\na,x,3\n')
    columns = {"user": "the, user", "item": "i", "rating": 'say "r"'}
    table, _ = readings(csv_source(tmp_path / "log.csv", columns=columns))
    assert kept(table) == [("a", "x", 3.0, 0)]


def test_numbers_with_a_comma_and_words_for_yes_and_no(tmp_path):
    (tmp_path / "log.csv").write_text("u;i;r\na;x;4,5\nb;y;5\nc;z;1.5\n")
    source = csv_source(tmp_path / "log.csv", columns=RATED, separator=";", decimal=",")
    table, _ = readings(source, Scale((4.5, 5.0)))
    assert [row[2] for row in kept(table)] == [4.5, 5.0]
    (tmp_path / "log.csv").write_text("u,i,r\na,x,true\nb,y,False\nc,z,TRUE\nd,w,maybe\n")
    source = csv_source(tmp_path / "log.csv", columns=RATED)
    table, _ = readings(source, Scale((0.0, 1.0)))
    assert [row[2] for row in kept(table)] == [1.0, 0.0, 1.0]
    assert rejected(table) == {Status.RATING_NOT_A_NUMBER: 1}


def test_rows_left_out_and_rows_not_rated_are_no_damage(tmp_path):
    (tmp_path / "log.csv").write_text(
        "u,i,event,r\na,x,view,\na,y,buy,5\nb,x,buy,-1\nb,z,buy,\nc,x,buy,9\n"
    )
    source = csv_source(tmp_path / "log.csv", columns=RATED, where={"event": ("buy",)})
    table, quarantine = readings(source, Scale((5.0,), unrated=("-1", "")))
    assert kept(table) == [("a", "y", 5.0, 1)]
    assert rejected(table) == {
        Status.LEFT_OUT_BY_WHERE: 1, Status.NOT_RATED: 2, Status.RATING_OUTSIDE_SCALE: 1,
    }  # fmt: skip
    damaged = [row for row in quarantine.to_pylist() if row["reason"] == "rating outside scale"]
    assert [row["line"] for row in damaged] == [6]
    table, _ = readings(source, Scale((3.0, 5.0), unrated=("-1", ""), unrated_as=3.0))
    assert [row[2] for row in kept(table)] == [5.0, 3.0, 3.0]


def test_names_of_events_become_weights(tmp_path):
    (tmp_path / "log.csv").write_text("u,i,event\na,x,view\na,y,buy\nb,x,other\n")
    source = csv_source(tmp_path / "log.csv", columns={**PAIRS, "rating": "event"})
    config = RatingsConfig(values={"view": 1, "buy": 5})
    scale = scale_of(config, None, source.columns, "last")
    assert scale.levels == (1.0, 5.0)
    table, _ = readings(source, scale)
    assert [row[2] for row in kept(table)] == [1.0, 5.0]
    assert rejected(table) == {Status.RATING_NOT_A_NUMBER: 1}
    with pytest.raises(ConfigError, match=r"unrated_as = 2: not a level"):
        scale_of(
            RatingsConfig(levels=(1, 5), unrated=(0,), unrated_as=2), None, source.columns, "last"
        )


def test_what_a_file_is_is_seen_from_its_bytes(tmp_path):
    content = b"u,i\na,x\n"
    (tmp_path / "LOG.CSV.XZ").write_bytes(lzma.compress(content))
    (tmp_path / "part-00000").write_bytes(pa.compress(content, "gzip", asbytes=True))
    for name in ("LOG.CSV.XZ", "part-00000"):
        table, _ = readings(csv_source(tmp_path / name))
        assert pairs(table) == [("a", "x")]
    (tmp_path / "log.csv").write_bytes(content)
    with tarfile.open(tmp_path / "log.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "log.csv", "log.csv")
    found = {"log.tar.gz": "is a tar archive; unpack it", "x": "is a 7z archive",
             "y": "is a Parquet file", "z": "holds zero bytes"}  # fmt: skip
    for name, start in (("x", b"7z\xbc\xaf\x27\x1c"), ("y", b"PAR1"), ("z", b"a\0b" * 9)):
        (tmp_path / name).write_bytes(start + content)
    for name, message in found.items():
        with pytest.raises(DataError, match=message):
            csv_source(tmp_path / name).inspect()


def test_archives_that_cannot_be_read_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(DataError, match="holds no files"):
        csv_source(tmp_path / "empty.zip").inspect()
    with zipfile.ZipFile(tmp_path / "log.zip", "w") as archive:
        archive.writestr("a/README.md", "hello")
        archive.writestr("a/items.csv", "item,title\n1,x\n")
        archive.writestr("a/events.csv", "u,i\na,x\n")
    with pytest.raises(DataError, match=r"these do have them: \S+log\.zip:a/events\.csv"):
        csv_source(tmp_path / "log.zip").inspect()
    table, _ = readings(csv_source(f"{tmp_path}/log.zip:a/ev*.csv"))
    assert pairs(table) == [("a", "x")]
    with pytest.raises(DataError, match=r"holds no 'b\.csv'; it holds \['a/README"):
        csv_source(f"{tmp_path}/log.zip:b.csv").inspect()


def test_patterns_lists_and_files_that_are_no_part_of_a_log(tmp_path, capsys):
    for day in ("01", "02"):
        (tmp_path / day).mkdir()
        (tmp_path / day / "part.csv").write_text(f"u,i\nd{day},x\n")
        (tmp_path / day / "README.md").write_text("hello")
    wanted = [("d01", "x"), ("d02", "x")]
    for path in (tmp_path, tmp_path / "0*", tmp_path / "*" / "*.csv"):
        table, _ = readings(csv_source(path))
        assert pairs(table) == wanted
    assert "passed_over" in capsys.readouterr().err
    both = tuple(f"{tmp_path}/{day}/part.csv" for day in ("02", "01"))
    table, _ = readings(CsvSource(path=both, columns=PAIRS))
    assert pairs(table) == wanted[::-1]
    with pytest.raises(DataError, match="name each file once"):
        CsvSource(path=(both[0], both[0]), columns=PAIRS).inspect()
    with pytest.raises(DataError, match="no such file"):
        csv_source(tmp_path / "x*").inspect()


def test_columns_in_the_path_are_columns(tmp_path):
    for day, kind in (("2024-01-01", "buy"), ("2024-01-02", "a%20b"),
                      ("2024-01-03", "__HIVE_DEFAULT_PARTITION__")):  # fmt: skip
        folder = tmp_path / f"dt={day}" / f"event={kind}"
        folder.mkdir(parents=True)
        (folder / "part.csv").write_text(f"u,i\n{day},x\n")
    columns = {**PAIRS, "time": "dt"}
    source = csv_source(tmp_path, columns=columns, time_unit="iso8601", where={"event": ("a b",)})
    table, _ = readings(source)
    assert kept(table) == [("2024-01-02", "x", 1.0, 1704153600)]
    assert rejected(table) == {Status.LEFT_OUT_BY_WHERE: 2}


def test_a_line_without_an_end_is_refused_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "LONGEST_LINE", 1 << 17)
    monkeypatch.setattr(text, "_CHUNK_BYTES", 1 << 16)
    (tmp_path / "log.csv").write_bytes(b"x" * (1 << 20))
    with pytest.raises(DataError, match="a line is longer than"):
        csv_source(tmp_path / "log.csv").inspect()
    (tmp_path / "log.csv").write_bytes(b"u,i\na,b\n" + b"x" * (1 << 20))
    with pytest.raises(DataError, match="a line is longer than"):
        readings(csv_source(tmp_path / "log.csv"))


def test_a_log_that_changes_while_it_is_read_is_refused(tmp_path):
    (tmp_path / "log.csv").write_text("u,i\na,x\nb,y\n")
    source = csv_source(tmp_path / "log.csv")

    class Late(type(source)):
        def inspect(self):
            layout = super().inspect()
            (tmp_path / "log.csv").write_text("u,i\na,x\n")
            return layout

    with pytest.raises(DataError, match="changed while it was read"):
        readings(Late(**source.model_dump()))


@pytest.mark.parametrize("header", ["u,i\rx", "u,i," + "x" * 200_000, '"u,i'])
def test_a_header_that_is_none_is_refused(tmp_path, header):
    (tmp_path / "log.csv").write_text(header + "\na,b\n", newline="")
    with pytest.raises(DataError, match=r"no column|column names"):
        csv_source(tmp_path / "log.csv").inspect()


def test_messages_quote_no_more_than_a_line_of_a_file(tmp_path):
    (tmp_path / "log.csv").write_text(
        "x" * 50_000 + "," + ",".join(map(str, range(9000))) + "\n1\n"
    )
    with pytest.raises(DataError, match=r"\.\.\.', .* and 8981 more") as error:
        csv_source(tmp_path / "log.csv").inspect()
    assert len(str(error.value)) < 1500


JSON = [
    ('{"u": "a", "i": 1}\n{"u": "b", "i": 2, "r": 3}\n', RATED, [("b", "2", 3.0, 1)]),
    ('{"u": {"$oid": "a"}, "i": {"id": {"n": 5}}}\n', {"user": "u.$oid", "item": "i.id.n"},
     [("a", "5", 1.0, 0)]),
    ('{"a.b": "p", "i": 1}\n', {"user": "a.b", "item": "i"}, [("p", "1", 1.0, 0)]),
    ("{'u': u'a', 'i': 7, 'r': True, 'x': None}\n", RATED, [("a", "7", 1.0, 0)]),
    ('{"u": "a", "i": 7, "r": true}\n{"u": "b", "i": 7, "r": false}\n', RATED,
     [("a", "7", 1.0, 0)]),
]  # fmt: skip


@pytest.mark.parametrize(("content", "columns", "wanted"), JSON)
def test_json_of_other_writers(tmp_path, content, columns, wanted):
    (tmp_path / "log.json").write_text(content)
    table, _ = readings(
        JsonLinesSource(path=str(tmp_path / "log.json"), columns=columns), Scale((1.0, 3.0))
    )
    assert kept(table) == wanted


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"u": 1}]', "one JSON array; write one object per line"),
        ('{\n "u": 1\n}\n', "if objects take several lines"),
        ("__import__('os').system('true')\n", "is not a JSON object"),
        ("[" * 100_000, "one JSON array"),
        ('{"u": ' + "9" * 6000 + "}", "is not a JSON object"),
    ],
)
def test_what_is_no_json_line_is_named_with_the_way_to_convert_it(tmp_path, content, message):
    (tmp_path / "log.json").write_text(content)
    with pytest.raises(DataError, match=message):
        JsonLinesSource(path=str(tmp_path / "log.json"), columns=PAIRS).inspect()


def test_adjacency_lists_jester_and_netflix(tmp_path):
    (tmp_path / "train.txt").write_text("7 1 2 3\n9\n8 2 \n")
    source = SessionsSource(
        path=str(tmp_path / "train.txt"), separator=" ", padding="", user_first=True
    )
    assert pairs(readings(source)[0]) == [(7, 1), (7, 2), (7, 3), (8, 2)]
    (tmp_path / "jester.csv").write_text("2,-9.5,99,3.25\n1,99,99,0\n")
    source = MatrixSource(
        path=str(tmp_path / "jester.csv"), separator=",", unobserved=99, leading_columns=1
    )
    table, _ = readings(source, Scale((-9.5, 0.0, 3.25)))
    assert [row[:3] for row in kept(table)] == [(0, 0, -9.5), (0, 2, 3.25), (1, 2, 0.0)]


def test_netflix_blocks_are_whole_over_chunks(tmp_path, monkeypatch):
    rows = [f"{movie}:\n" + "".join(f"{u},{1 + u % 5},2005-01-0{1 + u % 9}\n" for u in range(20))
            for movie in range(1, 6)]  # fmt: skip
    (tmp_path / "combined.txt").write_text("".join(rows) + "odd\n")
    monkeypatch.setattr(text, "_CHUNK_BYTES", 100)
    table, quarantine = readings(NetflixSource(path=str(tmp_path / "combined.txt")))
    assert pairs(table) == [(u, movie) for movie in range(1, 6) for u in range(20)]
    assert [(row["line"], row["text"]) for row in quarantine.to_pylist()] == [(106, "odd")]
    (tmp_path / "other.txt").write_text("1,2,3\n")
    with pytest.raises(DataError, match="is not a movie such as '1:'"):
        NetflixSource(path=str(tmp_path / "other.txt")).inspect()


ZONE = st.sampled_from(
    ["", "Z", "z", " UTC", " GMT", "+00", "+0200", "-03:30", " +0000", " -05:00", "+14"]
)
MOMENT = st.datetimes()


@settings(max_examples=300, deadline=None)
@given(moment=MOMENT, zone=ZONE, mark=st.sampled_from("T "), digits=st.integers(0, 9))
def test_dates_read_as_dateutil_does(moment, zone, mark, digits):
    fraction = "." + f"{moment.microsecond:06d}000"[:digits] if digits else ""
    written = moment.replace(microsecond=0).isoformat(mark) + fraction + zone
    seconds, is_time = parse_times(pa.chunked_array([[written]]), "iso8601")
    wanted = dateutil.isoparse(moment.replace(microsecond=0).isoformat() + "Z")
    if zone.strip() not in ("", "Z", "z", "UTC", "GMT"):
        wanted = dateutil.parse(f"{moment.replace(microsecond=0).isoformat()}{zone.strip()}")
    assert is_time[0]
    offset = (wanted.utcoffset() or dateutil.parse("2000-01-01T00Z").utcoffset()).total_seconds()
    plain = moment.replace(microsecond=0)
    assert seconds[0] == int((plain - type(plain)(1970, 1, 1)).total_seconds() - offset)


@pytest.mark.parametrize(
    ("written", "form", "seconds"),
    [
        ("Tue Apr 03 18:00:09 +0000 2012", "%a %b %d %H:%M:%S %z %Y", 1333476009),
        ("12/1/2010 8:26", "%m/%d/%Y %H:%M", 1291191960),
        ("11/15/2019 8:55:22 AM", "%m/%d/%Y %I:%M:%S %p", 1573808122),
        ("2014-12-06 02", "%Y-%m-%d %H", 1417831200),
        ("20141206", "%Y%m%d", 1417824000),
        ("no date", "%Y%m%d", None),
        ("99990101", "%Y%m%d", 253370764800),
    ],
)
def test_dates_in_other_forms(written, form, seconds):
    found, is_time = parse_times(pa.chunked_array([[written, None]]), "s", form)
    assert is_time.tolist() == [seconds is not None, False]
    assert found[0] == (seconds or 0)


def test_a_form_without_a_year_is_refused():
    for form in ("%H:%M", "nonsense"):
        with pytest.raises(ValueError, match="strptime's letters"):
            csv_source("x", time_format=form)


def test_times_do_not_wrap_around():
    for array in (
        pa.array([2**64 - 1], pa.uint64()), pa.array([2**62], pa.timestamp("s")),
        pa.array([1], pa.time32("s")), pa.array([1], pa.duration("s")),
    ):  # fmt: skip
        assert not parse_times(pa.chunked_array([array]), "s")[1][0]


def test_a_stray_quote_near_the_end_of_a_plain_file_costs_its_own_line(tmp_path):
    content = 'u,i,r\na,x,5\nb,"y,5\nc,z,4\nd,w,3\n'
    (tmp_path / "log.csv").write_text(content)
    (tmp_path / "log.csv.gz").write_bytes(pa.compress(content.encode(), "gzip", asbytes=True))
    for name in ("log.csv", "log.csv.gz"):
        table, quarantine = readings(csv_source(tmp_path / name))
        assert pairs(table) == [("a", "x"), ("c", "z"), ("d", "w")]
        assert quarantine["line"].to_pylist() == [3]


def test_a_long_record_is_read_whole(tmp_path):
    note = "word,more words\nv,j,k\n" * 100_000
    (tmp_path / "log.csv").write_text(f'u,i,note\na,x,"{note}"\nb,y,short\n')
    source = csv_source(tmp_path / "log.csv", multiline=True)
    assert pairs(readings(source)[0]) == [("a", "x"), ("b", "y")]
    assert pairs(readings(csv_source(tmp_path / "log.csv"))[0]) == [("b", "y")]


def test_tables_with_removed_rows_are_refused_by_any_path(tmp_path):
    (tmp_path / "t" / "_delta_log").mkdir(parents=True)
    (tmp_path / "t" / "_delta_log" / "0.json").write_text("{}")
    (tmp_path / "t" / "part.csv").write_text("u,i\na,x\n")
    for path in (tmp_path / "t", tmp_path / "t" / "*.csv", tmp_path / "*"):
        with pytest.raises(
            DataError, match="is a Delta Lake table, whose folder also holds removed"
        ):
            csv_source(path).inspect()


def test_json_ids_do_not_depend_on_damage_in_other_lines(tmp_path):
    for more in ("", "damaged\n"):
        (tmp_path / "log.json").write_text('{"u": 10.0, "i": 1}\n' + more)
        table, _ = readings(JsonLinesSource(path=str(tmp_path / "log.json"), columns=PAIRS))
        assert pairs(table) == [("10", "1")]
