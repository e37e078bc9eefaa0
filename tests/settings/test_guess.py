"""What ``distrib init`` makes of logs: real ones, the cases of others, and drawn ones."""

import datetime
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distrib.config import load
from distrib.data.prepare.job import preflight
from distrib.errors import DataError
from distrib.run_file import RunFile
from distrib.settings.guess import guess
from distrib.settings.starter import measure, run_file

DATA = os.environ.get("DISTRIB_DATA")

REAL = {
    "beauty-5core/Beauty.txt": ("sessions", 198_502, 22_363, 12_101),
    "coat/train.ascii": ("matrix", 6_960, 290, 300),
    "coat/coat.parquet": ("parquet", 11_600, 290, 300),
    "diginetica/Diginetica.csv": ("sessions", 467_631, 62_502, 43_229),
    "kuairand-likes/likes_and_hates.tsv": ("csv", 33_745, 664, 1_854),
    "lastfm-2k": ("csv", 92_834, 1_892, 17_632),
    "ml-100k": ("movielens", 100_000, 943, 1_682),
    "ml-1m/ratings.rebuilt.dat.gz": ("movielens", 1_000_209, 6_040, 3_706),
    "ml-1m/ml-1m.parquet": ("parquet", 1_000_209, 6_040, 3_706),
    "ml-latest-small": ("movielens", 100_836, 610, 9_724),
    "ml1m-gsasrec/sequences.txt": ("sessions", 999_611, 6_040, 3_416),
    "yelp-hin/user_business.dat": ("csv", 198_397, 16_239, 14_284),
}


def starter(tmp_path, url, purpose="research"):
    """Guess a log, write its run file, and check that prepare takes it."""
    found = guess(str(url))
    size = measure(found)
    path = tmp_path / "run.toml"
    text = run_file(found, size, purpose, "run")
    path.write_text(text.replace('"runs/run', f'"{tmp_path}/run'))
    preflight(load(RunFile, path).data)
    return found, size, path


@pytest.mark.skipif(DATA is None, reason="DISTRIB_DATA is not set")
@pytest.mark.parametrize("name", REAL)
def test_real_logs_are_read_whole(name, tmp_path):
    wanted = REAL[name]
    for purpose in ("research", "nightly"):
        found, size, path = starter(tmp_path, Path(DATA) / name, purpose)
        assert (found.source["format"], size.rows, size.users, size.items) == wanted
        assert {*size.rejected} <= {"left out by where"}
        assert (load(RunFile, path).data.split.name == "none") == (purpose == "nightly")


ROWS = [(f"u{n % 7}", f"i{n * 5 % 11}", n % 5 + 1, 1_600_000_000 + n) for n in range(60)]


def lines(rows, separator=",", header="user_id,item_id,stars,timestamp"):
    head = [header.replace(",", separator)] if header else []
    return "\n".join([*head, *(separator.join(map(str, row)) for row in rows)]) + "\n"


WRITTEN = {
    "comma": (lines(ROWS), {"separator": ","}),
    "semicolon": (lines(ROWS, ";"), {"separator": ";"}),
    "tab": (lines(ROWS, "\t"), {"separator": "\t"}),
    "bar": (lines(ROWS, "|"), {"separator": "|"}),
    "blanks": (lines(ROWS, "   "), {"separator": "whitespace"}),
    "no header": (lines(ROWS, header=""), {"header": ["user", "item", "rating", "time"]}),
    "remarks": ("# exported\n" + lines(ROWS), {"comment": "#"}),
    "quoted": (
        lines([(u, i, f'"{r}"', t) for u, i, r, t in ROWS]),
        {"columns": {"user": "user_id", "item": "item_id", "rating": "stars", "time": "timestamp"}},
    ),
    "milliseconds": (lines([(*row[:3], row[3] * 1000) for row in ROWS]), {"time_unit": "ms"}),
    "dates": (
        lines([(*row[:3], f"2024-01-{n % 28 + 1:02}") for n, row in enumerate(ROWS)]),
        {"time_unit": "iso8601"},
    ),
    "american dates": (
        lines([(*row[:3], f"01/{n % 28 + 1:02}/2024") for n, row in enumerate(ROWS)]),
        {"time_format": "%m/%d/%Y"},
    ),
    "integers": (
        lines([(u[1:], i[1:], r, t) for u, i, r, t in ROWS]),
        {"ids": "int"},
    ),
    "leading zeros": (lines([(f"0{u[1:]}", *row) for u, *row in ROWS]), {"ids": None}),
    "other names": (
        lines([(t, i, u) for u, i, _, t in ROWS], header="created_at,sku,customer"),
        {"columns": {"user": "customer", "item": "sku", "time": "created_at"}},
    ),
    "null marks": (lines([*ROWS, ("\\N", "i1", 3, 1_600_000_000)]), {"null_values": ["\\N"]}),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_delimited_logs_by_how_they_are_written(name, tmp_path):
    text, wanted = WRITTEN[name]
    log = tmp_path / "log.csv"
    log.write_text(text)
    found, size, _ = starter(tmp_path, log)
    assert size.rows == len(ROWS) - (len(ROWS) - size.rows if "zeros" in name else 0)
    for key, value in wanted.items():
        assert found.source.get(key) == value, key
    if name != "other names":
        assert found.levels == (1.0, 2.0, 3.0, 4.0, 5.0)


def test_other_formats(tmp_path):
    columns = {"buyer": ["a", "b"] * 20, "product_id": [1, 2, 3, 4] * 10}
    moments = [datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)] * 40
    pq.write_table(pa.table({**columns, "ts": moments}), tmp_path / "log.parquet")
    found, size, _ = starter(tmp_path, tmp_path / "log.parquet")
    assert found.source["columns"] == {"user": "buyer", "item": "product_id", "time": "ts"}
    assert size.rows == 40
    objects = [{"author": {"steamid": u}, "app": i, "n": {"deep": 1}} for u, i, *_ in ROWS]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, objects)))
    found, *_ = starter(tmp_path, tmp_path / "log.jsonl")
    assert found.source["columns"] == {"user": "author.steamid", "item": "app"}
    (tmp_path / "mv_1.txt").write_text(
        "1:\n" + "".join(f"{n},{n % 5 + 1},2005-01-11\n" for n in range(9))
    )
    assert starter(tmp_path, tmp_path / "mv_1.txt")[0].source["format"] == "netflix"


def test_a_table_of_counts_and_one_of_likes(tmp_path):
    rng = np.random.default_rng(0)
    counts = [(u, i, int(rng.integers(1, 4000))) for u, i, *_ in ROWS]
    (tmp_path / "log.csv").write_text(lines(counts, header="user,artist,plays"))
    found, _, path = starter(tmp_path, tmp_path / "log.csv")
    assert found.ratings == {"confidence": "log", "alpha": 1.0}
    assert load(RunFile, path).model.name == "mult_vae"
    assert load(RunFile, path).data.cleaning.duplicates == "sum"
    likes = [(u, i, str(n % 3 == 0).lower()) for n, (u, i, *_) in enumerate(ROWS)]
    (tmp_path / "log.csv").write_text(lines(likes, header="user,app_id,is_recommended"))
    found, size, path = starter(tmp_path, tmp_path / "log.csv")
    assert found.levels is None
    assert load(RunFile, path).data.source.where == {"is_recommended": (True,)}
    assert size.rows == 20
    assert size.rejected == {"left out by where": 40}


def test_columns_that_no_name_shows_can_be_given_and_typed_times_are_seen(tmp_path):
    moments = [datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)] * 40
    who, what = ["a", "b"] * 20, ["x", "y", "z", "w"] * 10
    table = pa.table({"bought_by": who, "what": what, "bought_on": moments})
    pq.write_table(table, tmp_path / "log.parquet")
    found = guess(str(tmp_path / "log.parquet"), {"user": "bought_by", "item": "what"})
    assert found.source["columns"] == {"user": "bought_by", "item": "what", "time": "bought_on"}
    with pytest.raises(DataError, match="not in the log"):
        guess(str(tmp_path / "log.parquet"), {"user": "absent"})


def test_events_are_named_and_kept(tmp_path):
    rows = [(u, i, ("view", "buy")[n % 2]) for n, (u, i, *_) in enumerate(ROWS)]
    (tmp_path / "log.csv").write_text(lines(rows, header="user,item,event"))
    found, _, path = starter(tmp_path, tmp_path / "log.csv")
    assert found.events == ("event", ["buy", "view"])
    (doubt,) = found.doubts
    assert "all kinds of event count alike (buy, view)" in doubt
    assert '# where = { event = ["buy"] }' in path.read_text()


def test_what_is_no_log_is_one_clear_error(tmp_path):
    (tmp_path / "notes.txt").write_text("Dear diary,\nnothing happened.\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "array.json").write_text('[{"user": 1, "item": 2}]')
    for name, message in (
        ("notes.txt", "no columns of users and items"),
        ("empty.csv", "empty"),
        ("array.json", "one JSON array"),
        ("absent.csv", "no such file"),
    ):
        with pytest.raises(DataError, match=message):
            guess(str(tmp_path / name))


@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_tables_of_versions_are_seen_as_such(kind, tmp_path):
    table = pa.table({"user": ["a", "b"] * 9, "item": ["x", "y", "z"] * 6})
    if kind == "delta":
        pytest.importorskip("deltalake").write_deltalake(str(tmp_path / "table"), table)
        place = tmp_path / "table"
    else:
        sql = pytest.importorskip("pyiceberg.catalog.sql")
        catalog = sql.SqlCatalog("c", uri="sqlite:///:memory:", warehouse=f"file://{tmp_path}/w")
        catalog.create_namespace("web")
        made = catalog.create_table("web.log", schema=table.schema)
        made.append(table)
        place = Path(made.location().removeprefix("file://"))
    found, size, _ = starter(tmp_path, place)
    assert found.source["format"] == kind
    assert (size.users, size.items) == (2, 3)
