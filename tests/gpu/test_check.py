"""The check of a GPU runs to its end without one, and reports what is wrong."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.gpu import speed
from tests.gpu.check import Result
from tests.gpu.correctness import TOLERANCE, _close, checked

ROOT = Path(__file__).parents[2]


@pytest.mark.processes
@pytest.mark.timeout(400)
@pytest.mark.long
def test_it_ends_with_a_page_and_a_document(tmp_path):
    command = [
        sys.executable,
        "-m",
        "tests.gpu.check",
        "--device",
        "cpu",
        "--output",
        str(tmp_path),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found = json.loads((tmp_path / "gpu-check.json").read_text())
    assert [one["faults"] for one in found["correctness"]] == [[]] * 5
    assert all(one["passed"] for one in found["correctness"])
    assert {one["model"] for one in found["training"]} == {"Mult-VAE", "Conv4Rec"}
    assert {one["graphs"] for one in found["training"]} == {False, True}
    assert all(one["users_per_s"] > 0 for one in found["training"] + found["scoring"])
    assert "users a batch" in (tmp_path / "gpu-check.html").read_text()


def test_a_fault_is_reported_and_the_rest_goes_on():
    def wrong():
        _close(torch.ones(2), torch.tensor([1.0, 1.1]), TOLERANCE[torch.float32])

    found = checked("kind", [("a", lambda: None), ("b", wrong), ("c", lambda: None)], 1e12)
    assert (found.passed, len(found.faults)) == (2, 1)
    assert found.faults[0].startswith("b: AssertionError at ")
    late = checked("kind", [("a", wrong)], time.monotonic() - 1.0)
    assert (late.passed, late.faults, late.left_out) == (0, [], 1)
    (fault,) = Result({}, [late], [], [], 1.0).faults
    assert "none of 1 cases was checked" in fault


def test_a_batch_without_room_is_noted_and_the_others_are_measured(monkeypatch):
    def trained(world, device, name, users, *, graphs):
        if users == 64:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return name, users, graphs

    monkeypatch.setattr(speed, "_trained", trained)
    world = speed.world_of(30, 40, mean_length=5, is_small=True)
    found = speed.training(world, torch.device("cpu"), [32, 64], time.monotonic() + 9.0)
    assert [users for _, users, _ in found] == [32] * 4
    assert world.faults[1] == "training Mult-VAE, 64 users, graphs: CUDA out of memory."
    assert Result({}, [], [], [], 1.0, tuple(world.faults)).faults == world.faults
