"""Checks before any worker starts; all faults are reported at once.

Schemes, the engine and the objective bring their own rules; those here concern several of them.
"""

import importlib.util
from collections.abc import Iterator
from typing import get_args

from distrib.checkpoint.bundle import BUNDLE, load_bundle
from distrib.cluster.resources import await_room
from distrib.data.dataset import Dataset
from distrib.errors import ConfigError, DataError, DistribError, raise_all
from distrib.labeled_metrics import LOG_LOSS
from distrib.objectives import ObjectiveConfig
from distrib.objectives.base import ObjectiveSpec
from distrib.objectives.unlabeled_entries import LearnsFromUnlabeled
from distrib.storage import Folder
from distrib.training.config import TrainingRun
from distrib.training.preflight.labels import feedback_faults
from distrib.training.preflight.soft_labels import soft_label_faults
from distrib.training.run_folder import HISTORY, identity_faults
from distrib.training.schemes import can_warm_start, is_iterative, scheme_of
from distrib.training.schemes.base import IterativeScheme
from distrib.training.schemes.closed_form import CountsWindow
from distrib.training.warm_start import kind_faults, load_pretrained, pretrained_faults

OBJECTIVES = get_args(get_args(ObjectiveConfig)[0])


def preflight(run: TrainingRun) -> Dataset:
    """Check a run before any worker starts.

    Args:
        run: The run to train.

    Returns:
        The prepared data.

    Raises:
        ConfigError: Settings clash, with each other, with the data, or with the run that the
            folder belongs to; all faults at once.
        DataError: The data are not prepared, or hold no training user.
    """
    faults: list[DistribError] = [ConfigError(fault) for fault in run_faults(run)]
    try:
        dataset = _trainable(run.prepared)
    except DataError as error:
        raise_all([*faults, error])
        raise
    if not faults:  # `run_faults` compares the folder already, but without the data's hash
        faults += [ConfigError(fault) for fault in identity_faults(run, dataset.hash)]
    faults += [ConfigError(fault) for fault in data_faults(run, dataset)]
    faults += warm_start_faults(run, dataset)
    faults += _pretrained_faults(run, dataset)
    faults += soft_label_faults(run, dataset)
    raise_all(faults)
    return dataset


def _trainable(prepared: str) -> Dataset:
    """Open prepared data; refuse it without training users."""
    dataset = Dataset.open(prepared)
    if dataset.manifest.counts.training_users == 0:
        raise DataError(
            f"{prepared}: no user has a training interaction; choose another data.split"
        )
    return dataset


def check_run(run: TrainingRun) -> None:
    """Check what only the run file decides.

    Args:
        run: The run to train.

    Raises:
        ConfigError: See `preflight`.
    """
    raise_all([ConfigError(fault) for fault in run_faults(run)])


def run_faults(run: TrainingRun) -> list[str]:
    """Return what is wrong with a run file, whatever the data."""
    scheme = scheme_of(run)
    faults = [*identity_faults(run, None), *scheme.faults(run), *_selection_faults(run)]
    if isinstance(scheme, IterativeScheme):
        faults += _package_faults(run)
        faults += _deepspeed_faults(run)
        faults += _objective_faults(run, scheme)
        faults += run.engine.faults(
            use_gpu=run.train.use_gpu,
            max_skipped_updates=run.train.max_skipped_updates,
            is_tied=run.model.spec.is_tied,
        )
    return faults


def _deepspeed_faults(run: TrainingRun) -> list[str]:
    if not run.engine.deepspeed:
        return []
    from distrib.training.engines.deepspeed import deepspeed_faults  # takes seconds

    return deepspeed_faults(run.engine, run.optimizer)


def data_faults(run: TrainingRun, dataset: Dataset) -> list[str]:
    """Return what the prepared data lack for a run."""
    manifest, spec, train = dataset.manifest, run.model.spec, run.train
    scheme, faults = scheme_of(run), []
    if train.patience and not manifest.num_valid:
        faults.append(
            f"train.patience = {train.patience}, but the data have no validation users; set it "
            "to 0, or prepare with another data.split"
        )
    if spec.output == "ratings" and len(manifest.levels) == 1:
        faults.append(
            f"model {run.model.name!r} predicts ratings, but {run.prepared} holds interactions "
            "without ratings; choose a model for interactions, or a log with ratings"
        )
    if scheme.reads != "users" and manifest.item_histories is None:
        faults.append(
            f"model {run.model.name!r} reads histories of items, which {run.prepared} lacks; set "
            "data.item_histories = true and run prepare again"
        )
    faults += _sample_faults(run, manifest.counts.items)
    if manifest.made_from.has_repeats and not spec.reads_repeats:
        faults.append(
            f"model {run.model.name!r} reads an item of a user once, but {run.prepared} keeps "
            "repeats; prepare another folder with data.cleaning.duplicates = 'last', or choose a "
            "model of sequences"
        )
    has_window = isinstance(run.model, CountsWindow) and run.model.window_days is not None
    if has_window and manifest.times.last is None:
        faults.append(
            f"model.window_days with {run.prepared}, whose log has no times; remove it, or set "
            "data.source.columns.time and run prepare again"
        )
    faults += [
        f"train.compare_with names {other}, which holds no finished epoch; train it first, or "
        "remove it"
        for other in run.train.compare_with
        if not Folder(other).exists(HISTORY)
    ]
    faults += feedback_faults(run, dataset)
    if train.warm_start and is_iterative(run) and not can_warm_start(run):
        faults.append(
            f"train.warm_start with model {run.model.name!r}: what it learns of users, as with "
            "parameters for each user, does not transfer to other data; remove it"
        )
    return faults


def _sample_faults(run: TrainingRun, num_items: int) -> Iterator[str]:
    """Refuse to draw as many items as there are, for objectives of the next item."""
    objective = run.objective
    num_sampled = getattr(objective, "num_sampled", 0)
    if objective is None or objective.spec.model_scheme is None or num_sampled < num_items:
        return
    yield (
        f"objective.num_sampled = {num_sampled}, but the catalog has {num_items} items; draw "
        "fewer, or use objective 'softmax' over all of them"
    )


def warm_start_faults(run: TrainingRun, dataset: Dataset) -> list[DistribError]:
    """Return why training cannot start from the earlier model, if it cannot."""
    if not run.train.warm_start or not can_warm_start(run):
        return []
    try:
        earlier = load_bundle(Folder(run.train.warm_start) / BUNDLE)
    except DistribError as error:
        return [error]
    faults = kind_faults(earlier, run.model, dataset.manifest.levels)
    if earlier.facts.data in dataset.manifest.forgets:
        faults.append(
            f"train.warm_start: {run.train.warm_start} was trained on people who have since been "
            "removed from the data; train it again, or unset train.warm_start"
        )
    return [ConfigError(fault) for fault in faults]


def _pretrained_faults(run: TrainingRun, dataset: Dataset) -> list[DistribError]:
    """Return why training cannot start from models of other kinds, if it cannot."""
    if not run.train.pretrained:
        return []
    try:
        found = load_pretrained(run.train.pretrained)
    except DistribError as error:
        return [error]
    return [ConfigError(fault) for fault in pretrained_faults(found, run.model, dataset.hash)]


def _selection_faults(run: TrainingRun) -> Iterator[str]:
    """Refuse metrics that are not measured."""
    known = set(run.evaluate.metric_names)
    if run.model.spec.output in {"scores", "log_odds"}:
        known -= {"rmse", "mae"}
    if run.model.spec.output != "log_odds":
        known -= {LOG_LOSS}
    unknown = [name for name in run.selection if name not in known]
    if unknown:
        yield (
            f"train.select_by names {unknown}, which are not measured; available: {sorted(known)}"
        )


def _objective_faults(run: TrainingRun, scheme: IterativeScheme) -> Iterator[str]:
    """Refuse an objective that does not fit the output of the model, or what is decoded."""
    model, spec, objective = run.model, run.model.spec, run.objective
    assert objective is not None  # every model that an engine trains has one
    fits = [
        kind.model_fields["name"].default
        for kind in OBJECTIVES
        if _accepts(kind.spec, spec.output)
        and kind.spec.model_scheme in {None, spec.scheme}
        and (spec.is_tied or not kind.spec.needs_tied)
        and (scheme.decodes_inputs or not kind.spec.decodes_inputs)
    ]
    if objective.spec.needs_whole_catalog and run.engine.parallel == "items":
        yield (
            f"objective {objective.name!r} with engine.parallel = 'items': it decodes items that "
            "other ranks hold; set it to 'data'"
        )
    if isinstance(objective, LearnsFromUnlabeled) and not _accepts(
        objective.base.spec, spec.output
    ):
        yield (
            f"model {model.name!r} outputs {spec.output}, but objective.base = "
            f"{objective.base.name!r} takes {_taken(objective.base.spec)}; set it to the objective "
            "that the model is trained by otherwise"
        )
    if objective.name not in fits:
        yield (
            f"model {model.name!r} outputs {spec.output}, but objective {objective.name!r} takes "
            f"{_taken(objective.spec)}; valid "
            f"objectives for {model.name}: {' or '.join(sorted(fits))}"
        )


def _accepts(spec: ObjectiveSpec, output: str) -> bool:
    """Return whether an objective takes the output of a model."""
    return output == spec.accepts or (isinstance(spec.accepts, tuple) and output in spec.accepts)


def _taken(spec: ObjectiveSpec) -> str:
    """Return what an objective takes, for a message."""
    taken = (spec.accepts,) if isinstance(spec.accepts, str) else spec.accepts
    what = "embeddings of tied weights" if spec.needs_tied else " or ".join(taken)
    if spec.model_scheme:
        what = f"{what} of models of scheme {spec.model_scheme!r}"
    return f"{what} of the histories that it decodes" if spec.decodes_inputs else what


def _package_faults(run: TrainingRun) -> Iterator[str]:
    """Refuse trackers that are enabled but not installed."""
    wanted = {"tensorboard": run.train.tensorboard, "mlflow": bool(run.train.mlflow)}
    for name, is_wanted in wanted.items():
        if is_wanted and importlib.util.find_spec(name) is None:
            yield (
                f"train.{name} is set, but {name} is not installed; pip install "
                f"'distrib[{name}]', or unset it"
            )


def require_room(run: TrainingRun) -> None:
    """Wait for nodes that may still join; then refuse what the cluster cannot hold.

    Args:
        run: The run to train.

    Raises:
        ConfigError: The cluster lacks resources; Ray would wait forever.
    """
    train = run.train
    worker = {"CPU": float(train.cpus_per_worker)} | ({"GPU": 1.0} if train.use_gpu else {})
    lacking = await_room([worker] * train.min_workers, train.resource_timeout_s)
    if lacking:
        listing = ", ".join(
            f"{count:g} {name}, there are {there:g}" for name, (count, there) in lacking.items()
        )
        raise ConfigError(
            f"train.num_workers = {train.min_workers} needs {listing}; lower it, add nodes, or let "
            "the cluster grow further"
        )
