"""Names inside a run folder, and what a run folder belongs to."""

import json
from typing import Any

from distrib.errors import CheckpointError, ConfigError
from distrib.storage import Folder
from distrib.train.config import TrainConfig

RUN = "run.json"
"""What a run folder belongs to."""

HISTORY = "history.json"
"""One entry for each epoch."""

_FIXED_IN_LOOP = {"batch_users", "blocks", "window_users", "warm_start", "select_by", "feed"}
"""Of `LoopConfig`: what decides the result; with the rest, a run may go on as it likes."""

_FIXED_IN_ENGINE = {"precision"}

TOKEN = "attempt.json"
"""Which start of the run may write, inside a run."""

BEST = "best"
"""Folder of the bundles of the best epochs so far, inside a run."""


def identity(config: TrainConfig, data: dict[str, Any]) -> dict[str, Any]:
    """Return what must not change between two starts of a run.

    The content of the prepared data counts, as a hash, and not its place; speed, memory, numbers
    of workers and epochs may change.
    """
    fixed: dict[str, Any] = json.loads(config.model_dump_json(exclude={"run", "prepared"}))
    for part, names in (("loop", _FIXED_IN_LOOP), ("engine", _FIXED_IN_ENGINE)):
        fixed[part] = {name: fixed[part][name] for name in sorted(names)}
    return {**fixed, **data}


def require_same(config: TrainConfig, data: dict[str, Any]) -> None:
    """Refuse a run folder of another configuration; of other data, too, once ``data`` is known."""
    folder = Folder(config.run)
    if not folder.exists(RUN):
        return
    found = folder.read_json(RUN)
    wanted = identity(config, data or {"data": found["data"]})
    if config.loop.feed == "auto":
        wanted["loop"]["feed"] = found["loop"].get("feed")  # a run keeps what it began with
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


def require_ours(folder: Folder, token: str) -> None:
    """Refuse to write into a run that a later start has taken over.

    Args:
        folder: The run.
        token: Of this start.

    Raises:
        CheckpointError: It is no longer ours.
    """
    if folder.read_json(TOKEN)["token"] != token:
        raise CheckpointError(
            f"{folder}: a later start of this run has taken it over; this one ends, wait for that"
        )


def best_name(epoch: int) -> str:
    """Return the name of the bundle of an epoch; names sort by age."""
    return f"epoch-{epoch:06d}"


def best_entry(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the entry of the best epoch, the earliest of equals."""
    return max(history, key=lambda entry: (entry["selection"], -entry["epoch"]))
