"""Is a GPU right, and fast? ``make gpu-check``: 8 minutes at most, no network, no data.

What does not fit into the time is left out, and named.

Correctness against the CPU for every model and objective, restarts on the device, ZeRO 0 to 3,
graphs, lists; then the speed of training, with graphs and without, and of scoring at
MovieLens-20M's size beside bare loops, with launches and waits of an update. Writes
``gpu-check.json`` and ``gpu-check.html``.
On a machine without a GPU it runs small, on the CPU, so that it works when there is one.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from distrib import __version__
from distrib.events import table
from distrib.report.charts import Chart, Series
from distrib.report.page import Facts, Section, Table, Text, page
from tests.gpu.correctness import Checked, checked, checks
from tests.gpu.speed import Scored, Trained, scoring, training, world_of

_LIMIT_S = 460.0
_FOR_CORRECTNESS = 0.6
"""Share of the time, at most."""

BATCHES = [500, 2048, 4096, 8192, 16_384]


class Result(NamedTuple):
    """All that was found."""

    environment: dict[str, str]
    correctness: list[Checked]
    training: list[Trained]
    scoring: list[Scored]
    seconds: float
    unmeasured: tuple[str, ...] = ()
    """What ended with an error."""

    @property
    def faults(self) -> list[str]:
        """What is wrong, a kind of which no time was left for any case, too."""
        unchecked = [
            f"{one.name}: none of {one.left_out} cases was checked, for want of time"
            for one in self.correctness
            if one.left_out and not one.passed and not one.faults
        ]
        wrong = [fault for one in self.correctness for fault in one.faults]
        return wrong + unchecked + list(self.unmeasured)


def run(device: torch.device, limit_s: float, *, is_small: bool) -> Result:
    """Check a device.

    Args:
        device: Which.
        limit_s: Time in which to end; what does not fit is left out.
        is_small: A few cases and small models.

    Returns:
        What was found.
    """
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    torch.backends.cuda.matmul.allow_tf32 = False  # compared with a CPU
    started_s = time.monotonic()
    until_s = started_s + limit_s
    with tempfile.TemporaryDirectory() as folder:
        kinds = checks(device, Path(folder), is_small=is_small)
        share_s = _FOR_CORRECTNESS * limit_s / len(kinds)
        correctness = [
            checked(name, found, time.monotonic() + share_s) for name, found in kinds.items()
        ]
    size = {"num_users": 300, "num_items": 500, "mean_length": 10}
    if not is_small:
        size = {"num_users": 40_000, "num_items": 20_108, "mean_length": 70}
    world = world_of(**size, is_small=is_small)
    batches = [32, 64] if is_small else BATCHES
    trained = training(world, device, batches, until_s - 0.15 * limit_s)
    scored = scoring(world, device, batches[:2] if is_small else [512, 4096], until_s)
    seconds = time.monotonic() - started_s
    return Result(environment(device), correctness, trained, scored, seconds, tuple(world.faults))


def environment(device: torch.device) -> dict[str, str]:
    """Return what figures depend on."""
    found = {
        "device": "CPU",
        "distrib": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": str(psutil.cpu_count()),
    }
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {
            "device": f"{about.name}, {about.total_memory / 2**30:.0f} GiB",
            "capability": f"{about.major}.{about.minor}",
            "CUDA of torch": str(torch.version.cuda),
            "NCCL": ".".join(map(str, torch.cuda.nccl.version())),
        }
    return found


def _pages_tables(result: Result) -> list[Table]:
    correctness = [
        [one.name, str(one.passed), str(len(one.faults)), str(one.left_out), f"{one.seconds:.0f}"]
        for one in result.correctness
    ]
    trained = [
        [
            one.model,
            f"{one.batch:,}",
            "yes" if one.graphs else "no",
            f"{one.users_per_s:,.0f}",
            "-" if one.bare_users_per_s is None else f"{one.bare_users_per_s:,.0f}",
            f"{one.step_ms:.2f}",
            f"{one.launches:.0f}",
            f"{one.waits:.1f}",
            f"{one.memory_gb:.1f}",
            f"{one.block_items:,}",
        ]
        for one in result.training
    ]
    scored = [
        [
            one.model,
            f"{one.batch:,}",
            one.precision,
            f"{one.users_per_s:,.0f}",
            f"{one.bare_users_per_s:,.0f}",
        ]
        for one in result.scoring
    ]
    columns = ["model", "users a batch"]
    return [
        Table("", ["kind", "passed", "wrong", "left out", "s"], correctness),
        Table(
            "",
            [
                *columns,
                *("graphs", "users/s", "bare loop", "ms", "launches", "waits", "GiB"),
                "items a block",
            ],
            trained,
            "An update in bf16, of histories on the device. On a CPU launches are operations, and "
            "graphs are updates of the same few shapes.",
        ),
        Table("", [*columns, "precision", "users/s", "bare loop"], scored, "Lists of 50."),
    ]


def page_of(result: Result) -> str:
    """Return the page."""
    correct, trained, scored = _pages_tables(result)
    lines: dict[str, list[Trained]] = {}
    for one in result.training:
        lines.setdefault(one.model + (", graphs" if one.graphs else ""), []).append(one)
    series = [
        Series(name, [one.batch for one in line], [one.users_per_s for one in line])
        for name, line in lines.items()
    ]
    chart = Chart("speed", "Training", "users a batch", "users/s", series, log_x=True)
    return page(
        "GPU check",
        f"{result.environment['device']}; {result.seconds:.0f} s.",
        [
            Section("Right", [correct, *(Text(fault) for fault in result.faults)]),
            Section("Training", [chart, trained]),
            Section("Scoring", [scored]),
            Section("Machine", [Facts("", list(result.environment.items()))]),
        ],
    )


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {key: _plain(item) for key, item in value._asdict().items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/gpu-check"))
    parser.add_argument("--limit-s", type=float, default=_LIMIT_S)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    result = run(device, given.limit_s, is_small=device.type == "cpu")
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "gpu-check.json").write_text(json.dumps(_plain(result), indent=1) + "\n")
    (given.output / "gpu-check.html").write_text(page_of(result), encoding="utf-8")
    for title, found in zip(("Right", "Training", "Scoring"), _pages_tables(result), strict=True):
        table(title, list(found.columns), [[str(cell) for cell in row] for row in found.rows])
    for fault in result.faults:
        print(fault, file=sys.stderr)
    sys.exit(bool(result.faults))


if __name__ == "__main__":
    main()
