"""The driver's side of training: check, start the workers, publish the best."""

import json
import math
from typing import Any

import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from distrib.checkpoint.bundle import BUNDLE, copy_bundle, load_bundle
from distrib.data.feed import Resident, load_resident
from distrib.data.prepared import load_manifest, load_vocabulary
from distrib.errors import CheckpointError, ConfigError, DataError, DivergedError
from distrib.events import emit, is_terminal
from distrib.storage import Folder
from distrib.train.config import TrainConfig
from distrib.train.warm_start import require_same_kind
from distrib.train.worker import Inputs, train_worker
from distrib.vocabulary import Vocabulary

RUN = "run.json"
HISTORY = "history.json"
_ENGINE = "train"
_MAY_CHANGE: Any = {
    "run": True,
    "prepared": True,  # its content counts, as a hash
    "loop": {"num_epochs", "max_failures", "log_every_s", "cpus_per_worker"},
}


def preflight(config: TrainConfig) -> dict[str, Any]:
    """Check all that can be known before any worker is started.

    Args:
        config: The run.

    Returns:
        The manifest of the prepared data.

    Raises:
        ConfigError: Model and objective do not fit, or the run folder belongs to another
            configuration.
        DataError: The data are not prepared, or hold no training user.
    """
    check_choice(config)
    manifest = load_manifest(Folder(config.prepared))
    if manifest["counts"]["training_users"] == 0:
        raise DataError(
            f"{config.prepared}: no user has a training interaction; choose another data.split"
        )
    _require_same(config, {"data": manifest["hash"]})
    if config.loop.warm_start:
        earlier = load_bundle(Folder(config.loop.warm_start) / BUNDLE)
        require_same_kind(earlier, config.model, tuple(manifest["levels"]))
    return manifest


def check_choice(config: TrainConfig) -> None:
    """Check what only the configuration decides.

    Args:
        config: The run.

    Raises:
        ConfigError: See `preflight`.
    """
    _require_same(config, {})
    model, objective = config.model, config.objective
    if model.gives != objective.accepts:
        raise ConfigError(
            f"model {model.name!r} gives {model.gives}, but objective {objective.name!r} takes "
            f"{objective.accepts}; pairs that make sense: conv4rec with rating_classes, "
            "mult_vae with multinomial"
        )
    if config.engine.precision == "fp16" and not config.loop.use_gpu:
        raise ConfigError(
            "engine.precision = 'fp16' with train.use_gpu = false: DeepSpeed computes in fp16 on "
            "GPUs (and few CPUs); use bf16 or fp32, or set train.use_gpu = true"
        )
    known = set(config.evaluate.metric_names)
    if model.gives == "scores":
        known -= {"rmse", "mae"}
    unknown = [name for name in config.selection if name not in known]
    if unknown:
        raise ConfigError(
            f"train.select_by names {unknown}, which are not measured; known are {sorted(known)}"
        )


def identity(config: TrainConfig, data: dict[str, Any]) -> dict[str, Any]:
    """Return what must not change between two starts of a run."""
    fixed: dict[str, Any] = json.loads(config.model_dump_json(exclude=_MAY_CHANGE))
    return {**fixed, **data}


def launch(config: TrainConfig) -> dict[str, Any]:
    """Train on the cluster, going on where an earlier start of the same run stopped.

    Args:
        config: The run.

    Returns:
        ``run``, ``epochs``, ``best_epoch`` and the ``valid`` metrics of the best epoch.

    Raises:
        ConfigError: See `preflight`; also when the cluster can never hold the workers.
        DivergedError: The loss was not finite.
    """
    manifest = preflight(config)
    _require_room(config)
    folder, prepared = Folder(config.run), Folder(config.prepared)
    folder.write_json(RUN, identity(config, {"data": manifest["hash"]}))
    vocabulary = load_vocabulary(prepared)
    resident = load_resident(prepared)
    emit(
        "feed",
        kind="resident",
        training_users=resident.num_train,
        valid_users=resident.num_valid,
        megabytes=round(resident.num_bytes / 1e6, 1),
    )
    result = _trainer(config, resident, vocabulary, manifest, folder).fit()
    outcome: dict[str, Any] = result.return_value
    history = outcome["history"]
    folder.write_json(HISTORY, history)
    best_epoch = _publish(result, folder) if history else 0
    if "diverged" in outcome:
        raise _diverged(outcome["diverged"], history)
    return {
        "run": str(folder),
        "epochs": history[-1]["epoch"],
        "best_epoch": best_epoch,
        "valid": history[best_epoch - 1]["valid"],
        "users_per_s": history[-1]["users_per_s"],
        "data_share": history[-1]["data_share"],
    }


def _trainer(
    config: TrainConfig,
    resident: Resident,
    vocabulary: Vocabulary,
    manifest: dict[str, Any],
    folder: Folder,
) -> TorchTrainer:
    facts = {"data": manifest["hash"], "seed": config.seed}
    inputs = Inputs(config.model_dump_json(), resident, ray.put(vocabulary), facts, is_terminal())
    loop = config.loop
    resources = {"CPU": float(loop.cpus_per_worker)} | ({"GPU": 1.0} if loop.use_gpu else {})
    environment = {} if loop.use_gpu else {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return TorchTrainer(
        train_worker,
        train_loop_config={"inputs": inputs},
        torch_config=TorchConfig(timeout_s=1800),
        scaling_config=ScalingConfig(
            num_workers=loop.num_workers, use_gpu=loop.use_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=_ENGINE,
            storage_path=folder.path,
            storage_filesystem=folder.arrow(),
            failure_config=FailureConfig(max_failures=loop.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=loop.num_checkpoints,
                checkpoint_score_attribute="selection",
                checkpoint_score_order="max",
            ),
            worker_runtime_env={"env_vars": environment},
        ),
    )


def _publish(result: ray.train.Result, folder: Folder) -> int:
    """Copy the best epoch's bundle to where the other jobs look; return the epoch."""
    kept = [
        (metrics["selection"], -metrics["epoch"], checkpoint.path)
        for checkpoint, metrics in result.best_checkpoints
    ]
    if not kept:
        raise CheckpointError(f"{folder}: its checkpoints are gone; train in a new run folder")
    _, negative_epoch, path = max(kept)
    copy_bundle(folder / _ENGINE / path.rstrip("/").rsplit("/", 1)[-1] / BUNDLE, folder / BUNDLE)
    return -int(negative_epoch)


def _require_same(config: TrainConfig, data: dict[str, Any]) -> None:
    """Refuse a run folder of another configuration; of other data, too, once ``data`` is known."""
    folder = Folder(config.run)
    if not folder.exists(RUN):
        return
    found = folder.read_json(RUN)
    wanted = identity(config, data or {"data": found["data"]})
    faults = [
        f"{path}: {old!r} there, {new!r} now" for path, old, new in _differences(found, wanted, "")
    ]
    if faults:
        raise ConfigError(
            f"{folder} belongs to a run with another configuration:\n  "
            + "\n  ".join(faults)
            + "\nset run to a new folder, or undo the change"
        )


def _differences(old: Any, new: Any, path: str) -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            found
            for key in sorted({*old, *new})
            for found in _differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if old == new else [(path, old, new)]


def _require_room(config: TrainConfig) -> None:
    """Refuse what the cluster can never hold; Ray would wait for ever."""
    loop, have = config.loop, ray.cluster_resources()
    needed = {"CPU": loop.num_workers * loop.cpus_per_worker}
    if loop.use_gpu:
        needed["GPU"] = loop.num_workers
    short = {
        name: (count, have.get(name, 0))
        for name, count in needed.items()
        if have.get(name, 0) < count
    }
    if short:
        listing = ", ".join(
            f"{count:g} {name}, there are {there:g}" for name, (count, there) in short.items()
        )
        raise ConfigError(
            f"train.num_workers = {loop.num_workers} needs {listing}; lower it or add nodes"
        )


def _diverged(where: dict[str, Any], history: list[dict[str, Any]]) -> DivergedError:
    good = history[-1]["epoch"] if history else None
    bad = {name: value for name, value in where["losses"].items() if not math.isfinite(value)}
    return DivergedError(
        f"epoch {where['epoch']}, step {where['step']}: loss {bad} not finite; last good epoch: "
        f"{'none' if good is None else good}; lower optimizer.learning_rate, set "
        "optimizer.gradient_clipping, or use engine.precision bf16 or fp32"
    )
