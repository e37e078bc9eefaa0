"""Altered run files and logs: each is right, or one clear error, soon and without a secret."""

import gzip
import json
import random
import time
import tomllib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distrib import redaction
from distrib.cli import run_and_report
from distrib.config import load
from distrib.data.logs.config import (
    AmazonSource,
    CsvSource,
    HetRecSource,
    JsonLinesSource,
    MatrixSource,
    MovieLensSource,
    NetflixSource,
    ParquetSource,
    RecBoleSource,
    SessionsSource,
)
from distrib.data.logs.rating_scale import Scale
from distrib.data.prepare.job import read_plan
from distrib.data.schema import DAMAGED, QUARANTINE, Status, interactions
from distrib.errors import DataError
from distrib.redaction import is_secret
from distrib.run_file import RunFile
from distrib.training.preflight.checks import check_run
from tests.data.test_formats import readings

MARK = "m4rk-8fJq2"
LIMIT_S = 25.0
LONGEST = 9000
RUN_FILE = """
run = "PLACE/run"
seed = 3
[data]
prepared = "PLACE/prepared"
num_shards = 2
split = { name = "entrywise" }
source = { format = "csv", path = "PLACE/log.csv", columns = { user = "u", item = "i", rating = "r", time = "t" } }
ratings = { levels = [1.0, 2.0, 3.0, 4.0, 5.0] }
cleaning = { keep_above = 1.0, min_user_items = 2 }
[model]
name = "conv4rec"
latent_width = 8
[optimizer]
learning_rate = 1e-3
[train]
num_epochs = 2
num_workers = [1, 2]
checkpoint = { every_epochs = 1 }
[evaluate]
recall_at = [10]
[score]
k = 5
policy = { deny = ["x"], diversity = 0.2 }
[serve]
host = "127.0.0.1"
token = "SECRET"
models = { default = "PLACE/run" }
"""  # noqa: E501
ODD = [
    None, True, -1, 0, 10**30, -(2**63), 1.5, float("inf"), float("nan"), "", " ", "x" * 50_000,
    "\u0000", "\U0001f600", "../..", "s3://", "~", "${UNSET}", "${BAD}", [], [[]], {}, {"a": {}},
    ["x", 1], [1] * 10_000, "hdfs://a/b", "ftp://a/b", "1e5", "\u00b2", "true",
]  # fmt: skip


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(redaction, "_values", set())


def places(node, path=()):
    """Yield the paths of all values of a document."""
    if path:
        yield path
    parts = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, value in parts:
        yield from places(value, (*path, key))


def altered(document, rng):
    """Change a document in one or two places."""
    for _ in range(rng.choice([1, 1, 2])):
        *way, last = rng.choice(list(places(document)))
        node = document
        for key in way:
            node = node[key]
        rng.choice(CHANGES)(node, last, rng)
    return document


def replace(node, last, rng):
    node[last] = rng.choice(ODD)


def drop(node, last, _rng):
    del node[last]


def rename(node, last, _rng):
    if isinstance(node, dict):
        node[f"{last}x"] = node.pop(last)


def add(node, _last, rng):
    if isinstance(node, dict):
        name = rng.choice(["token", "api_key", "tokn", "name", "x"])
        node[name] = rng.choice([MARK, *ODD] if is_secret(name) else ODD)


def nest(node, last, rng):
    for _ in range(rng.choice([1, 3, 60])):
        node[last] = {"x": node[last]}


def copy(node, last, _rng):
    node[last] = json.loads(json.dumps(node, default=str))


CHANGES = [replace, replace, drop, rename, add, nest, copy]


def as_toml(value):
    """Write a value as TOML."""
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{json.dumps(str(k))} = {as_toml(v)}" for k, v in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if value is None:
        return '"none"'
    if isinstance(value, float):
        return {"inf": "inf", "nan": "nan"}.get(str(value), str(value))
    return json.dumps(value)


def run_file(place, rng):
    """Return an altered run file as text."""
    document = tomllib.loads(RUN_FILE.replace("SECRET", MARK))
    content = "\n".join(
        f"{json.dumps(k)} = {as_toml(v)}" for k, v in altered(document, rng).items()
    )
    if rng.random() < 0.15:  # not even TOML
        cut = rng.randrange(len(content))
        content = (
            content[:cut] + rng.choice(["", "]", '"', "=", "\n[", "\u0000"]) + content[cut + 2 :]
        )
    return content.replace("PLACE", str(place))


@pytest.mark.parametrize("part", range(6))
def test_altered_run_files_are_right_or_one_clear_error(tmp_path, part, capsys):
    (tmp_path / "log.csv").write_text("u,i,r,t\n" + "a,x,5,1\nb,y,3,2\n" * 10)
    for seed in range(100 * part, 100 * part + 100):
        content = run_file(tmp_path, random.Random(seed))
        (tmp_path / "run.toml").write_text(content, encoding="utf-8", errors="surrogatepass")

        def work():
            environment = {"BAD": "a\udc80b", "DISTRIB_TOKEN": MARK}
            file = load(RunFile, tmp_path / "run.toml", environment=environment)
            check_run(file.training())
            read_plan(file.data)
            return {}

        started_s = time.perf_counter()
        code = run_and_report(work)
        shown = capsys.readouterr().err
        assert code in (0, 1, 2), (seed, content[:2000], shown)
        assert time.perf_counter() - started_s < LIMIT_S, seed
        assert MARK not in shown, (seed, shown)
        assert len(shown) < LONGEST, (seed, len(shown))


def logs(place):
    """Write a log of each format; return its bytes, and how it is read."""
    pairs = {"user": "u", "item": "i", "rating": "r", "time": "t"}
    rows = [(f"u{n % 7}", f"i{n % 5}", 1 + n % 5, 10**9 + n) for n in range(40)]
    table = pa.table(dict(zip("uirt", map(list, zip(*rows, strict=True)), strict=True)))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=10)
    plain = "u,i,r,t\n" + "".join(f'{u},"{i}",{r},{t}\n' for u, i, r, t in rows)
    lines = "".join(json.dumps(dict(zip("uirt", row, strict=True))) + "\n" for row in rows)
    numbers = [(1 + n % 7, 1 + n % 5, 1 + n % 5, 10**9 + n) for n in range(40)]
    amazon = "".join(f"B0000000{n:02d},A1USERUSERUS{n % 7},5.0,{10**9 + n}\n" for n in range(40))
    inter = "user_id:token\titem_id:token\trating:float\n" + "".join(
        f"{u}\t{i}\t{r}\n" for u, i, r, _ in rows
    )
    blocks = "".join(f"{m}:\n" + f"{m},3,2005-01-0{m}\n" * 5 for m in range(1, 6))
    hetrec = "userID\tartistID\tweight\n" + "".join(f"{u}\t{i}\t3\n" for u, i, _, _ in numbers)
    path = str(place)
    return {
        "csv": (plain, CsvSource(path=path, columns=pairs)),
        "breaks": (plain, CsvSource(path=path, columns=pairs, multiline=True)),
        "latin": (plain, CsvSource(path=path, columns=pairs, encoding="latin-1", escape="\\")),
        "blanks": (plain.replace(",", "  "), CsvSource(path=path, columns=pairs,
                   separator="whitespace", comment="#", null_values=("x",))),
        "gzip": (gzip.compress(plain.encode()), CsvSource(path=path, columns=pairs)),
        "jsonl": (lines, JsonLinesSource(path=path, columns=pairs)),
        "python": (str(json.loads(lines.split("\n", 1)[0])) + "\n" + lines.replace("null", "None"),
                   JsonLinesSource(path=path, columns=pairs)),
        "parquet": (sink.getvalue().to_pybytes(), ParquetSource(path=path, columns=pairs)),
        "movielens": ("".join("::".join(map(str, row)) + "\n" for row in numbers),
                      MovieLensSource(path=path)),
        "amazon": (amazon, AmazonSource(path=path)),
        "recbole": (inter, RecBoleSource(path=f"{path}.inter")),
        "hetrec": (hetrec, HetRecSource(path=path)),
        "sessions": ("1,2,3\n4,5\n" * 20, SessionsSource(path=path)),
        "lists": ("1 2 3\n4 5\n" * 20, SessionsSource(path=path, separator=" ", user_first=True)),
        "matrix": ("1 0 5\n0 3 2\n" * 20, MatrixSource(path=path)),
        "netflix": (blocks, NetflixSource(path=path)),
    }  # fmt: skip


JUNK = [
    b"\0", b"\r", b"\n", b'"', b'""', b",", b"\xff\xfe", b"\xef\xbb\xbf", b"\x1f\x8b", b"{", b"nan",
    b"[" * 500, b"9" * 5000, b"\t" * 9, b"\\", b"inf", b"-", b"\xed\xa0\x80", b"PK\x03\x04",
]  # fmt: skip


def damaged(content, rng):
    """Change a few bytes of a file."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 2, 8])):
        at = rng.randrange(len(content) + 1)
        kind = rng.choice(["insert", "flip", "cut", "drop", "double", "swap"])
        if kind == "insert":
            content[at:at] = rng.choice(JUNK)
        elif kind == "flip" and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del content[max(at, 1) :]
        elif kind == "drop":
            del content[at : at + rng.choice([1, 5, 100])]
        elif kind == "double":
            content[at:at] = content[at : at + 60]
        else:
            content[at : at + 4] = content[at : at + 4][::-1]
    return bytes(content)


def tried(source):
    """Return the rows and the quarantine of a log, or its error."""
    try:
        return *readings(source, Scale((1.0, 2.0, 3.0, 4.0, 5.0))), ""
    except DataError as error:
        return interactions(pa.string()).empty_table(), QUARANTINE.empty_table(), str(error)


FORMATS = sorted(logs("x"))


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_logs_are_accounted_or_one_clear_error(tmp_path, name):
    whole, source = logs(tmp_path / "log")[name]
    whole = whole.encode() if isinstance(whole, str) else whole
    target = tmp_path / ("log.inter" if name == "recbole" else "log")
    target.write_bytes(whole)
    table, quarantine = readings(source, Scale((1.0, 2.0, 3.0, 4.0, 5.0)))
    kept = int((table["status"].to_numpy() == Status.KEPT).sum())
    assert kept >= 20
    assert len(quarantine) <= 1
    for seed in range(30):
        target.write_bytes(damaged(whole, random.Random(seed)))
        started_s = time.perf_counter()
        table, quarantine, message = tried(source)
        assert len(message) < 1500, (seed, message)
        assert not message or str(target) in message, (seed, message)
        status_N = table["status"].to_numpy()
        lost = table.filter(pa.array(np.isin(status_N, DAMAGED)))
        assert len(quarantine) == sum(lost["time"].to_pylist()), seed
        assert {*quarantine["reason"].to_pylist()} <= {status.reason for status in DAMAGED}
        kept = table.filter(pa.array(status_N == Status.KEPT))
        ids = [*kept["user"].to_pylist(), *kept["item"].to_pylist()]
        assert not any("\n" in str(value) or value == "" for value in ids)
        assert time.perf_counter() - started_s < LIMIT_S, seed
