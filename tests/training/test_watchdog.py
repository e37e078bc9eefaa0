import socket
import subprocess
import sys
from pathlib import Path

import pytest

from distrib.training.workers.watchdog import Heartbeat, missing_ranks

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("how", ["slow", "stopped"])
def test_who_waits_names_the_rank_that_does_not_come(how, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(2):
        with (tmp_path / f"log{rank}").open("w") as log:
            command = [
                sys.executable,
                "-m",
                "tests.training.watchdog_ranks",
                str(rank),
                str(port),
                how,
            ]
            ranks.append(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log))
    ranks[0].wait(timeout=60)
    ranks[1].kill()
    ranks[1].wait()
    # The slow one may notice itself first; rank 0 then sees its connection break.
    reported = "".join((tmp_path / f"log{rank}").read_text() for rank in range(2))
    assert "MISSES [1] WHILE" in reported
    assert how == "slow" or "RANK 0 MISSES [1] WHILE computing" in reported


def heartbeat(*numbers):
    return [Heartbeat(pulse, done, 9.0) for pulse, done in numbers]


def test_missing_are_those_behind_and_those_silent():
    assert missing_ranks(heartbeat((3, 9), (3, 9)), heartbeat((4, 9), (4, 8))) == [1]
    assert missing_ranks(heartbeat((3, 9), (3, 9), (3, 9)), heartbeat((4, 9), (3, 9), (4, 9))) == [
        1
    ]
    assert missing_ranks(heartbeat((3, 9), (3, 9)), heartbeat((4, 9), (4, 9))) == []
    assert missing_ranks(heartbeat((3, 9)), []) == [0]
