"""What people see of a job on a terminal, and what logs hold of the same job."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distrib.events import emit
from distrib.terminal import listed, readable_lines, result_lines
from tests.forked_workers import running

ROOT = Path(__file__).parents[1]

JOB = """
import os, sys
from distrib.cli import run_and_report
from distrib.events import emit
from distrib.terminal import progress_bar

CORE = "[2026-11-30 12:17:08,902 E 21559 21559] core_worker.cc:2465: Actor with constructor\\n"

def work():
    emit("feed", kind="resident", training_users=6000, rejected={}, counts={"read": 12345})
    os.write(2, CORE.encode())          # as Ray's core does
    sys.stderr.write(CORE)              # as Ray passes on what its workers wrote
    print("(Worker pid=1) " + '{"event": "epoch", "time": "2026-11-30T12:17:08", "epoch": 2}')
    sys.stderr.write("[not of the core]\\n")
    os.write(2, b"a library's own line\\n")
    with progress_bar("training") as bar:
        emit("step", epoch=1, softmax=9.4)
        if bar is not None:
            bar(1363, 2400, "epoch 1 of 2, softmax 9.4, " + "others 0.1, " * 9)
        emit("published", folder="lists")
    sys.stderr.write("half a line")
    return {"run": "runs/a", "counts": {"read": 12345}, "metrics": {"model": {"rmse": {"mean": 1}}}}

sys.exit(run_and_report(work))
"""


def on_terminal(command, **options):
    """Run a command with a terminal as its outputs; return the exit code and what it showed."""
    ours, its = pty.openpty()
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, **options)
    os.close(its)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # closed by the last process
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    plain = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown).decode()
    return process.wait(), [line for line in re.split(r"[\r\n]+", plain) if line]


def test_a_terminal_shows_sentences_and_a_bar():
    code, lines = on_terminal([sys.executable, "-c", JOB])
    text = "\n".join(lines)
    assert code == 0
    assert "feed: kind resident, training users 6,000, counts (read 12,345)" in text
    assert "12:17:08 epoch: epoch 2" in lines
    assert "epoch 1 of 2, softmax 9.4" in text
    assert "1363/2400" in text  # whole, on a line of 80
    assert "published: folder lists" in text
    assert {"[not of the core]", "a library's own line"} <= set(lines)
    assert "half a line" in text
    assert lines[-1] == "counts: read 12,345"
    assert "run: runs/a" in text
    assert "core_worker" not in text
    assert '{"' not in text
    assert not any(line.startswith(("step", "rejected")) for line in lines)


def test_a_log_holds_one_json_line_an_event_and_no_bar():
    done = subprocess.run([sys.executable, "-c", JOB], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["counts"] == {"read": 12345}
    events = [line.partition("{")[2] for line in done.stderr.splitlines() if "{" in line]
    names = [json.loads("{" + line)["event"] for line in events]
    assert names == ["feed", "epoch", "step", "published"]
    assert "core_worker" not in done.stderr
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr


def test_a_result_in_lines_leaves_out_what_a_table_has_shown():
    document = {"run": "r", "best_epoch": 3, "valid": {"rmse": 0.123456}, "night": None, "x": []}
    deep = {"metrics": {"model": {"rmse": {"mean": 1.0}}}}
    assert result_lines(document | deep) == "run: r\nbest epoch: 3\nvalid: rmse 0.1235\n"
    assert listed({"a": {"b": {}}, "c": True, "d": ["x", 1]}) == "c True, d x, 1"


@pytest.mark.long
def test_training_on_a_terminal_moves_a_bar(forked_workers, tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text(f"""
run = "{tmp_path}/run"
[data]
prepared = "{tmp_path}/data"
source = {{ format = "synthetic", num_users = 3000, num_items = 60, num_interactions = 60000 }}
[model]
name = "mult_vae"
[train]
num_epochs = 8
batch_users = 50
check_steps = 5
num_workers = 1
""")
    prepared = running("jobs/prepare.py", "--config", str(path))
    subprocess.run(prepared, check=True, capture_output=True, cwd=ROOT)
    code, lines = on_terminal(running("jobs/train.py", "--config", str(path)), cwd=ROOT)
    text = "\n".join(lines)
    assert code == 0, text
    assert re.search(r"\d+/480 .*epoch \d+ of 8, divergence \d.*", text), text
    assert re.search(r"\d\d:\d\d:\d\d epoch: epoch 8, ", text)
    assert "best epoch: " in text
    assert '{"' not in text
    assert "core_worker" not in text


def test_a_notebook_shows_sentences(monkeypatch):
    cell = io.StringIO()
    monkeypatch.setattr(sys, "stderr", cell)
    with readable_lines():
        emit("prepared", counts={"users": 3})
    assert json.loads(cell.getvalue())["event"] == "prepared"  # a script
    cell.truncate(0)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    with readable_lines(), readable_lines():
        emit("prepared", counts={"users": 3})
        sys.stderr.write("a library's own line\n")
    shown = cell.getvalue().replace("\0", "")
    assert re.match(r"\d\d:\d\d:\d\d prepared: counts", shown)
    assert "{" not in shown
    assert shown.endswith("a library's own line\n")
    assert sys.stderr is cell


def test_a_script_that_calls_the_api_sees_no_lines_of_the_core():
    script = """
import os, sys
from distrib.events import emit
from distrib.terminal import readable_lines
with readable_lines(), readable_lines():
    emit("prepared", counts={"users": 3})
    os.write(2, b"[2026-11-30 12:17:08,902 E 21559 21559] core_worker.cc:2465: Actor\\n")
    os.write(2, b"a library's own line\\n")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    event, *others = sorted(done.stderr.splitlines(), key=lambda line: line[0] != "{")
    assert json.loads(event)["counts"] == {"users": 3}
    assert others == ["a library's own line"]
