"""Closed-form models on the cluster: statistics summed in tasks, then one solution."""

import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np
import ray
import torch
from scipy.sparse import csr_array

from distrib.checkpoint.bundle import BUNDLE, BundleFacts, restored, write_bundle
from distrib.checkpoint.manifest import MANIFEST
from distrib.cluster.resources import present
from distrib.data.dataset import Dataset, ShardEntry
from distrib.data.recent import recent_counts
from distrib.data.schema import Role
from distrib.errors import MemoryLimitError
from distrib.evaluation.baseline import POPULARITY, with_popularity
from distrib.evaluation.protocol import Measurer, selection_score
from distrib.events import emit, rounded
from distrib.fence import require_ours, take_over
from distrib.scoring.scorer import Scorer
from distrib.storage import Folder
from distrib.training.best_bundle import warn_of_popularity
from distrib.training.config import TrainingRun
from distrib.training.oom import is_of_memory
from distrib.training.records import EpochRecord, RunResult, Speed, history_of
from distrib.training.run_folder import HISTORY, RUN, identity
from distrib.training.schemes.closed_form import CountsWindow, SolvesGram
from distrib.training.schemes.gram import added, partial_gram
from distrib.vocabulary import IntArray, Vocabulary

_TASKS_TO_GROW = 8
"""Number of tasks where an autoscaling cluster has no cores yet."""


_RETRY_S = 120.0  # for storage that does not answer


def solve(
    run: TrainingRun, dataset: Dataset, on_epoch: Callable[[EpochRecord], None] | None = None
) -> RunResult:
    """Compute a closed-form model, validate it, write its bundle; skip what is already done.

    Args:
        run: The run to compute.
        dataset: The prepared data.
        on_epoch: Called with the one record of the history.

    Returns:
        As `launch`.

    Raises:
        MemoryLimitError: The solution does not fit into the memory of a node.
    """
    folder = Folder(run.run)
    if folder.exists(HISTORY) and (folder / BUNDLE).exists(MANIFEST):
        return _result(run, history_of(folder.read_json(HISTORY), folder / HISTORY)[-1], on_epoch)
    token = take_over(folder)
    folder.write_json(RUN, identity(run, dataset.hash))
    started_s = time.perf_counter()
    run = run.absolute()
    dataset = Dataset(Folder(run.prepared), dataset.manifest, _RETRY_S)
    shared = ray.put(dataset.vocabulary)
    num_items = len(dataset.vocabulary)
    gram = _summed_gram(dataset, num_items) if isinstance(run.model, SolvesGram) else None
    counts = None
    if isinstance(run.model, CountsWindow) and run.model.window_days is not None:
        counts = recent_counts(dataset, run.model.window_days, Role.TRAIN_TARGET)
    task = ray.remote(max_retries=0, num_cpus=run.train.cpus_per_worker)(_solved)
    try:
        found: dict[str, dict[str, float]] = ray.get(
            task.remote(run.model_dump_json(), dataset, shared, gram, counts, token)
        )
    except (ray.exceptions.OutOfMemoryError, ray.exceptions.RayTaskError) as error:
        cause = getattr(error, "cause", error)
        if not (is_of_memory(cause) or isinstance(error, ray.exceptions.OutOfMemoryError)):
            raise
        raise MemoryLimitError(
            f"{num_items} items do not fit into the memory of a node ({_needed(run)}); set "
            "or lower model.num_neighbors (ease), or use a larger node"
        ) from error
    elapsed_s, metrics = time.perf_counter() - started_s, found["model"]
    record = EpochRecord(
        epoch=1,
        step=0,
        losses={},
        valid=metrics,
        popularity=found[POPULARITY],
        selection=selection_score(metrics, run.selection) if metrics else 1.0,
        speed=Speed("users", dataset.manifest.counts.training_users / elapsed_s),
        data_share=0.0,
        seconds=elapsed_s,
    )
    require_ours(folder, token)
    folder.write_json(HISTORY, [record.to_json()])
    emit("fitted", model=run.model.name, seconds=round(elapsed_s, 1), **rounded(metrics))
    warn_of_popularity(run, record, record)
    return _result(run, record, on_epoch)


def _result(
    run: TrainingRun, record: EpochRecord, on_epoch: Callable[[EpochRecord], None] | None
) -> RunResult:
    if on_epoch is not None:
        on_epoch(record)
    return RunResult(
        run=str(Folder(run.run)),
        epochs=1,
        best_epoch=1,
        valid=record.valid,
        speed=record.speed,
        data_share=record.data_share,
    )


def _needed(run: TrainingRun) -> str:
    """Return how memory grows with the catalog, in words."""
    if getattr(run.model, "num_neighbors", 0):
        return "the Gram matrix, and items x num_neighbors x 12 bytes"
    return "16 x items^2 bytes in float64, 8 in float32"


def _summed_gram(dataset: Dataset, item_count: int) -> ray.ObjectRef:
    """Sum the Gram matrices of all shards: in each task over its own, then in pairs."""
    shards = dataset.manifest.shards
    num_tasks = max(1, min(len(shards), int(present().get("CPU", 0)) or _TASKS_TO_GROW))
    groups = [shards[first::num_tasks] for first in range(num_tasks)]
    partial, add = ray.remote(_partial), ray.remote(added)
    parts = [partial.remote(dataset, group, item_count) for group in groups]
    while len(parts) > 1:
        pairs = itertools.zip_longest(parts[::2], parts[1::2])
        parts = [one if other is None else add.remote(one, other) for one, other in pairs]
    return parts[0]


def _partial(dataset: Dataset, entries: Sequence[ShardEntry], item_count: int) -> csr_array:
    """Sum over some shards, one in memory at a time."""
    total = csr_array((item_count, item_count), dtype=np.int32)
    for entry in entries:
        total = added(total, partial_gram(dataset.training(entry), item_count))
    return total


def _solved(
    run_json: str,
    dataset: Dataset,
    vocabulary: Vocabulary,
    gram: csr_array | None,
    count_IL: IntArray | None,
    token: str,
) -> dict[str, dict[str, float]]:
    """Solve, write the bundle, return the validation metrics of the model and of popularity."""
    run = TrainingRun.model_validate_json(run_json)
    torch.set_num_threads(run.train.cpus_per_worker)
    if isinstance(run.model, SolvesGram):
        weights = run.model.solve(gram)
    else:
        catalog = vocabulary.catalog
        if count_IL is not None:
            catalog = catalog._replace(train_count_IL=count_IL)
        weights = dict(run.model.build(catalog).state_dict())
    model = restored(run.model, vocabulary, weights)
    scorers = with_popularity(Scorer(model, vocabulary))
    measurer = Measurer(scorers, Role.VALID_TARGET, run.evaluate)
    sums = measurer.nothing()
    for entry in dataset.manifest.shards:
        rows = dataset.held_out(entry, Role.VALID_TARGET)
        sums = measurer.added(sums, rows, np.arange(rows.num_users))
    metrics = {name: sums[name].means() for name in scorers}
    facts = BundleFacts(data=dataset.hash, seed=run.seed, epoch=1, valid=metrics["model"])
    folder = Folder(run.run)
    require_ours(folder, token)
    write_bundle(folder / BUNDLE, weights, run.model, vocabulary, facts)
    return metrics
