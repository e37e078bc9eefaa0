"""Kill jobs at every change that any of their processes makes to a store, and start them again.

``python -m tests.benchmarks.crashes --jobs prepare train nightly``. A calm run of each job counts
its moments: two for each write, upload, move and removal, of the driver and of Ray's workers. Then,
for each of them in turn, the process that reaches it is killed; the job is started again if it did
not end; and all files are compared with those of the calm run. ``--every 3`` takes a third of the
moments. Nothing here asserts a result.
"""

import argparse
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distrib.events import table
from distrib.storage import Folder
from tests.run_files import AFTER_TRAINING, TINY_MODEL

ROOT = Path(__file__).parents[2]
STATE = "CRASH_STATE"
"""Environment variable: a file with the number of changes so far, and at which to kill."""

CHANGES = ("write", "upload", "move", "remove")
BEFORE = {
    "prepare": (),
    "extend": ("prepare",),
    "convert": ("prepare",),
    "train": ("prepare",),
    "evaluate": ("prepare", "train"),
    "score": ("prepare", "train"),
    "export": ("prepare", "train"),
    "soften": ("prepare", "train"),
    "forget": ("prepare", "train", "score"),
    "nightly": (),
}
"""Jobs, and those that run before."""

TEXT = (
    """
run = "{folder}/run"
[data]
prepared = "{folder}/data"
split = {{ name = "entrywise" }}
num_shards = 2
max_damaged_share = 0.5
[data.source]
format = "parquet"
path = "{folder}/log/"
columns = {{ user = "u", item = "i", time = "t" }}
"""
    + TINY_MODEL
    + """
[train]
num_epochs = 2
batch_users = 32
num_workers = 1
max_failures = 3
[score]
k = 3
"""
    + AFTER_TRAINING
)
_TIMED = {"seconds", "speed", "users_per_s", "valid_s", "time", "token", "work", "digest"}
_TIMED |= {f"{part}_share" for part in ("data", "compute", "communication", "checkpoint")}


def arm() -> None:
    """Let each change to a store be counted, and one of them kill; called in every process."""
    for name in CHANGES:
        setattr(Folder, name, _fused(getattr(Folder, name)))


def _fused(plain: Callable[..., Any]) -> Callable[..., Any]:
    def change(folder: Folder, *given: Any, **more: Any) -> Any:
        _burn()
        found = plain(folder, *given, **more)
        _burn()
        return found

    return change


def _burn() -> None:
    with Path(os.environ[STATE]).open("r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        reached, wanted = map(int, file.read().split())
        file.seek(0)
        file.write(f"{reached + 1} {wanted}   ")
        file.flush()
    if reached + 1 == wanted:
        os._exit(137)


class Outcome(NamedTuple):
    """What became of one kill."""

    at: int
    has_ended: bool
    """Whether the second start ended well, if one was needed."""

    differs: tuple[str, ...]
    """Files that differ from the calm run's, or are there in one of them only."""


class Campaign:
    """Runs jobs on a cluster whose processes are armed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        hook = folder / "hook"
        hook.mkdir(parents=True, exist_ok=True)
        (hook / "sitecustomize.py").write_text(
            "import os\nif os.environ.get('CRASH_STATE'):\n"
            "    from tests.benchmarks import crashes\n    crashes.arm()\n"
        )
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{hook}:{ROOT}",
            STATE: str(self.state),
            "RAY_AUTH_MODE": "disabled",  # it listens on this machine alone
            "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        }

    def prepare_place(self, job: str) -> Path:
        """Return a new folder with a log and a run file, the jobs before done."""
        place = self.folder / "place"  # always the same, as paths are in files
        shutil.rmtree(place, ignore_errors=True)
        (place / "log").mkdir(parents=True)
        (place / "run.toml").write_text(TEXT.format(folder=place))
        (place / "people.txt").write_text("3\n17\n")
        write_day(place, 1)
        for earlier in BEFORE[job]:
            kept = self.folder / f"done-{'-'.join(BEFORE[job])}"
            if kept.exists():
                shutil.rmtree(place)
                shutil.copytree(kept, place)
                break
            assert self.start(earlier, 0) == 0, self.error
            if earlier == BEFORE[job][-1]:
                shutil.copytree(place, kept)
        if job == "extend":
            write_day(place, 2)
        return place

    def start(self, job: str, kill_at: int) -> int:
        """Run a job; return its exit code."""
        self.state.write_text(f"0 {kill_at}   ")
        name = {"extend": "prepare"}.get(job, job)
        command = [sys.executable, f"{ROOT}/jobs/{name}.py", "--config"]
        command += [f"{self.folder}/place/run.toml"]
        if job in {"extend", "nightly"}:
            command += ["--set", "data.extend=true"]
        found = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        self.error = found.stderr[-2000:]
        return found.returncode

    def reached(self) -> int:
        """Return the number of moments, two for each change, of the last start."""
        return int(self.state.read_text().split()[0])

    def run(self, job: str, every: int) -> tuple[int, list[Outcome]]:
        """Kill a job at each of its moments; return their number and the outcomes."""
        place = self.prepare_place(job)
        assert self.start(job, 0) == 0, self.error
        moments, calm = self.reached(), content(place)
        outcomes = []
        for at in range(1, moments + 1, every):
            place = self.prepare_place(job)
            has_ended = self.start(job, at) == 0 or self.start(job, 0) == 0
            found = content(place)
            names = {*calm, *found}
            differs = tuple(sorted(n for n in names if calm.get(n) != found.get(n)))
            outcomes.append(Outcome(at, has_ended, differs))
            if differs or not has_ended:
                print(json.dumps([job, *outcomes[-1], "" if has_ended else self.error]), flush=True)
        return moments, outcomes


def write_day(place: Path, day: int) -> None:
    """Add a file to the log, of fixed content and age."""
    rng = np.random.default_rng(day)
    users = np.repeat(np.arange(40 * (day - 1) // 2, 40 * (day - 1) // 2 + 40), 8)
    columns = {"u": users, "i": rng.integers(0, 25, len(users)), "t": np.arange(len(users)) + day}
    path = place / f"log/day-{day}.parquet"
    pq.write_table(pa.table(columns), path)
    os.utime(path, (10**9 + day, 10**9 + day))


def content(place: Path) -> dict[str, Any]:
    """All files of a folder, without what names a start or a moment."""
    found = {}
    for path in place.rglob("*"):
        name = re.sub(r"(step-\d+)-\w+", r"\1", str(path.relative_to(place)))
        if path.is_file() and "forgotten/" not in name:  # a receipt says what its start removed
            found[name] = _comparable(path, is_state="checkpoints/" in name)
    return found


def _comparable(path: Path, *, is_state: bool) -> Any:
    if is_state or path.suffix == ".png":
        return None  # holds times; what follows from it is compared
    raw = path.read_bytes()
    try:
        return _untimed(json.loads(raw))
    except ValueError:
        return raw


def _untimed(document: Any) -> Any:
    if isinstance(document, dict):
        return {k: _untimed(v) for k, v in document.items() if k not in _TIMED}
    return [_untimed(part) for part in document] if isinstance(document, list) else document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="/tmp/crashes")
    parser.add_argument("--jobs", nargs="+", default=list(BEFORE), choices=list(BEFORE))
    parser.add_argument("--every", type=int, default=1)
    given = parser.parse_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    campaign, rows = Campaign(Path(given.folder)), []
    campaign.state.write_text("0 0   ")
    command = [f"{Path(sys.executable).parent}/ray", "start", "--head", "--block", "--num-cpus=4"]
    command += ["--port=6399", "--ray-client-server-port=20077", "--include-dashboard=false"]
    command += ["--object-store-memory=300000000", f"--temp-dir={given.folder}/ray"]
    head = subprocess.Popen(
        command, env=campaign.environment, start_new_session=True, stdout=subprocess.DEVNULL
    )
    campaign.environment["RAY_ADDRESS"] = "127.0.0.1:6399"
    time.sleep(10)
    try:
        for job in given.jobs:
            started_s = time.perf_counter()
            moments, outcomes = campaign.run(job, given.every)
            alike = sum(o.has_ended and not o.differs for o in outcomes)
            ended = sum(o.has_ended for o in outcomes)
            seconds = round(time.perf_counter() - started_s)
            rows.append([job, moments, len(outcomes), ended, alike, seconds])
            print(json.dumps(rows[-1]), flush=True)
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait()
    columns = ["job", "moments", "kills", "ended", "as if undisturbed", "seconds"]
    table("Kills between changes", columns, rows)


if __name__ == "__main__":
    main()
