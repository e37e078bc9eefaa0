"""The driver's side of training: check, run the workers, restart lost ones, publish the best."""

import time
from collections.abc import Callable
from functools import partial

import ray
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig

from distrib.checkpoint.bundle import BundleFacts
from distrib.checkpoint.store import CheckpointStore
from distrib.cluster.prometheus import hide, keep, show
from distrib.cluster.resources import ON_CPU
from distrib.data.dataset import Dataset
from distrib.data.feeds.loader import TrainingData, kind_of, load_training_data
from distrib.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    MemoryLimitError,
    StoppedError,
    WorkersLostError,
    causes,
    known,
)
from distrib.events import emit, is_terminal
from distrib.fence import require_ours, take_over
from distrib.storage import Folder
from distrib.training.best_bundle import publish_best, warn_of_popularity
from distrib.training.config import TrainingRun
from distrib.training.oom import advice
from distrib.training.preflight.checks import preflight, require_room
from distrib.training.records import Divergence, EpochRecord, Outcome, RunResult
from distrib.training.run_folder import HISTORY, RUN, first_feed, identity
from distrib.training.schemes import is_iterative, iterative_scheme_of, scheme_of
from distrib.training.workers.alone import train_alone
from distrib.training.workers.ray_worker import FromDriver, train_worker
from distrib.training.workers.signals import Driver, driving
from distrib.training.workers.solve import solve
from distrib.training.workers.trainer import Trainer

_RAY = "ray"
_DIVERGENCE_ADVICE = (
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
EpochListener = Callable[[EpochRecord], None]
_Workers = Callable[[TrainingRun, Dataset, str, EpochListener | None], Outcome]


def launch(
    run: TrainingRun,
    on_epoch: EpochListener | None = None,
    control: ray.actor.ActorHandle | None = None,
) -> RunResult:
    """Train on the cluster, continuing where an earlier start of the same run stopped.

    Args:
        run: The run to train.
        on_epoch: Called with the record of each epoch; what it raises ends training.
        control: A `Control` of the caller, who may request a stop there; workers post the records
            of epochs to it.

    Returns:
        The run folder, and the metrics of the best epoch.

    Raises:
        ConfigError: See `preflight`; also when the cluster can never hold the workers.
        DivergedError: A loss or gradient was not finite.
        CheckpointError: A checkpoint could not be written, or none could be read.
        MemoryLimitError: A worker ran out of memory.
        WorkersLostError: Workers were lost more often than ``max_failures``.
        StoppedError: A signal or a preemption stopped training; a checkpoint is kept.
    """
    dataset = preflight(run)
    began = "When training began, Unix time."
    show("train_started_seconds", began, time.time(), run=run.run_name)
    keep("train_diverged", "Whether the last training diverged.", 0.0)
    try:
        require_room(run)
        if not is_iterative(run):
            return solve(run, dataset, on_epoch)
        return _train(run, dataset, on_epoch, partial(_run_workers, control=control))
    except DivergedError:
        keep("train_diverged", "Whether the last training diverged.", 1.0)
        raise
    finally:
        hide("train_started_seconds")


def launch_here(run: TrainingRun, on_epoch: EpochListener | None = None) -> RunResult:
    """Train in this process, where one CPU worker is enough; otherwise as `launch`.

    Starting workers takes longer than training many a small model. The process must have the
    environment `distrib.training.workers.alone.ENVIRONMENT`. Nothing stops training but the end of
    the process, after which the same call continues from the last checkpoint.
    """
    if run.train.max_workers > 1 or run.train.use_gpu or not is_iterative(run):
        return launch(run, on_epoch)
    return _train(run, preflight(run), on_epoch, train_alone)


def _train(
    run: TrainingRun, dataset: Dataset, on_epoch: EpochListener | None, workers: _Workers
) -> RunResult:
    """Train by updates, and publish the best epoch."""
    folder = Folder(run.run)
    run = _with_feed(run, dataset)
    folder.write_json(RUN, identity(run, dataset.hash))
    token = take_over(folder)
    outcome = workers(run, dataset, token, on_epoch)
    require_ours(folder, token)
    history = outcome.history
    folder.write_json(HISTORY, [record.to_json() for record in history])
    best = publish_best(folder, history) if history else None
    _raise_early_end(outcome, run)
    assert best is not None  # training has finished
    warn_of_popularity(run, history[0], best)
    last = history[-1]
    return RunResult(
        run=str(folder),
        epochs=last.epoch,
        best_epoch=best.epoch,
        valid=best.valid,
        data_share=last.data_share,
        speed=last.speed,
    )


def _with_feed(run: TrainingRun, dataset: Dataset) -> TrainingRun:
    """Choose the kind of feed; a run keeps its first one."""
    feed: str = run.train.feed
    if feed == "auto":
        feed = first_feed(Folder(run.run)) or feed
    if iterative_scheme_of(run).needs_resident:
        feed = "resident"
    kind = kind_of(feed, dataset.manifest)
    if kind == "streaming" and run.train.histories_on_gpu and run.train.use_gpu:
        raise ConfigError(
            "train.histories_on_gpu = true, but the histories are read from storage, as they do "
            "not fit into the memory of each node, or did not when this run folder was begun; set "
            "it to false, or train.feed = 'resident' in a new run folder"
        )
    train = run.train.model_copy(update={"feed": kind})
    return run.model_copy(update={"train": train})


def _run_workers(
    run: TrainingRun,
    dataset: Dataset,
    token: str,
    on_epoch: EpochListener | None,
    control: ray.actor.ActorHandle | None,
) -> Outcome:
    """Run the workers until they finish; restart them when some are lost."""
    folder, lost = Folder(run.run), _LostWorkers(run)
    with driving(on_epoch, control) as driver:
        while True:
            try:
                data = _loaded(run)
                trainer = _trainer(run, data, dataset, token, driver)
                outcome: Outcome = driver.waiting(lambda: trainer.fit().return_value)  # noqa: B023
            except (TrainingFailedError, ray.exceptions.RayError) as error:
                lost.raise_if_fatal(error)
                require_ours(folder, token)
                continue
            is_preempted = outcome.stopped.startswith("preemption")
            if is_preempted and run.train.min_workers < run.train.max_workers:
                emit("preempted", reason=outcome.stopped)  # continue with those that are left
                continue
            return outcome


def _loaded(run: TrainingRun) -> TrainingData:
    """Load the histories, or prepare to stream their shards."""
    kind = run.train.feed
    assert kind != "auto"  # `_with_feed` has chosen
    data = load_training_data(run.prepared, kind, scheme_of(run).reads)
    emit(
        "feed",
        kind=data.kind,
        training_users=data.num_train,
        valid_users=data.num_valid,
        megabytes=round(data.num_bytes / 1e6, 1),
    )
    return data


class _LostWorkers:
    """Counts lost workers, and decides which failures are worth a restart."""

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self._store = CheckpointStore(Folder(run.run))
        self._times = 0
        self._last = ("", "")

    def raise_if_fatal(self, error: Exception) -> None:
        """Raise errors that a restart would not fix."""
        ours = known(error)
        if ours is not None:
            raise ours from error
        found = list(causes(error))
        text = next(
            (line[:300] for line in reversed(str(found[-1]).strip().splitlines()) if line),
            type(found[-1]).__name__,
        )
        if any(isinstance(cause, ray.exceptions.OutOfMemoryError) for cause in found):
            what = f"Ray killed a worker, as its node ran out of memory ({text})"
            raise MemoryLimitError(advice(self._run, what)) from error
        is_lost = any(isinstance(cause, ray.exceptions.RayActorError) for cause in found)
        place = (text, next(iter(self._store.complete()), ""))
        is_stuck = place == self._last
        if not is_lost and (is_stuck or any(isinstance(cause, _BUGS) for cause in found)):
            raise error  # a programming error, or the same error at the same checkpoint
        self._times, self._last = self._times + 1, place
        most = self._run.train.max_failures
        emit("workers_lost", times=self._times, of=most, cause=text)
        if self._times > most:
            raise WorkersLostError(
                f"workers were lost {self._times} times, train.max_failures is {most}; last error: "
                f"{text}; the same command continues from the last checkpoint"
            ) from error


def _trainer(
    run: TrainingRun, data: TrainingData, dataset: Dataset, token: str, driver: Driver
) -> Trainer:
    folder, train = Folder(run.run), run.train
    found = FromDriver(
        run=run.absolute().model_dump_json(),
        data=data,
        vocabulary=ray.put(dataset.vocabulary),
        facts=BundleFacts(data=dataset.hash, seed=run.seed),
        shows_bar=is_terminal(),
        token=token,
        control=driver.actor,
    )
    resources = {"CPU": float(train.cpus_per_worker)} | ({"GPU": 1.0} if train.use_gpu else {})
    environment = {} if train.use_gpu else ON_CPU
    is_elastic = train.min_workers < train.max_workers
    return Trainer(
        train_worker,
        train_loop_config={"found": found},
        torch_config=TorchConfig(timeout_s=int(train.collective_timeout_s * 2) + 60),
        scaling_config=ScalingConfig(
            num_workers=train.worker_range if is_elastic else train.max_workers,
            use_gpu=train.use_gpu,
            resources_per_worker=resources,
            **({"elastic_resize_monitor_interval_s": train.resize_s} if is_elastic else {}),
        ),
        run_config=RunConfig(
            name=_RAY,
            storage_path=folder.path,
            storage_filesystem=folder.arrow(),
            failure_config=FailureConfig(max_failures=0),  # `_LostWorkers` decides
            worker_runtime_env={"env_vars": environment},
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def _raise_early_end(outcome: Outcome, run: TrainingRun) -> None:
    """Raise when training ended early."""
    if outcome.divergence is not None:
        raise _diverged(outcome.divergence, outcome.history, run)
    if outcome.fault:
        raise CheckpointError(f"{outcome.fault}; the same command continues from the last one")
    if outcome.stopped:
        last = outcome.history[-1].epoch if outcome.history else 0
        raise StoppedError(
            f"stopped by {outcome.stopped} after epoch {last}; a checkpoint is "
            f"kept in {Folder(run.run)}, the same command continues from there"
        )


def _diverged(found: Divergence, history: list[EpochRecord], run: TrainingRun) -> DivergedError:
    good = history[-1].epoch if history else "none"
    kept = next(iter(CheckpointStore(Folder(run.run)).complete()), "none")
    return DivergedError(
        f"epoch {found.epoch}, step {found.step}: {found.term} is {found.value}, {found.why}; "
        f"last good epoch: {good}, last good checkpoint: {kept}; in a new run folder, "
        + (found.advice or run.model.spec.divergence_advice or _DIVERGENCE_ADVICE)
    )
