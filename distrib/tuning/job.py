"""A study on the cluster: Ray Tune chooses which trials go on, each is a run like any other."""

import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from distrib.data.schema import Role
from distrib.errors import ConfigError, known
from distrib.events import emit
from distrib.storage import Folder
from distrib.train.config import TrainConfig
from distrib.train.preflight.checks import preflight
from distrib.train.workers.control import Control
from distrib.train.workers.launch import launch
from distrib.tuning.space import SEARCHED, SearchConfig, Value, settings_of

RESULT = "search.json"
TRIALS = "trials"
_ENTRIES = "epochs.json"
_NUMBER = "trial"
_POLL_S = 0.5
_OUTSIDE = PlacementGroupSchedulingStrategy(placement_group=None)

TrainingOf = Callable[[Mapping[str, Value]], TrainConfig]
"""Makes the configuration of a run from settings of its fields."""


def check(config: SearchConfig, training_of: TrainingOf) -> None:
    """Check the study: every field exists, and every trial makes a run that could start.

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
            f"search.space names {strange}, which do not decide training; fields of "
            f"{', '.join(SEARCHED)} do"
        )
    faults: dict[str, None] = {}
    for number in range(config.num_trials):
        try:
            _require_validation(preflight(_trial(config, training_of, number)))
        except ConfigError as error:
            faults[str(error)] = None
    if faults:
        raise ConfigError("search.space draws what cannot run:\n" + "\n".join(faults))


def _require_validation(manifest: dict[str, Any]) -> None:
    if not manifest["counts"]["interactions_by_role"].get(Role.VALID_TARGET.name.lower(), 0):
        raise ConfigError("the data hold nothing to validate on; prepare with another data.split")


def search(config: SearchConfig, run: str, training_of: TrainingOf) -> dict[str, Any]:
    """Run the trials, each in a folder of its own below the run; go on where a study stopped.

    What trials have measured is not measured again: it is told to the scheduler anew, and those
    that may go on do so from their checkpoints. So a study may be given more trials, too.

    Args:
        config: The study.
        run: Run folder of the study.
        training_of: See `check`.

    Returns:
        ``trials``, the best first, with number, settings, epochs, metrics of the best epoch and
        what went wrong, if anything; and ``best``, as arguments for ``--set``. Also written to the
        folder as ``search.json``.

    Raises:
        ConfigError: See `check`; or no trial came to the end of an epoch.
    """
    check(config, training_of)
    started_s = time.perf_counter()
    configs = {n: _trial(config, training_of, n) for n in range(config.num_trials)}
    longest = max(each.loop.num_epochs for each in configs.values())

    def trial(drawn: dict[str, Any]) -> None:
        _tried(configs[drawn[_NUMBER]])

    place = f"tune-{int(time.time())}"
    tuner = tune.Tuner(
        tune.with_resources(trial, {"memory": 1}),  # workers ask for what they need themselves
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
        ),
    )
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Tune talks there
            tuner.fit()
    finally:
        (Folder(run) / place).remove()  # the trials' own folders are the record
    result = _summary(config, Folder(run), configs)
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


def _trial(config: SearchConfig, training_of: TrainingOf, number: int) -> TrainConfig:
    """Return the run of a trial, in a folder of its own."""
    found = training_of(settings_of(config, number))
    place = str(Folder(found.run) / TRIALS / f"{number:04d}")
    return found.model_copy(update={"run": place}).absolute()


def _tried(config: TrainConfig) -> None:
    """Train, and tell Ray Tune of every epoch; what was measured before is told first.

    Tune keeps all that a trial starts within the trial's own resources, so training is a task
    outside them; Tune ends a trial by an exception out of `tune.report`.
    """
    folder = Folder(config.run)
    earlier = folder.read_json(_ENTRIES) if folder.exists(_ENTRIES) else {"epochs": []}
    entries = earlier["epochs"]
    for entry in entries:
        _report(entry)
    if "fault" in earlier and not earlier["fault"] and _is_whole(config, entries):
        return
    fault = ""
    try:
        for entry in _trained_epochs(config):
            if not entries or entry["epoch"] > entries[-1]["epoch"]:
                entries.append(entry)
                folder.write_json(_ENTRIES, {"epochs": entries})
                _report(entry)
    except ray.exceptions.RayError as error:  # one bad draw must not end the study
        fault = str(known(error) or error)
        emit("trial_failed", run=config.run, fault=fault)
    folder.write_json(_ENTRIES, {"epochs": entries, "fault": fault})


def _is_whole(config: TrainConfig, entries: list[dict[str, Any]]) -> bool:
    """Tell whether a trial that came to its end has nothing left to train."""
    is_computed = config.model.traits.learns != "steps"
    return is_computed or (bool(entries) and entries[-1]["epoch"] >= config.loop.num_epochs)


def _trained_epochs(config: TrainConfig) -> Iterator[dict[str, Any]]:
    """Train in a task, and yield each epoch's entry; the task ends with the iterator."""
    inbox = ray.remote(Control).options(num_cpus=0, scheduling_strategy=_OUTSIDE).remote()
    task = ray.remote(max_retries=0, num_cpus=0)(_trained)
    running = task.options(scheduling_strategy=_OUTSIDE).remote(config, inbox)
    num_heard, is_over = 0, False
    try:
        while not is_over:
            is_over = bool(ray.wait([running], timeout=_POLL_S)[0])
            fresh = ray.get(inbox.entries.remote(num_heard))
            num_heard += len(fresh)
            yield from fresh
        ray.get(running)
    finally:
        ray.cancel(running, force=True)
        ray.kill(inbox)


def _report(entry: dict[str, Any]) -> None:
    tune.report({"epoch": entry["epoch"], "selection": entry["selection"]})


def _trained(config: TrainConfig, inbox: ray.actor.ActorHandle) -> None:
    """Train in a process of its own."""
    for name in ("ray.train", "ray.tune", "ray.data"):
        logging.getLogger(name).setLevel(logging.WARNING)
    launch(config, lambda entry: ray.get(inbox.tell.remote(entry)))


def _summary(
    config: SearchConfig, folder: Folder, configs: Mapping[int, TrainConfig]
) -> dict[str, Any]:
    """Collect what the trials wrote, the best first."""
    trials = []
    for number, trial in configs.items():
        place = Folder(trial.run)
        found = place.read_json(_ENTRIES) if place.exists(_ENTRIES) else {"epochs": []}
        best = max(found["epochs"], key=lambda entry: float(entry["selection"]), default=None)
        trials.append(
            {
                "trial": number,
                "settings": settings_of(config, number),
                "epochs": len(found["epochs"]),
                "selection": best["selection"] if best else None,
                "best_epoch": best["epoch"] if best else None,
                "valid": best["valid"] if best else {},
                "curve": [entry["selection"] for entry in found["epochs"]],
                "fault": found.get("fault", ""),
            }
        )
    trials.sort(key=lambda t: -math.inf if t["selection"] is None else t["selection"], reverse=True)
    if trials[0]["selection"] is None:
        raise ConfigError(f"no trial came to the end of an epoch; the first: {trials[0]['fault']}")
    best = [f"{name}={json.dumps(value)}" for name, value in trials[0]["settings"].items()]
    result = {"selection": list(configs[0].selection), "trials": trials, "best": best}
    folder.write_json(RESULT, result)
    return result
