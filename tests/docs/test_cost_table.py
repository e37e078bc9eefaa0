"""The table of costs in docs/kubernetes.md is what the planner says today."""

import re
from pathlib import Path

import pytest

from distrib.config import load
from distrib.run_file import RunFile
from distrib.training.preflight.estimate import estimate
from distrib.training.schemes.base import Sizes

ROOT = Path(__file__).parents[2]
UNITS = {"": 1.0, "M": 1e6, "G": 1e9, "GB": 1.0, "s": 1.0, "ms": 1e-3, "h": 1.0}
ML20M = Sizes(138_000, 27_000, 20_000_000)
TEN, HUNDRED = Sizes(10**7, 10**6, 1_500_000_000), Sizes(10**8, 10**6, 10**10)
H100S = ["train.use_gpu=true", "train.batch_users=8192", "engine.zero_stage=2"]
BY_ITEMS = 'engine.parallel="items"'
ROWS = [
    (ML20M, "h100", 2, 50, ["train.cpus_per_worker=4"]),
    (ML20M, "l4", 1, 50, ["train.use_gpu=true"]),
    (TEN, "h100", 8, 20, H100S),
    (TEN, "h100", 8, 20, [*H100S, BY_ITEMS]),
    (HUNDRED, "h100", 32, 10, [*H100S, "train.batch_users=32768", BY_ITEMS]),
]


def stated():
    """The cells of each row from the parameters on."""
    page = (ROOT / "docs/kubernetes.md").read_text()
    table = page.partition("| users x items, interactions |")[2].partition("\n\n")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")][3:] for line in table.splitlines()[2:]
    ]


@pytest.mark.parametrize("place", range(len(ROWS)))
def test_a_row_is_what_plan_says(place):
    sizes, gpu, workers, epochs, settings = ROWS[place]
    settings = [*settings, f"train.num_workers={workers}", f"train.num_epochs={epochs}"]
    path = str(ROOT / "configs/ml20m_mult_vae.toml")
    run = load(RunFile, path, overrides=settings, environment={"DISTRIB_DATA": "/data"}).training()
    found = estimate(run, sizes, gpu)
    expected = [
        found.parameters,
        found.histories_gb,
        found.worker_gb,
        found.step_s,
        found.train_hours,
        found.gpu_hours or None,
        found.checkpoint_gb,
    ]
    assert len(stated()) == len(ROWS)
    for cell, value in zip(stated()[place], expected, strict=True):
        least = re.fullmatch(r"< ([\d.]+)(?: h)?", cell)
        if not cell:
            assert value is None, expected
        elif least:
            assert value < float(least[1]), cell
        else:
            number, unit = re.fullmatch(r"([\d.]+) ?([A-Za-z]*)", cell).groups()
            last_digit = 10.0 ** -len(number.partition(".")[2])
            wanted = pytest.approx(value / UNITS[unit], abs=0.55 * last_digit)
            assert float(number) == wanted, (cell, value)
