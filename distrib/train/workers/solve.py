"""Models that are computed at once: statistics summed on the cluster, then one solution."""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
import torch
from scipy.sparse import csr_array

from distrib.checkpoint.bundle import BUNDLE, restored, write_bundle
from distrib.checkpoint.manifest import MANIFEST
from distrib.cluster.resources import present
from distrib.data.dataset import load_vocabulary
from distrib.data.feeds.collate import example
from distrib.data.feeds.shards import read_shard
from distrib.data.schema import Role
from distrib.errors import MemoryLimitError
from distrib.evaluate.protocol import measure, selection_score
from distrib.events import emit, rounded
from distrib.metrics import Sums
from distrib.score.scorer import Scorer
from distrib.storage import Folder
from distrib.train.config import TrainConfig
from distrib.train.oom import is_of_memory
from distrib.train.run_folder import HISTORY, RUN, identity
from distrib.train.schemes.gram import added, partial_gram
from distrib.vocabulary import Vocabulary

_TASKS_TO_GROW = 8
"""Where a cluster that may grow has no core yet."""


def fit(
    config: TrainConfig,
    manifest: dict[str, Any],
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Compute a model, validate it, write its bundle; at once where that is already done.

    Args:
        config: The run.
        manifest: Of the prepared data.
        on_epoch: Told the one entry of the history.

    Returns:
        As `launch`.

    Raises:
        MemoryLimitError: The solution does not fit into the memory of a node.
    """
    folder = Folder(config.run)
    if folder.exists(HISTORY) and (folder / BUNDLE).exists(MANIFEST):
        return _result(config, folder.read_json(HISTORY)[-1], on_epoch)
    folder.write_json(RUN, identity(config, {"data": manifest["hash"]}))
    started_s = time.perf_counter()
    vocabulary = load_vocabulary(Folder(config.prepared), manifest)
    shared = ray.put(vocabulary)
    gram = None
    if config.model.traits.learns == "gram":
        gram = _summed_gram(config.absolute().prepared, manifest, len(vocabulary))
    cores = config.loop.cpus_per_worker
    solve = ray.remote(max_retries=0, num_cpus=cores)(_solved)
    try:
        metrics: dict[str, float] = ray.get(
            solve.remote(config.absolute().model_dump_json(), manifest, shared, gram)
        )
    except (ray.exceptions.OutOfMemoryError, ray.exceptions.RayTaskError) as error:
        cause = getattr(error, "cause", error)
        if not (is_of_memory(cause) or isinstance(error, ray.exceptions.OutOfMemoryError)):
            raise
        raise MemoryLimitError(
            f"{len(vocabulary)} items do not fit into the memory of a node ({_needed(config)}); "
            "set model.num_neighbours (ease), lower it, or use a larger node"
        ) from error
    elapsed_s = time.perf_counter() - started_s
    entry = {
        "epoch": 1,
        "step": 0,
        "losses": {},
        "valid": metrics,
        "selection": selection_score(metrics, config.selection) if metrics else 1.0,
        "users_per_s": manifest["counts"]["training_users"] / elapsed_s,
        "data_share": 0.0,
        "seconds": elapsed_s,
    }
    folder.write_json(HISTORY, [entry])
    emit("fitted", model=config.model.name, seconds=round(elapsed_s, 1), **rounded(metrics))
    return _result(config, entry, on_epoch)


def _result(
    config: TrainConfig,
    entry: dict[str, Any],
    on_epoch: Callable[[dict[str, Any]], None] | None,
) -> dict[str, Any]:
    if on_epoch is not None:
        on_epoch(entry)
    shown = {key: entry[key] for key in ("valid", "users_per_s", "data_share")}
    return {"run": str(Folder(config.run)), "epochs": 1, "best_epoch": 1, **shown}


def _needed(config: TrainConfig) -> str:
    """Say how memory grows with the catalogue."""
    if getattr(config.model, "num_neighbours", 0):
        return "the Gram matrix, and items x neighbours x 12 bytes"
    return "16 x items^2 bytes in float64, 8 in float32"


def _summed_gram(prepared: str, manifest: dict[str, Any], item_count: int) -> ray.ObjectRef:
    """Sum the Gram matrices of all shards: in each task over its own, then in pairs."""
    shards, num_shards = manifest["shards"], manifest["recipe"]["num_shards"]
    num_tasks = max(1, min(len(shards), int(present().get("CPU", 0)) or _TASKS_TO_GROW))
    groups = [shards[first::num_tasks] for first in range(num_tasks)]
    partial, add = ray.remote(_partial), ray.remote(added)
    parts = [partial.remote(prepared, group, num_shards, item_count) for group in groups]
    while len(parts) > 1:
        pairs = itertools.zip_longest(parts[::2], parts[1::2])
        parts = [one if other is None else add.remote(one, other) for one, other in pairs]
    return parts[0]


def _partial(
    prepared: str, entries: Sequence[dict[str, Any]], num_shards: int, item_count: int
) -> csr_array:
    """Sum over some shards, one in memory at a time."""
    total = csr_array((item_count, item_count), dtype=np.int32)
    for entry in entries:
        train, _ = read_shard(Folder(prepared), entry, num_shards)
        total = added(total, partial_gram(train, item_count))
    return total


def _solved(
    config_json: str, manifest: dict[str, Any], vocabulary: Vocabulary, gram: csr_array | None
) -> dict[str, float]:
    """Solve, write the bundle, return the validation metrics."""
    config = TrainConfig.model_validate_json(config_json)
    torch.set_num_threads(config.loop.cpus_per_worker)
    if gram is None:
        weights = dict(config.model.build(vocabulary.catalogue).state_dict())
    else:
        weights = config.model.solved(gram)  # type: ignore[union-attr]  # those that learn by gram
    model = restored(config.model, vocabulary, weights)
    metrics = _validated(config, manifest, Scorer(model, vocabulary))
    facts = {"data": manifest["hash"], "seed": config.seed, "epoch": 1, "valid": metrics}
    write_bundle(Folder(config.run) / BUNDLE, weights, config.model, vocabulary, facts)
    return metrics


def _validated(config: TrainConfig, manifest: dict[str, Any], scorer: Scorer) -> dict[str, float]:
    sums, size = Sums({}), config.evaluate.batch_users
    for entry in manifest["shards"]:
        _, asked = read_shard(Folder(config.prepared), entry, manifest["recipe"]["num_shards"])
        for start in range(0, asked.num_users, size):
            wanted = np.arange(start, min(start + size, asked.num_users))
            sums = sums.merged(
                measure(scorer, example(asked, wanted, Role.VALID_TARGET), config.evaluate)
            )
    return {name: summary.mean for name, summary in sums.summaries().items()}
