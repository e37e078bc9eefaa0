"""One run of a study: trained and measured at most once, however many studies need it."""

import contextlib
import json
import platform
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import ray
import torch

from distrib import __version__
from distrib.checkpoint.store import CHECKPOINTS, CheckpointStore
from distrib.config import read_record
from distrib.data.dataset import Dataset
from distrib.errors import TakenOverError, known
from distrib.evaluation.config import EvaluateConfig
from distrib.evaluation.job import evaluate
from distrib.events import emit
from distrib.fence import ATTEMPT
from distrib.redaction import redacted
from distrib.run_file import RunFile
from distrib.storage import Folder, last_part
from distrib.studies.plan import measure_address, without_places
from distrib.studies.results import FAULT, MEASURED, RUN_RESULT, Cost, Fault, RunRecord
from distrib.training.best_bundle import BEST
from distrib.training.records import best_record, history_of
from distrib.training.run_folder import HISTORY, RUN
from distrib.training.workers.launch import launch_here

LOG = "log.txt"
"""Events of a run's last start, in its folder."""

_SAMPLE_S = 0.2
_WAIT_S = 5.0
_QUIET_S = 900.0
"""A run that another study has begun is over if it writes no checkpoint for so long."""


def finished(file: RunFile, *, is_trial: bool) -> RunRecord | None:
    """Return the record of a run that is done.

    Args:
        file: The run file.
        is_trial: Whether training alone counts.

    Returns:
        The record; None where something is left to do.
    """
    folder = Folder(file.run)
    folder = folder if is_trial else _measure_of(file)
    if not folder.exists(RUN_RESULT):
        return None
    return read_record(RunRecord, folder.read_json(RUN_RESULT), folder / RUN_RESULT)


def _measure_of(file: RunFile) -> Folder:
    return Folder(file.run) / MEASURED / measure_address(file)


def earlier_fault(folder: Folder) -> str:
    """Return why a run failed before; empty where it did not."""
    if not folder.exists(FAULT):
        return ""
    return read_record(Fault, folder.read_json(FAULT), folder / FAULT).reason


def measured(file: RunFile, *, is_trial: bool) -> RunRecord | str:
    """Train a run and measure it on its test targets, unless that is done.

    Args:
        file: The run file; the last part of ``run`` is its address.
        is_trial: Whether to train only.

    Returns:
        Its record, or why it failed, which its folder then says, too.
    """
    folder = Folder(file.run)
    folder.remove(FAULT)  # of an earlier start
    try:
        with _logged(folder):
            found = _measured(file, folder, is_trial=is_trial)
    except TakenOverError:
        return _of_another_study(file, folder, is_trial=is_trial)
    except Exception as error:  # noqa: BLE001  one failed run must not end the study
        plain = known(error)
        reason = f"{type(error).__name__}: {error}" if plain is None else str(plain)
        reason = redacted(reason)
        folder.write_json(FAULT, Fault(reason=reason).to_json())
        return reason
    return found


@contextlib.contextmanager
def _logged(folder: Folder) -> Iterator[None]:
    """Send the events of a run into its folder; those of many at once would be of use to no one."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as log:
        try:
            with contextlib.redirect_stderr(log):
                yield
        finally:
            log.flush()
            folder.upload(LOG, Path(log.name))


def _measured(file: RunFile, folder: Folder, *, is_trial: bool) -> RunRecord:
    found = finished(file, is_trial=True)
    if found is None:
        found = _trained(file, folder)
        folder.write_json(RUN_RESULT, found.to_json())
    for name in (CHECKPOINTS, BEST):  # a study has hundreds of runs, and continues none
        (folder / name).remove()
    if is_trial:
        return found
    started_s = time.perf_counter()
    place = _measure_of(file)
    data, config = file.data.prepared, file.evaluate
    result = evaluate(file.run, data, config, output=place, is_here=is_small(file))
    cost = found.cost.model_copy(update={"evaluate_s": time.perf_counter() - started_s})
    changes = {
        "settings": without_places(file),
        "metrics": result.metrics,
        "users": result.users["measured"],
        "distance_to_truth": result.distance_to_truth,
        "cost": cost,
        "finished": now(),
    }
    found = RunRecord.model_validate({**found.to_json(), **changes})
    place.write_json(RUN_RESULT, found.to_json())
    return found


def is_small(file: RunFile) -> bool:
    """Return whether a run trains in the process that calls, not in workers of its own."""
    return file.train.max_workers == 1 and not file.train.use_gpu


def _trained(file: RunFile, folder: Folder) -> RunRecord:
    training = file.training()
    if folder.exists(RUN):  # begun by a study that measures something else
        begun = EvaluateConfig.model_validate_json(json.dumps(folder.read_json(RUN)["evaluate"]))
        training = training.model_copy(update={"evaluate": begun})
    started_s = time.perf_counter()
    with _peak_memory() as peak_gb:
        result = launch_here(training)
    history = history_of(folder.read_json(HISTORY), folder / HISTORY)
    best = best_record(history)
    speed = {} if result.speed is None else {result.speed.field: result.speed.per_s}
    return RunRecord(
        address=training.run_name,
        settings=without_places(file),
        data=Dataset.open(file.data.prepared).hash,
        prepared=last_part(file.data.prepared),
        seed=file.seed,
        epochs=result.epochs,
        best_epoch=result.best_epoch,
        selection=best.selection,
        valid=result.valid,
        cost=Cost(
            train_s=time.perf_counter() - started_s,
            memory_gb=peak_gb() if is_small(file) else None,
            speed=speed,
        ),
        environment=environment(),
        finished=now(),
    )


def _of_another_study(file: RunFile, folder: Folder, *, is_trial: bool) -> RunRecord | str:
    """Wait for a run that another study has begun meanwhile; do it where that one is gone."""
    emit("run_of_another_study", run=str(folder))
    before, since_s = None, time.monotonic()
    while time.monotonic() - since_s < _QUIET_S:
        found = finished(file, is_trial=is_trial)
        if found is not None:
            return found
        fault = earlier_fault(folder)
        if fault:
            return fault
        now_there = (folder.read(ATTEMPT), CheckpointStore(folder).complete())
        if now_there != before:
            before, since_s = now_there, time.monotonic()
        time.sleep(_WAIT_S)
    return measured(file, is_trial=is_trial)


def environment() -> dict[str, str]:
    """Return what else results depend on, for the page."""
    commit = _commit()
    return {
        "distrib": __version__,
        **({"commit": commit} if commit else {}),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": ray.__version__,
        "processor": f"{psutil.cpu_count()} cores, {platform.machine()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
    }


def _commit() -> str:
    """Return the commit of a checkout; empty for an installed package."""
    place = Path(__file__).resolve().parents[2]
    if not (place / ".git").exists():
        return ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(place), "rev-parse", "--short=12", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return ""


def now() -> str:
    """Return the time, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@contextlib.contextmanager
def _peak_memory() -> "Iterator[_Peak]":
    """Sample the memory of this process, whose own record also covers the runs before."""
    peak = _Peak()
    thread = threading.Thread(target=peak.watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        peak.ended.set()
        thread.join()


class _Peak:
    def __init__(self) -> None:
        self.ended = threading.Event()
        self._process = psutil.Process()
        self._most = 0

    def watch(self) -> None:
        """Sample until the end."""
        while True:
            self._most = max(self._most, self._process.memory_info().rss)
            if self.ended.wait(_SAMPLE_S):
                return

    def __call__(self) -> float:
        return self._most / 2**30
