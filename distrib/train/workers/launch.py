"""The driver's side of training: check, start the workers, survive their loss, publish the best."""

import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from distrib.checkpoint.bundle import BUNDLE, copy_bundle
from distrib.checkpoint.store import CheckpointStore
from distrib.cluster.prometheus import hide, keep, show
from distrib.cluster.resources import ON_CPU
from distrib.data.dataset import load_vocabulary
from distrib.data.feeds.loader import Source, kind_of, load_source
from distrib.errors import (
    CheckpointError,
    DivergedError,
    MemoryLimitError,
    StoppedError,
    WorkersLostError,
    causes,
    known,
)
from distrib.events import emit, is_terminal
from distrib.storage import Folder
from distrib.train.config import TrainConfig
from distrib.train.oom import advice
from distrib.train.preflight.checks import preflight, require_room
from distrib.train.run_folder import (
    BEST,
    HISTORY,
    RUN,
    TOKEN,
    best_entry,
    best_name,
    identity,
    require_ours,
)
from distrib.train.workers.control import start_control
from distrib.train.workers.solve import fit
from distrib.train.workers.worker import Inputs, train_worker
from distrib.vocabulary import Vocabulary

_RAY = "ray"

_REMEDY = (
    "lower optimizer.learning_rate, set optimizer.gradient_clipping, or use engine.precision bf16 "
    "or fp32"
)
_BUGS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    ImportError,
)
T = TypeVar("T")
EpochListener = Callable[[dict[str, Any]], None]


def launch(config: TrainConfig, on_epoch: EpochListener | None = None) -> dict[str, Any]:
    """Train on the cluster, going on where an earlier start of the same run stopped.

    Args:
        config: The run.
        on_epoch: Told each epoch's entry of the history; what it raises ends training.

    Returns:
        ``run``, ``epochs``, ``best_epoch`` and the ``valid`` metrics of the best epoch.

    Raises:
        ConfigError: See `preflight`; also when the cluster can never hold the workers.
        DivergedError: A loss or gradient was not finite.
        CheckpointError: A checkpoint could not be written, or none could be read.
        MemoryLimitError: A worker ran out of memory.
        WorkersLostError: Workers were lost more often than ``max_failures``.
        StoppedError: A signal or a preemption asked to stop; the place is kept.
    """
    manifest = preflight(config)
    began = "When training began, Unix time."
    show("train_started_seconds", began, time.time(), run=config.run_name)
    keep("train_diverged", "Whether the last training diverged.", 0.0)
    try:
        require_room(config)
        if config.model.traits.learns != "steps":
            return fit(config, manifest, on_epoch)
        return _launched(config, manifest, on_epoch)
    except DivergedError:
        keep("train_diverged", "Whether the last training diverged.", 1.0)
        raise
    finally:
        hide("train_started_seconds")


def _launched(
    config: TrainConfig, manifest: dict[str, Any], on_epoch: EpochListener | None
) -> dict[str, Any]:
    """Train by steps, and publish what was best."""
    folder, prepared = Folder(config.run), Folder(config.prepared)
    config = _with_feed(config, manifest, folder)
    folder.write_json(RUN, identity(config, {"data": manifest["hash"]}))
    vocabulary = load_vocabulary(prepared)
    token = uuid.uuid4().hex
    outcome = _fitted(config, (vocabulary, manifest), token, on_epoch)
    require_ours(folder, token)
    history = outcome["history"]
    folder.write_json(HISTORY, history)
    best = _publish(folder, history) if history else {}
    _raise_what_ended(outcome, history, config)
    last = history[-1]
    return {
        "run": str(folder),
        "epochs": last["epoch"],
        "best_epoch": best["epoch"],
        "valid": best["valid"],
        config.speed_name: last[config.speed_name],
        "data_share": last["data_share"],
    }


def _with_feed(config: TrainConfig, manifest: dict[str, Any], folder: Folder) -> TrainConfig:
    """Settle the kind of feed; a run keeps the one it began with."""
    feed = config.loop.feed
    if feed == "auto" and folder.exists(RUN):
        feed = folder.read_json(RUN)["loop"].get("feed", feed)
    if config.model.traits.rows == "both":
        feed = "resident"
    loop = config.loop.model_copy(update={"feed": kind_of(feed, manifest)})
    return config.model_copy(update={"loop": loop})


def _fitted(
    config: TrainConfig,
    data: tuple[Vocabulary, dict[str, Any]],
    token: str,
    on_epoch: EpochListener | None,
) -> dict[str, Any]:
    """Run the workers until they end by themselves; start them anew where some are lost."""
    folder, losses = Folder(config.run), _Losses(config)
    folder.write_json(TOKEN, {"token": token})
    with _stopping(on_epoch) as control:
        while True:
            try:
                source = _opened(config)
                trainer = _trainer(config, source, *data, (token, control.actor))
                outcome: dict[str, Any] = control.waiting(lambda: trainer.fit().return_value)  # noqa: B023
            except (TrainingFailedError, ray.exceptions.RayError) as error:
                losses.require_hope(error)
                require_ours(folder, token)
                continue
            is_preempted = outcome.get("stopped", "").startswith("preemption")
            if is_preempted and config.loop.min_workers < config.loop.max_workers:
                emit("preempted", reason=outcome["stopped"])  # go on with those that are left
                continue
            return outcome


def _opened(config: TrainConfig) -> Source:
    """Read the histories, or look at their shards."""
    kind = config.loop.feed
    assert kind != "auto"  # `_with_feed` has settled it
    source = load_source(Folder(config.prepared), kind, config.model.traits.rows)
    emit(
        "feed",
        kind=source.kind,
        training_users=source.num_train,
        valid_users=source.num_valid,
        megabytes=round(source.num_bytes / 1e6, 1),
    )
    return source


class _Losses:
    """Counts lost workers, and tells which failures are worth another start."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._store = CheckpointStore(Folder(config.run))
        self._times = 0
        self._last = ("", "")

    def require_hope(self, error: Exception) -> None:
        """Raise what starting again would not mend."""
        ours = known(error)
        if ours is not None:
            raise ours from error
        found = list(causes(error))
        text = next(
            (line[:300] for line in reversed(str(found[-1]).strip().splitlines()) if line),
            type(found[-1]).__name__,
        )
        if any(isinstance(cause, ray.exceptions.OutOfMemoryError) for cause in found):
            what = f"Ray ended a worker, its node being out of memory ({text})"
            raise MemoryLimitError(advice(self._config, what)) from error
        is_lost = any(isinstance(cause, ray.exceptions.RayActorError) for cause in found)
        place = (text, next(iter(self._store.complete()), ""))
        is_stuck = place == self._last
        if not is_lost and (is_stuck or any(isinstance(cause, _BUGS) for cause in found)):
            raise error  # the same place, the same words: a fault of the program
        self._times, self._last = self._times + 1, place
        most = self._config.loop.max_failures
        emit("workers_lost", times=self._times, of=most, cause=text)
        if self._times > most:
            raise WorkersLostError(
                f"workers were lost {self._times} times, train.max_failures is {most}; the last: "
                f"{text}; the same command goes on from the last checkpoint"
            ) from error


def _trainer(
    config: TrainConfig,
    source: Source,
    vocabulary: Vocabulary,
    manifest: dict[str, Any],
    ours: tuple[str, ray.actor.ActorHandle],
) -> TorchTrainer:
    folder, loop = Folder(config.run), config.loop
    inputs = Inputs(
        config=config.absolute().model_dump_json(),
        source=source,
        vocabulary=ray.put(vocabulary),
        facts={"data": manifest["hash"], "seed": config.seed},
        shows_bar=is_terminal(),
        token=ours[0],
        control=ours[1],
    )
    resources = {"CPU": float(loop.cpus_per_worker)} | ({"GPU": 1.0} if loop.use_gpu else {})
    environment = {} if loop.use_gpu else ON_CPU
    is_elastic = loop.min_workers < loop.max_workers
    return TorchTrainer(
        train_worker,
        train_loop_config={"inputs": inputs},
        torch_config=TorchConfig(timeout_s=int(loop.hang_s * 2) + 60),
        scaling_config=ScalingConfig(
            num_workers=loop.worker_range if is_elastic else loop.max_workers,
            use_gpu=loop.use_gpu,
            resources_per_worker=resources,
            **({"elastic_resize_monitor_interval_s": loop.resize_s} if is_elastic else {}),
        ),
        run_config=RunConfig(
            name=_RAY,
            storage_path=folder.path,
            storage_filesystem=folder.arrow(),
            failure_config=FailureConfig(max_failures=0),  # `_Losses` knows which to survive
            worker_runtime_env={"env_vars": environment},
        ),
    )


class _Control:
    """The driver's hand on the workers."""

    def __init__(self, on_epoch: EpochListener | None) -> None:
        self.actor = start_control()
        self.num_signals = 0
        self._on_epoch = on_epoch
        self._num_told = 0

    def on_signal(self, number: int, _frame: object) -> None:
        self.num_signals += 1
        name = signal.Signals(number).name
        emit("stopping", signal=name, next="a second one ends at once, without a checkpoint")
        self.actor.stop.remote(name)

    def waiting(self, action: Callable[[], T]) -> T:
        """Do something in a thread, so that signals are heard; Ray Train takes them else."""
        found: list[T] = []
        failures: list[BaseException] = []

        def act() -> None:
            try:
                found.append(action())
            except BaseException as error:  # noqa: BLE001  raised again below
                failures.append(error)

        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
            if self.num_signals > 1:
                raise KeyboardInterrupt
            self._tell()
        self._tell()
        if failures:
            raise failures[0]
        return found[0]

    def _tell(self) -> None:
        """Pass on the epochs that the workers have told of."""
        if self._on_epoch is None:
            return
        for entry in ray.get(self.actor.entries.remote(self._num_told)):
            self._num_told += 1
            self._on_epoch(entry)


@contextmanager
def _stopping(on_epoch: EpochListener | None) -> Iterator[_Control]:
    """Turn signals into a word to the workers; leaves them alone outside the main thread."""
    control = _Control(on_epoch)
    is_main = threading.current_thread() is threading.main_thread()
    heard = (signal.SIGTERM, signal.SIGINT) if is_main else ()
    before = {number: signal.signal(number, control.on_signal) for number in heard}
    try:
        yield control
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        ray.kill(control.actor)


def _publish(folder: Folder, history: list[dict[str, Any]]) -> dict[str, Any]:
    """Copy the best epoch's bundle to where the other jobs look; return its entry.

    A run that is stopped before its end, and has nothing to validate on, has none yet.
    """
    best = best_entry(history)
    place = folder / BEST / best_name(best["epoch"])
    if place.exists():
        copy_bundle(place, folder / BUNDLE)
    return best


def _raise_what_ended(
    outcome: dict[str, Any], history: list[dict[str, Any]], config: TrainConfig
) -> None:
    """Raise when training ended before its time."""
    folder = Folder(config.run)
    if "diverged" in outcome:
        raise _diverged(outcome["diverged"], history, config)
    if "fault" in outcome:
        raise CheckpointError(f"{outcome['fault']}; the same command goes on from the last one")
    if "stopped" in outcome:
        raise StoppedError(
            f"stopped by {outcome['stopped']}, {len(history)} epochs done; the place is kept in "
            f"{folder}, the same command goes on from there"
        )


def _diverged(
    where: dict[str, Any], history: list[dict[str, Any]], config: TrainConfig
) -> DivergedError:
    folder = Folder(config.run)
    good = history[-1]["epoch"] if history else "none"
    kept = next(iter(CheckpointStore(folder).complete()), "none")
    return DivergedError(
        f"epoch {where['epoch']}, step {where['step']}: {where['term']} is {where['value']}, "
        f"{where.get('why', 'not finite')}; last good epoch: {good}, last good checkpoint: {kept}; "
        "in a new run folder, " + (config.model.traits.remedy or _REMEDY)
    )
