"""A study on the cluster: Ray Tune schedules the trials, each of which is an ordinary run."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from distrib.config import JsonObject, Record, read_record
from distrib.data.dataset import Dataset
from distrib.errors import ConfigError
from distrib.events import emit
from distrib.fence import require_ours, take_over
from distrib.storage import Folder
from distrib.training.config import TrainingRun
from distrib.training.preflight.checks import preflight
from distrib.training.records import EpochRecord
from distrib.training.schemes import is_iterative
from distrib.tuning.space import SEARCHED, SearchConfig, Value, settings_of
from distrib.tuning.trainings import Trainings

RESULT = "search.json"
TRIALS = "trials"
_BEGUN = "search_begun.json"
_EPOCHS = "epochs.json"
_NUMBER = "trial"
_POLL_S = 0.5

TrainingOf = Callable[[Mapping[str, Value]], TrainingRun]
"""Makes the configuration of a run from settings of its fields."""


class Trial(Record):
    """The result of one trial."""

    trial: int
    settings: dict[str, Value]
    epochs: int
    selection: float | None
    """Selection score of the best epoch; None if no epoch was completed."""

    best_epoch: int | None
    valid: dict[str, float]
    curve: tuple[float, ...]
    """Selection score by epoch."""

    fault: str
    """Error that ended the trial early, if any."""


class SearchResult(Record):
    """A study; ``search.json`` in its folder."""

    selection: tuple[str, ...]
    """Metrics that select the best epoch."""

    trials: tuple[Trial, ...]
    """The best first."""

    best: tuple[str, ...]
    """Settings of the best trial, as arguments for ``--set``."""


class TrialEpochs(Record):
    """What a trial has measured so far; ``epochs.json`` in its folder."""

    epochs: tuple[EpochRecord, ...]
    fault: str | None = None
    """Empty for a finished trial; None for one in progress."""


def check(config: SearchConfig, training_of: TrainingOf) -> None:
    """Check that every field of the study exists and that the run of every trial could start.

    Args:
        config: The study.
        training_of: Makes the configuration of a run.

    Raises:
        ConfigError: There is nothing to search, or a trial is not valid; all faults at once.
        DataError: The data are not prepared.
    """
    if not config.space:
        raise ConfigError(
            "search.space is empty; name fields of the run file, e.g. "
            '[search.space] "optimizer.learning_rate" = { low = 1e-4, high = 1e-2, scale = "log" }'
        )
    strange = [name for name in config.space if name.partition(".")[0] not in SEARCHED]
    if strange:
        raise ConfigError(
            f"search.space names {strange}, which do not affect training; use fields of "
            f"{', '.join(SEARCHED)}"
        )
    faults: dict[str, None] = {}
    for number in range(config.num_trials):
        try:
            _require_validation(preflight(_trial(config, training_of, number)))
        except ConfigError as error:
            faults[str(error)] = None
    if faults:
        raise ConfigError("search.space draws trials that are not valid:\n" + "\n".join(faults))


def _require_validation(dataset: Dataset) -> None:
    if not dataset.manifest.num_valid:
        raise ConfigError("the data hold nothing to validate on; prepare with another data.split")


def search(config: SearchConfig, run: str, training_of: TrainingOf) -> SearchResult:
    """Run the trials, each in its own folder below the run; resume a study that stopped.

    Epochs that were measured before are not repeated: they are reported to the scheduler again, and
    trials that it continues resume from their checkpoints. So a study can be extended by trials.

    Args:
        config: The study.
        run: Run folder of the study.
        training_of: See `check`.

    Returns:
        The trials; also written to the folder as ``search.json``.

    Raises:
        ConfigError: See `check`; or no trial completed an epoch.
        TakenOverError: A later start of the study writes there.
    """
    check(config, training_of)
    token = take_over(Folder(run), _BEGUN)
    started_s = time.perf_counter()
    configs = {n: _trial(config, training_of, n) for n in range(config.num_trials)}
    longest = max(each.train.num_epochs for each in configs.values())

    def trial(drawn: JsonObject, trainings: ray.actor.ActorHandle) -> None:
        _tried(drawn[_NUMBER], configs[drawn[_NUMBER]], trainings)

    trainings = ray.remote(Trainings).options(num_cpus=0).remote()
    with_trainings = tune.with_parameters(trial, trainings=trainings)
    place = f"tune-{int(time.time())}"
    tuner = tune.Tuner(
        tune.with_resources(with_trainings, {"memory": 1}),  # workers request their own resources
        param_space={_NUMBER: tune.grid_search(sorted(configs))},
        tune_config=tune.TuneConfig(
            metric="selection",
            mode="max",
            scheduler=_scheduler(config, longest),
            max_concurrent_trials=config.max_concurrent,
        ),
        run_config=tune.RunConfig(
            name=place,
            storage_path=Folder(run).path,
            storage_filesystem=Folder(run).arrow(),
            verbose=0,
            callbacks=[_Stopping(trainings)],
        ),
    )
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Tune prints to stdout
            tuner.fit()
        ray.get(trainings.wait.remote())
    finally:
        ray.kill(trainings)
        (Folder(run) / place).remove()  # the trials' own folders are the record
    require_ours(Folder(run), token, _BEGUN)
    result = _summary(config, Folder(run), configs)
    Folder(run).remove(_BEGUN)
    emit("searched", trials=len(configs), seconds=round(time.perf_counter() - started_s))
    return result


def _scheduler(config: SearchConfig, longest: int) -> Any:
    if config.scheduler == "none" or longest <= config.grace_epochs:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="epoch",
        max_t=longest,
        grace_period=config.grace_epochs,
        reduction_factor=config.reduction,
    )


def _trial(config: SearchConfig, training_of: TrainingOf, number: int) -> TrainingRun:
    """Return the run of a trial, in its own folder."""
    found = training_of(settings_of(config, number))
    place = str(Folder(found.run) / TRIALS / f"{number:04d}")
    return found.model_copy(update={"run": place}).absolute()


class _Stopping(tune.Callback):  # type: ignore[misc]
    """Stops the training of trials that Tune ends."""

    def __init__(self, trainings: ray.actor.ActorHandle) -> None:
        self._trainings = trainings

    def on_trial_complete(self, *_: object, trial: Any, **__: object) -> None:
        """Stop the trial, whether it has trained to its end or not."""
        self._trainings.stop.remote(trial.config[_NUMBER])

    on_trial_error = on_trial_complete


def _tried(number: int, config: TrainingRun, trainings: ray.actor.ActorHandle) -> None:
    """Train, and report every epoch to Ray Tune, those measured before first."""
    folder = Folder(config.run)
    earlier = _measured(folder)
    epochs = list(earlier.epochs)
    for record in epochs:
        _report(record)
    if earlier.fault == "" and _is_whole(config, epochs):
        return
    ray.get(trainings.start.remote(number, config))
    num_read, is_over, fault = 0, False, ""
    while not is_over:
        time.sleep(_POLL_S)
        found, is_over, fault = ray.get(trainings.look.remote(number, num_read))
        num_read += len(found)
        for record in found:
            if not epochs or record.epoch > epochs[-1].epoch:
                epochs.append(record)
                folder.write_json(_EPOCHS, TrialEpochs(epochs=tuple(epochs)).to_json())
                _report(record)
    if fault:  # one failed trial must not end the study
        emit("trial_failed", run=config.run, fault=fault)
    folder.write_json(_EPOCHS, TrialEpochs(epochs=tuple(epochs), fault=fault).to_json())


def _measured(folder: Folder) -> TrialEpochs:
    """Return what a trial has measured so far."""
    if not folder.exists(_EPOCHS):
        return TrialEpochs(epochs=())
    return read_record(TrialEpochs, folder.read_json(_EPOCHS), folder / _EPOCHS)


def _is_whole(config: TrainingRun, epochs: list[EpochRecord]) -> bool:
    """Return whether a finished trial has nothing left to train."""
    return not is_iterative(config) or (
        bool(epochs) and epochs[-1].epoch >= config.train.num_epochs
    )


def _report(record: EpochRecord) -> None:
    tune.report({"epoch": record.epoch, "selection": record.selection})


def _summary(
    config: SearchConfig, folder: Folder, configs: Mapping[int, TrainingRun]
) -> SearchResult:
    """Collect what the trials wrote, the best first."""
    trials = [
        _summarized(number, settings_of(config, number), _measured(Folder(trial.run)))
        for number, trial in configs.items()
    ]
    trials.sort(key=lambda t: -math.inf if t.selection is None else t.selection, reverse=True)
    if trials[0].selection is None:
        raise ConfigError(f"no trial completed an epoch; error of the first: {trials[0].fault}")
    best = tuple(f"{name}={json.dumps(value)}" for name, value in trials[0].settings.items())
    result = SearchResult(selection=configs[0].selection, trials=tuple(trials), best=best)
    folder.write_json(RESULT, result.to_json())
    return result


def _summarized(number: int, settings: dict[str, Value], found: TrialEpochs) -> Trial:
    best = max(found.epochs, key=lambda record: record.selection, default=None)
    return Trial(
        trial=number,
        settings=settings,
        epochs=found.epochs[-1].epoch if found.epochs else 0,
        selection=None if best is None else best.selection,
        best_epoch=None if best is None else best.epoch,
        valid={} if best is None else best.valid,
        curve=tuple(record.selection for record in found.epochs),
        fault=found.fault or "",
    )
