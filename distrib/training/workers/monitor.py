"""Progress of a run: posted for a bar, Ray's metrics, TensorBoard, MLflow."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import torch

from distrib.cluster.prometheus import show
from distrib.errors import DataError
from distrib.events import emit, rounded
from distrib.storage import Folder, last_part
from distrib.training.config import TrainingRun
from distrib.training.engines.base import Engine
from distrib.training.loop import TrainState
from distrib.training.records import EpochRecord, Progress, Speed
from distrib.training.schemes import iterative_scheme_of
from distrib.training.workers.loss_reducer import NORM

TENSORBOARD = "tensorboard"
"""Folder of TensorBoard's files, inside a run."""

_MLFLOW = "mlflow.json"
_IN_NAMES = str.maketrans(" .", "__")
_PATIENCE_S = 20.0  # for the last metrics, when training is over


class TrainMonitor:
    """Reports progress on rank 0; silent on the other ranks.

    Args:
        config: The run.
        engine: What trains.
        num_steps: Of an epoch.
        bar: Receives progress, if the driver shows it.
        is_first: Whether this is rank 0.
    """

    def __init__(
        self,
        config: TrainingRun,
        engine: Engine,
        num_steps: int,
        *,
        bar: Callable[[Progress], None] | None,
        is_first: bool,
    ) -> None:
        self._config = config
        self._engine = engine
        self._counted = iterative_scheme_of(config).counts
        self._is_first = is_first
        self._now: dict[str, float] = {}
        self._total = num_steps * config.train.num_epochs
        self._bar = bar if is_first else None
        run = Folder(config.run)
        self._curves = _Curves(run) if is_first and config.train.tensorboard else None
        self._tracking = (
            _Tracking(config.train.mlflow, run) if is_first and config.train.mlflow else None
        )

    def reach(self, state: TrainState, means: Mapping[str, float], rate: float) -> None:
        """Show the progress of training.

        Args:
            state: Position and clocks.
            means: Loss terms, means over what the scheme counts, and the gradient norm.
            rate: Learning rate.
        """
        if not self._is_first:
            return
        speed = self.speed(state)
        self._now = {**means, "learning rate": rate, speed.field: speed.per_s}
        self._now |= {**self.shares(state), "memory_gb": memory_gb()}
        if self._bar is not None:
            losses = [f"{name} {mean:.4g}" for name, mean in means.items() if name != NORM]
            loss = ", ".join(losses)
            epoch = f"epoch {state.epoch + 1} of {self._config.train.num_epochs}"
            about = f"{epoch}, {loss}, {speed.per_s:,.0f} {self._counted}/s"
            self._bar(Progress(state.step, self._total, about))
        for name, value in self._now.items():
            self._show(name, value)
        self._show("step", state.step)
        if self._curves is not None:
            self._curves.add(self._now, state.step)

    def speed(self, state: TrainState) -> Speed:
        """Return the speed since the clocks started."""
        return Speed(self._counted, state.timed_count / max(state.elapsed_s, 1e-9))

    def shares(self, state: TrainState) -> dict[str, float]:
        """Return what the time since the clocks started was spent on."""
        elapsed_s = max(state.elapsed_s, 1e-9)
        compute = state.compute_s / elapsed_s
        communication = compute * self._engine.communication_share
        return {
            "data_share": state.data_s / elapsed_s,
            "compute_share": compute - communication,
            "communication_share": communication,
            "checkpoint_share": state.checkpoint_s / elapsed_s,
        }

    def summary(self) -> dict[str, float]:
        """Return what was shown last, for a line in a log."""
        return rounded(self._now)

    def show_epoch(self, record: EpochRecord) -> None:
        """Show the metrics of an epoch."""
        if not self._is_first:
            return
        found = {f"valid {name}": value for name, value in record.valid.items()}
        shown = {**record.losses, **record.recorded}
        found |= {f"epoch {name}": value for name, value in shown.items()}
        for name, value in found.items():
            self._show(name, value)
        if self._curves is not None:
            self._curves.add(found, record.step)
            self._curves.publish()
        if self._tracking is not None:
            self._tracking.add(found | speed_of(record), record.step)

    def close(self) -> None:
        """Close the trackers."""
        if self._curves is not None:
            self._curves.publish()
        if self._tracking is not None:
            self._tracking.close()

    def _show(self, name: str, value: float) -> None:
        plain = name.translate(_IN_NAMES).replace("@", "_at_")
        show(f"train_{plain}", f"Training: {name}.", value, run=self._config.run_name)


def memory_gb() -> float:
    """Return the peak memory of the device, or the current memory of the process, GiB."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return float(psutil.Process().memory_info().rss) / 2**30


class _Curves:
    """Event files, written locally and copied to the run folder: object stores cannot append."""

    def __init__(self, run: Folder) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._run = run
        self._folder = tempfile.TemporaryDirectory()
        self._writer = SummaryWriter(self._folder.name)

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name.replace(" ", "/", 1), value, step)

    def publish(self) -> None:
        self._writer.flush()
        try:
            for path in Path(self._folder.name).iterdir():
                (self._run / TENSORBOARD).upload(path.name, path)
        except DataError as error:
            emit("tracking_failed", what="tensorboard", error=str(error)[:300])


class _Tracking:
    """One MLflow run for all starts of a run; its id is kept in the run folder.

    A thread does all requests: a slow or absent server costs curves, never training.
    """

    def __init__(self, uri: str, run: Folder) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._client: Any = None
        self._id = ""
        self._last = self._thread.submit(self._guarded, self._begin, uri, run)

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        self._last = self._thread.submit(self._guarded, self._log, dict(numbers), step)

    def close(self) -> None:
        with contextlib.suppress(TimeoutError):
            self._last.result(timeout=_PATIENCE_S)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _guarded(self, action: Callable[..., None], *arguments: Any) -> None:
        try:
            action(*arguments)
        except Exception as error:  # noqa: BLE001  tracking must not stop training
            emit("tracking_failed", what="mlflow", error=str(error)[:300])

    def _begin(self, uri: str, run: Folder) -> None:
        from mlflow.tracking import MlflowClient

        client = MlflowClient(uri)
        if run.exists(_MLFLOW):
            self._id = run.read_json(_MLFLOW)["run_id"]
        else:
            found = client.get_experiment_by_name("distrib")
            experiment = found.experiment_id if found else client.create_experiment("distrib")
            name = last_part(str(run))
            self._id = client.create_run(experiment, run_name=name).info.run_id
            run.write_json(_MLFLOW, {"run_id": self._id})
        self._client = client

    def _log(self, numbers: dict[str, float], step: int) -> None:
        if self._client is None:  # `_begin` failed, and has been reported
            return
        now_ms = int(time.time() * 1000)
        for name, value in numbers.items():
            key = name.translate(_IN_NAMES).replace("@", "_at_")
            self._client.log_metric(self._id, key, value, timestamp=now_ms, step=step)


def speed_of(record: EpochRecord) -> dict[str, float]:
    """Return what a log line says of the speed of an epoch."""
    speed = {record.speed.field: record.speed.per_s} if record.speed else {}
    return speed | {"data_share": record.data_share}
