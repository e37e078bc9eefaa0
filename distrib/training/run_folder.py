"""Names inside a run folder, and which run a folder belongs to."""

import json
from collections.abc import Iterator
from typing import Any

from distrib.config import Config, JsonObject
from distrib.errors import DataError
from distrib.objectives.label_config import stored_path
from distrib.renamed import renamed
from distrib.soft_labels import label_manifest
from distrib.storage import Folder
from distrib.training.config import TrainingRun

RUN = "run.json"
"""Names the run that a folder belongs to."""

HISTORY = "history.json"
"""One entry for each epoch."""

_FIXED_IN_TRAIN = {"batch_users", "tiles", "window_users", "warm_start", "select_by", "feed"}
"""Fields of `TrainConfig` that decide the result; others may change between two starts."""

_FIXED_IN_ENGINE = {"precision"}
_LATER = {
    "model": ("rating_decay",),
    "evaluate": (
        *("precision_at", "map_at", "catalog_at", "by_popularity", "propensity_power"),
        *("item_groups", "effective_rank"),
    ),
}
"""Settings, by section, that earlier versions did not have."""

_TRAIN = "loop"
"""Name of the section ``[train]`` in `RUN`."""


def identity(run: TrainingRun, data: str) -> JsonObject:
    """Return what must not change between two starts of a run.

    The prepared data count by the hash of their content, so they may move. Settings of speed and
    memory, and the numbers of workers and epochs, may change.
    """
    fixed: JsonObject = json.loads(run.model_dump_json(exclude={"run", "prepared"}))
    train, engine = fixed.pop("train"), fixed["engine"]
    named = _FIXED_IN_TRAIN | ({"pretrained"} if run.train.pretrained else set())
    for section, name in _later_at_default(run):
        del fixed[section][name]  # as in folders of earlier versions
    fixed[_TRAIN] = {name: train[name] for name in sorted(named)}
    fixed["engine"] = {name: engine[name] for name in sorted(_FIXED_IN_ENGINE)}
    return {**fixed, **_labels(run), "data": data}


def _later_at_default(run: TrainingRun) -> Iterator[tuple[str, str]]:
    for section, names in _LATER.items():
        config: Config = getattr(run, section)
        fields = type(config).model_fields
        for name in names:
            if name in fields and getattr(config, name) == fields[name].default:
                yield section, name


def _labels(run: TrainingRun) -> JsonObject:
    """Return the digest of the soft labels that a run learns from, if it does."""
    path = stored_path(run.objective)
    if path is None:
        return {}
    try:
        return {"labels": label_manifest(path).digest}
    except DataError:
        return {"labels": None}  # `soft_label_faults` reports it


def identity_faults(run: TrainingRun, data: str | None) -> list[str]:
    """Compare a run with the one that its folder belongs to, if any.

    Args:
        run: The run.
        data: Hash of the prepared data; None where it is not known yet.

    Returns:
        What is wrong, with the remedy; at most one entry.
    """
    folder = Folder(run.run)
    if not folder.exists(RUN):
        return []
    found = folder.read_json(RUN)
    wanted = identity(run, data or found["data"])
    if run.train.feed == "auto":
        wanted[_TRAIN]["feed"] = found[_TRAIN].get("feed")  # a run keeps its first feed
    for document in (found, wanted):
        document["train"] = document.pop(_TRAIN)
    found, _ = renamed(found)
    lines = [
        f"{path}: {old!r} there, {new!r} now" for path, old, new in _differences(found, wanted, "")
    ]
    if not lines:
        return []
    listing = "\n  ".join(lines)
    return [
        f"{folder} belongs to a run with another configuration:\n  {listing}\nset run to a new "
        "folder, or undo the change"
    ]


def first_feed(folder: Folder) -> str | None:
    """Return the kind of feed that a run began with; None for a new run."""
    if not folder.exists(RUN):
        return None
    found: str | None = folder.read_json(RUN)[_TRAIN].get("feed")
    return found


def _differences(old: Any, new: Any, path: str) -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            found
            for key in sorted({*old, *new})
            for found in _differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if old == new else [(path, old, new)]
