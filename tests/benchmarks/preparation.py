"""A log to histories, against Polars and DuckDB in one process, in one run on one machine.

``make bench-data``, or ``python -m tests.benchmarks.preparation --growth 5 20 80``. The log is
MovieLens-1M (DISTRIB_DATA) grown so many times by `data.logs.kronecker`, as CSV and as Parquet,
kept in ``--folder``. The others do what prepare does to the rows: parse, keep the latest of
doubles, order by user, time and item, group, write zstd Parquet; prepare also splits, indexes
items, counts and hashes. Seconds are without the start of the process, and for prepare given twice:
with Ray's workers still to start, and started. Memory is the largest sum of proportional set sizes
over the process and all its children. Nothing here asserts a figure.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

CSV_COLUMNS = ("user_id", "item_id", "rating", "timestamp")

POLARS = """
import polars as pl
scan = pl.scan_csv if {is_csv} else pl.scan_parquet
log = scan("{log}/*.{suffix}")
(log.sort("timestamp").unique(["user_id", "item_id"], keep="last")
 .sort("user_id", "timestamp", "item_id").group_by("user_id", maintain_order=True)
 .agg("item_id", "rating", "timestamp").collect(engine="streaming")
 .write_parquet("{out}", compression="zstd"))
"""
DUCKDB = """
import duckdb
read = "read_csv" if {is_csv} else "read_parquet"
duckdb.sql(f'''copy (
  select user_id, list(item_id order by timestamp, item_id) items,
    list(rating order by timestamp, item_id) ratings, list(timestamp order by timestamp, item_id)
  from (select user_id, item_id, arg_max(rating, timestamp) rating, max(timestamp) as timestamp
        from {{read}}('{log}/*.{suffix}') group by user_id, item_id)
  group by user_id order by user_id) to '{out}' (format parquet, compression zstd)''')
"""
OURS = """
import json, shutil
import ray
from distrib.cli import connected
from distrib.data.config import DataConfig
from distrib.data.prepare.job import prepare
config = DataConfig.model_validate_json('''{config}''')
with connected():
    ray.get(ray.remote(lambda: 0).remote())
    for turn in ("cold", "warm"):
        shutil.rmtree(config.prepared, ignore_errors=True)
        started_s = time.perf_counter()
        counts = prepare(config).counts
        seconds[turn] = time.perf_counter() - started_s
"""
PARSING = """
import os
os.sched_setaffinity(0, {{0}})
from distrib.data.logs.rating_scale import Scale
from distrib.data.config import DataConfig
from distrib.data.logs.readers import log_pieces, read_log
layout = DataConfig.model_validate_json('{config}').source.inspect()
for turn in range(2):
    started_s = time.perf_counter()
    chosen = log_pieces(layout)[:2]
    found = [r for p in chosen for r in read_log(p, layout, Scale((1.0, 2.0, 3.0, 4.0, 5.0)))]
    rows = sum(len(reading.interactions) for reading in found)
    seconds["rows_per_s"] = rows / (time.perf_counter() - started_s)
"""
TIMED = """
import json, time
seconds = {{}}
started_s = time.perf_counter()
{body}
seconds.setdefault("warm", time.perf_counter() - started_s)
print(json.dumps(seconds))
"""


def measured(body: str) -> dict[str, float]:
    """Run code in a process of its own; return its seconds and the peak of memory in GB."""
    process = subprocess.Popen(
        [sys.executable, "-c", TIMED.format(body=body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    peak, stop = [0.0], threading.Event()
    watcher = threading.Thread(target=watch, args=(process.pid, peak, stop))
    watcher.start()
    output, _ = process.communicate()
    stop.set()
    watcher.join()
    if process.returncode:
        return {"warm": float("nan"), "gb": peak[0]}
    return {**json.loads(output.splitlines()[-1]), "gb": peak[0]}


def watch(pid: int, peak: list[float], stop: threading.Event) -> None:
    while not stop.wait(0.25):
        peak[0] = max(peak[0], proportional_gb(pid))


def proportional_gb(pid: int) -> float:
    total_kb = 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0.0
    for process in family:
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total_kb += sum(int(x.split()[1]) for x in text.splitlines() if x.startswith("Pss:"))
    return total_kb / 1e6


def make_log(folder: Path, growth: int, suffix: str) -> None:
    """Draw the log once; later runs find it."""
    if (folder / "_manifest.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    copies = max(round(growth * 23 / 20), 1)
    source = {
        "format": "expanded",
        "base": {
            "format": "movielens",
            "path": f"{os.environ['DISTRIB_DATA']}/ml-1m/ratings.rebuilt.dat.gz",
        },
        "user_copies": copies,
        "item_copies": 7,
        "growth": float(growth),
    }
    code = f"""
from distrib.cli import connected
from distrib.data.config import ConvertConfig, DataConfig
from distrib.data.export import convert
data = DataConfig.model_validate_json('''{json.dumps({"prepared": "none", "source": source})}''')
with connected():
    convert(data, ConvertConfig(output="{folder}", format="{suffix}", of="source"))
"""
    measured(code)


def source_json(log: Path, suffix: str, **more: Any) -> str:
    columns = dict(zip(("user", "item", "rating", "time"), CSV_COLUMNS, strict=True))
    source: dict[str, Any] = {"format": suffix, "path": str(log), "columns": columns}
    if suffix == "csv":
        source["ids"] = "int"
    ratings = {"levels": [1.0, 2.0, 3.0, 4.0, 5.0]}
    return json.dumps({"prepared": "none", "source": source, "ratings": ratings, **more})


def ours(log: Path, suffix: str, prepared: Path, shards: int) -> dict[str, float]:
    config = source_json(log, suffix, prepared=str(prepared), num_shards=shards)
    return measured(OURS.format(config=config))


def parsing(log: Path, suffix: str) -> dict[str, float]:
    """Parse and check two pieces of the log on one core."""
    return measured(PARSING.format(config=source_json(log, suffix)))


def reading(prepared: Path) -> dict[str, float]:
    """Read the histories as training does, on one core: verify, decode, flatten."""
    code = f"""
import os
os.sched_setaffinity(0, {{0}})
from distrib.data.dataset import Dataset
from distrib.data.history_arrays import history_arrays
dataset = Dataset.open("{prepared}")
shards = dataset.manifest.shards
history_arrays(dataset.table(shards[0]))
started_s = time.perf_counter()
found = [history_arrays(dataset.table(s, ["subset", "items", "ratings", "roles"])) for s in shards]
elapsed_s = time.perf_counter() - started_s
seconds["users_per_s"] = sum(rows.num_users for rows in found) / elapsed_s
seconds["interactions_per_s"] = sum(len(rows.item_N) for rows in found) / elapsed_s
"""
    return measured(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--growth", type=int, nargs="+", default=[5, 20, 80])
    parser.add_argument("--others-up-to", type=int, default=20)
    parser.add_argument("--folder", default="runs/bench-data")
    given = parser.parse_args()
    folder = Path(given.folder).absolute()
    for growth in given.growth:
        for suffix in ("csv", "parquet"):
            log = folder / f"{growth}m-{suffix}"
            make_log(log, growth, suffix)
            prepared = folder / f"{growth}m-prepared"
            lines = {"distrib": ours(log, suffix, prepared, max(4, growth))}
            if growth <= given.others_up_to:
                settings = {"log": log, "suffix": suffix, "is_csv": suffix == "csv"}
                out = folder / "other.parquet"
                lines["polars"] = measured(POLARS.format(**settings, out=out))
                lines["duckdb"] = measured(DUCKDB.format(**settings, out=out))
            lines["distrib, parsing alone"] = parsing(log, suffix)
            for name, found in lines.items():
                print(json.dumps({"million_rows": growth, "log": suffix, "by": name, **found}))
        print(json.dumps({"million_rows": growth, "reading": reading(prepared)}), flush=True)


if __name__ == "__main__":
    main()
