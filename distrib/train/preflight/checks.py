"""All that can be refused before any worker starts, and what a run folder belongs to."""

import importlib
import shutil
from typing import Any, get_args

from distrib.checkpoint.bundle import BUNDLE, load_bundle
from distrib.cluster.resources import await_room
from distrib.data.dataset import load_manifest
from distrib.data.feeds.tiles import BlockConfig
from distrib.data.schema import Role
from distrib.errors import ConfigError, DataError
from distrib.objectives import ObjectiveConfig
from distrib.storage import Folder
from distrib.train.config import TrainConfig
from distrib.train.engines.deepspeed import require_valid
from distrib.train.run_folder import require_same
from distrib.train.warm_start import require_same_kind

OBJECTIVES = get_args(get_args(ObjectiveConfig)[0])
_COMPILERS = ("c++", "g++", "clang++")


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
    require_same(config, {"data": manifest["hash"]})
    asked = manifest["counts"]["interactions_by_role"].get(Role.VALID_TARGET.name.lower(), 0)
    if config.loop.patience and not asked:
        raise ConfigError(
            f"train.patience = {config.loop.patience}, but the data hold nothing to validate on; "
            "set it to 0, or prepare with another split"
        )
    _check_data(config, manifest)
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
    require_same(config, {})
    if config.model.traits.learns == "steps":
        require_installed(config)
        require_valid(config.engine, config.optimizer)
        _check_objective(config)
        _check_engine(config)
        _check_blocks(config)
    else:
        _check_computed(config)
    known_metrics = set(config.evaluate.metric_names)
    if config.model.traits.gives == "scores":
        known_metrics -= {"rmse", "mae"}
    unknown = [name for name in config.selection if name not in known_metrics]
    if unknown:
        raise ConfigError(
            f"train.select_by names {unknown}, which are not measured; known are "
            f"{sorted(known_metrics)}"
        )


def _check_objective(config: TrainConfig) -> None:
    """Refuse an objective that takes what the model does not give."""
    model, objective = config.model, config.objective
    assert objective is not None  # a model that learns by steps has one
    gives = model.traits.gives
    if gives != objective.accepts:
        fitting = [
            kind.model_fields["name"].default for kind in OBJECTIVES if kind.accepts == gives
        ]
        raise ConfigError(
            f"model {model.name!r} gives {gives}, but objective {objective.name!r} takes "
            f"{objective.accepts}; pairs that make sense: {model.name} with "
            f"{' or '.join(sorted(fitting))}"
        )
    if (objective.name == "cosine") != (model.name == "elsa"):
        raise ConfigError(
            f"model {model.name!r} with objective {objective.name!r}: the cosine loss is read off "
            "the codes of elsa, and elsa is trained by no other; leave [objective] out"
        )
    if objective.name == "cosine" and config.engine.parallel == "items":
        raise ConfigError(
            "engine.parallel = 'items' with objective 'cosine', which decodes no items; set it to "
            "'data'"
        )


def _check_computed(config: TrainConfig) -> None:
    """Refuse what a model that is computed at once cannot do."""
    faults = []
    if config.objective is not None:
        faults.append(f"objective {config.objective.name!r}: nothing is minimised; remove it")
    if config.loop.warm_start:
        faults.append("train.warm_start: there is nothing to begin with; remove it")
    if config.loop.use_gpu:
        faults.append("train.use_gpu = true: it is computed on CPUs; set it to false")
    if faults:
        raise ConfigError(f"model {config.model.name!r} is computed at once. " + "; ".join(faults))


def _check_data(config: TrainConfig, manifest: dict[str, Any]) -> None:
    """Refuse data that lack what the model reads."""
    traits, levels = config.model.traits, manifest["levels"]
    if traits.gives == "ratings" and len(levels) == 1:
        raise ConfigError(
            f"model {config.model.name!r} gives ratings, but {config.prepared} holds interactions "
            "without any; choose a model of interactions, or a log with ratings"
        )
    if traits.rows != "users" and "item_histories" not in manifest:
        raise ConfigError(
            f"model {config.model.name!r} reads histories of items, which {config.prepared} lacks; "
            "set data.item_histories = true and prepare anew"
        )
    if (traits.has_user_rows or traits.rows == "both") and config.loop.warm_start:
        raise ConfigError(
            f"train.warm_start with model {config.model.name!r}: it has parameters for each user, "
            "which mean nothing on other data; remove it"
        )


def _check_blocks(config: TrainConfig) -> None:
    """Refuse what does not go with blocks of users and items, or blocks where there are none."""
    model, loop, engine = config.model, config.loop, config.engine
    if model.traits.rows != "both":
        if loop.blocks != BlockConfig():
            raise ConfigError(
                f"[train.blocks] with model {model.name!r}, which is not trained in blocks of "
                "users and items; remove it"
            )
        return
    faults = []
    if loop.feed == "streaming":
        faults.append("train.feed = 'streaming': any user meets any item; set it to 'resident'")
    if loop.rows_on_gpu:
        faults.append("train.rows_on_gpu = true: blocks are made on the host; set it to false")
    if engine.parallel == "items":
        faults.append("engine.parallel = 'items': both sides are encoded; set it to 'data'")
    if engine.micro_batch_users:
        faults.append(
            f"engine.micro_batch_users = {engine.micro_batch_users}: set it to 0, and "
            "train.batch_users and train.blocks.items to what fits"
        )
    if faults:
        raise ConfigError(
            f"model {model.name!r} is trained in blocks of users and items. " + "; ".join(faults)
        )


def _check_engine(config: TrainConfig) -> None:
    """Refuse an engine that this machine, or this loop, does not have."""
    if config.engine.precision == "fp16" and not config.loop.use_gpu:
        raise ConfigError(
            "engine.precision = 'fp16' with train.use_gpu = false: DeepSpeed computes in fp16 on "
            "GPUs (and few CPUs); use bf16 or fp32, or set train.use_gpu = true"
        )
    if config.engine.compile and not any(shutil.which(name) for name in _COMPILERS):
        raise ConfigError(
            f"engine.compile = true, but none of {', '.join(_COMPILERS)} is on the path; install "
            "one on every node, or set it to false"
        )
    if config.loop.max_skipped and config.engine.precision != "fp16":
        raise ConfigError(
            f"train.max_skipped = {config.loop.max_skipped} with engine.precision = "
            f"{config.engine.precision!r}: only fp16 leaves updates out; set it to 0"
        )


def require_room(config: TrainConfig) -> None:
    """Wait for nodes that may still come; refuse what the cluster does not hold then.

    Args:
        config: The run.

    Raises:
        ConfigError: There is too little of something; Ray would wait for ever.
    """
    loop = config.loop
    worker = {"CPU": float(loop.cpus_per_worker)} | ({"GPU": 1.0} if loop.use_gpu else {})
    lacking = await_room([worker] * loop.min_workers, loop.room_s)
    if lacking:
        listing = ", ".join(
            f"{count:g} {name}, there are {there:g}" for name, (count, there) in lacking.items()
        )
        raise ConfigError(
            f"train.num_workers = {loop.min_workers} needs {listing}; lower it, add nodes, or let "
            "the cluster grow further"
        )


def require_installed(config: TrainConfig) -> None:
    """Refuse what is asked for but not installed.

    Args:
        config: The run.

    Raises:
        ConfigError: A package is missing.
    """
    wanted = {"tensorboard": config.loop.tensorboard, "mlflow": bool(config.loop.mlflow)}
    missing = [name for name, is_wanted in wanted.items() if is_wanted and not _has(name)]
    if missing:
        raise ConfigError(
            f"train.{missing[0]} is set, but {missing[0]} is not installed; "
            f"pip install 'distrib[{missing[0]}]', or unset it"
        )


def _has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
