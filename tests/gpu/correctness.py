"""Does a device compute what the CPU does? Losses, gradients, restarts, ZeRO, lists."""

import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed
from torch.distributed import HashStore

from distrib.checkpoint.state import SavedState, write_pieces
from distrib.scoring.scorer import Scorer
from distrib.training.engines.config import EngineConfig
from distrib.training.engines.graphs import Graphs, runner_on
from tests.conftest import Small
from tests.device import cases
from tests.in_process import CPU, filled, vocabulary_of
from tests.training.graph_runs import reason_against, trained

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2}
"""Relative; sums of a GPU are ordered differently, and bf16 has 8 bits."""

_FEW = 6


class Checked(NamedTuple):
    """One kind of check."""

    name: str
    passed: int
    faults: list[str]
    left_out: int
    """For want of time."""

    seconds: float


Case = tuple[str, Callable[[], None]]


def checks(device: torch.device, folder: Path, *, is_small: bool) -> dict[str, list[Case]]:
    """Return all cases by kind.

    Args:
        device: Is compared with the CPU.
        folder: For states.
        is_small: A few of each kind.

    Returns:
        Kind to cases; a case raises where something is wrong.
    """
    small = Small()
    found = {
        "losses and gradients": _gradients(device, small),
        "restart on the device": _restarts(device, small, folder),
        "graphs": _graphs(device, small),
        "DeepSpeed, ZeRO 0 to 3": _zero(device, small),
        "lists": _lists(device, small),
    }
    whole = {kind: list(of_kind) for kind, of_kind in found.items()}
    if is_small:
        return {kind: of_kind[:: len(of_kind) // _FEW] for kind, of_kind in whole.items()}
    return whole


def checked(name: str, of_kind: Iterable[Case], until_s: float) -> Checked:
    """Run cases until a time.

    Args:
        name: Of their kind.
        of_kind: The cases.
        until_s: Of `time.monotonic`.

    Returns:
        What passed, and what is wrong with the others.
    """
    started_s, passed, left_out = time.monotonic(), 0, 0
    faults: list[str] = []
    for case, run in of_kind:
        if time.monotonic() > until_s:
            left_out += 1
            continue
        try:
            run()
            passed += 1
        except Exception as error:  # noqa: BLE001  one fault must not hide the others
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            faults.append(f"{case}: {type(error).__name__} at {where}: {error}"[:500])
    return Checked(name, passed, faults, left_out, time.monotonic() - started_s)


def _close(expected: torch.Tensor, found: torch.Tensor, tolerance: float) -> None:
    size = float(expected.float().abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(
        found.detach().cpu().float(),
        expected.detach().cpu().float(),
        rtol=tolerance,
        atol=tolerance * max(size, 1e-3),
        equal_nan=True,
    )


def _gradients(device: torch.device, small: Small) -> Iterator[Case]:
    for (model, objective), dtype in ((pair, dtype) for pair in cases.PAIRS for dtype in TOLERANCE):

        def run(model=model, objective=objective, dtype=dtype) -> None:
            here, batch = cases.step_of(model, objective, small, dtype=dtype)
            there, _ = cases.step_of(model, objective, small, dtype=dtype)
            expected = cases.losses_and_gradients(here, batch, CPU)
            found = cases.losses_and_gradients(there.to(device), batch, device)
            for one, other in zip(expected, found, strict=True):
                assert one.keys() == other.keys()
                for name, value in one.items():
                    _close(value, other[name], TOLERANCE[dtype])

        yield f"{model.name}, {objective.name}, {dtype}", run


def _restarts(device: torch.device, small: Small, folder: Path) -> Iterator[Case]:
    for number, ((model, objective), dtype) in enumerate(
        (pair, dtype) for pair in cases.PAIRS for dtype in TOLERANCE
    ):

        def run(model=model, objective=objective, dtype=dtype, number=number) -> None:
            place = folder / str(number)
            place.mkdir()
            whole, batch = cases.engine_of(model, objective, small, device, dtype=dtype)
            whole.begin_epoch(0)
            for step in range(2):
                cases.update(whole, batch, step)
            write_pieces(place / "state-00000.safetensors", [p.copied() for p in whole.pieces()])
            again, _ = cases.engine_of(model, objective, small, device, dtype=dtype)
            again.restore(SavedState(place), whole.facts())
            again.begin_epoch(0)
            for engine in (whole, again):
                cases.update(engine, batch, 2)
            for name, weight in whole.weights().items():
                _close(weight, again.weights()[name], TOLERANCE[dtype])

        yield f"{model.name}, {objective.name}, {dtype}", run


def _graphs(device: torch.device, small: Small) -> Iterator[Case]:
    possible = [pair for pair in cases.PAIRS if not reason_against(*pair, small, on_gpu=True)]
    for (model, objective), dtype in ((pair, dtype) for pair in possible for dtype in TOLERANCE):

        def run(model=model, objective=objective, dtype=dtype) -> None:
            places = {"device": device, "dtype": dtype}
            expected, _ = trained(model, objective, small, None, **places)
            runner = runner_on(device)
            found, _ = trained(model, objective, small, runner, **places)
            if isinstance(runner, Graphs):
                assert not runner.fault, runner.fault
            for one, other in zip(expected, found, strict=True):
                for name, value in one.items():
                    _close(value, other[name], TOLERANCE[dtype])

        yield f"{model.name}, {objective.name}, {dtype}", run


def _zero(device: torch.device, small: Small) -> Iterator[Case]:
    pairs = [pair for pair in cases.PAIRS if pair[0].name in ("mult_vae", "conv4rec")]
    for (model, objective), stage in ((pair, stage) for pair in pairs[:4] for stage in range(4)):

        def run(model=model, objective=objective, stage=stage) -> None:
            from distrib.training.engines.deepspeed import DeepSpeedEngine

            _meet(device)
            plain, batch = cases.engine_of(model, objective, small, device)
            step, _ = cases.step_of(model, objective, small)
            settings = EngineConfig(precision="fp32", zero_stage=stage)
            engine = DeepSpeedEngine(
                step, cases.OPTIMIZER, settings, batch_users=batch.size, device=device
            )
            for one in (plain, engine):
                one.begin_epoch(0)
                for number in range(3):
                    cases.update(one, batch, number)
            for name, weight in plain.weights().items():
                _close(weight, engine.weights()[name], 5e-3)

        yield f"{model.name}, {objective.name}, ZeRO {stage}", run


def _meet(device: torch.device) -> None:
    if not torch.distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)


def _lists(device: torch.device, small: Small) -> Iterator[Case]:
    pairs = [(model, "fp32") for model in cases.MODELS]
    pairs += [(model, "bf16") for model in cases.EMBEDDED]
    for model, precision in pairs:

        def run(model=model, precision=precision) -> None:
            def lists(where: torch.device) -> object:
                made = filled(model, small).to(where)
                scorer = Scorer(
                    made, vocabulary_of(small), device=where, chunk_items=17, precision=precision
                )
                return scorer.recommend(small.batch, small.batch, 7)

            cases.assert_equal(tuple(lists(CPU)), tuple(lists(device)), tolerance=1e-3)

        yield f"{model.name}, {precision}", run
