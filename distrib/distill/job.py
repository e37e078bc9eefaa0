"""Soft labels on the cluster: embed, cluster, propagate, publish; each step in pieces."""

import hashlib
import io
import json
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import safetensors.numpy
import torch
from scipy.sparse import csr_array

from distrib import __version__
from distrib.checkpoint.bundle import BUNDLE, Bundle, BundleFacts, load_bundle, model_config
from distrib.checkpoint.manifest import read_manifest
from distrib.config import JsonObject, read_record
from distrib.data.dataset import Dataset
from distrib.data.history_arrays import HistoryArrays, select
from distrib.distill.config import SoftenConfig
from distrib.distill.embed import Embedded, embedded, is_long_enough, is_rated, taught
from distrib.distill.k_means import Clustering, Points, k_means, nearest
from distrib.distill.labels import Labels, LabelSums, faults_of, labels_of
from distrib.errors import CheckpointError, ConfigError, DataError
from distrib.events import emit
from distrib.models.sequential.config import targets_of
from distrib.rng import CounterRng
from distrib.scoring.commit import PartManifest, Publication, ScoreCounts, ScoreResult, add_counts
from distrib.storage import Folder

_MOVED, _ELSEWHERE = 253, 254  # random streams
_NOT_OF_LABELS = {"output", "batch_users", "nightly"}
_HELD_OUT, _SHORT = "not in training", "nothing to read before the target"


class Work(NamedTuple):
    """Plan of a softening, made before any task starts."""

    bundle: str
    prepared: str
    output: str
    config: SoftenConfig
    recipe: JsonObject

    @property
    def publication(self) -> Publication:
        """Publishes the labels."""
        return Publication(Folder(self.output), self.recipe)

    @property
    def pieces(self) -> Folder:
        """Where finished pieces wait for the rest."""
        return self.publication.work


def plan(run: str, prepared: str, config: SoftenConfig) -> Work:
    """Check what soft labels are made from.

    Args:
        run: Run folder with a bundle.
        prepared: The run's prepared data.
        config: Settings.

    Returns:
        The plan.

    Raises:
        CheckpointError: There is no bundle.
        ConfigError: The model was trained on other data.
        DataError: The data are not prepared, or the output folder holds other files.
    """
    dataset, folder = Dataset.open(prepared), Folder(run) / BUNDLE
    if not folder.exists():
        raise CheckpointError(f"{folder}: no bundle to embed users with; run distrib train first")
    manifest, model = read_manifest(folder), model_config(folder)
    trained_on = read_record(BundleFacts, manifest.facts, run).data
    if trained_on != dataset.hash:
        raise ConfigError(
            f"{run} was trained on data {trained_on}, but {prepared} holds {dataset.hash}; labels "
            "are made of training histories, so use the data that it was trained on"
        )
    settings = json.loads(config.model_dump_json(exclude=_NOT_OF_LABELS))
    recipe = {
        "bundle": manifest.digests,
        "data": dataset.hash,
        "soften": settings,
        "targets": targets_of(model),
        "has_ratings": config.method == "propagation" and is_rated(model, dataset.manifest.levels),
    }
    output = config.output or str(Folder(run) / "soft_labels")
    work = Work(str(folder), prepared, output, config, recipe)
    work.publication.require_ours()
    return work


def soften(run: str, prepared: str, config: SoftenConfig) -> ScoreResult:
    """Write a soft label for each training user as Parquet; ``_SUCCESS`` is written last.

    Columns: ``user``, ``number`` (in the prepared data), ``items`` (positions in its
    ``items.parquet``), ``weights`` (of sum 1), ``cluster``, and ``ratings`` if whole histories with
    ratings are the targets. Held-out users and interactions take no part. A restart makes only the
    missing pieces; any number of workers writes the same bytes.

    Args:
        run: Run folder with a bundle.
        prepared: The run's prepared data.
        config: Settings.

    Returns:
        Output folder and counts: users read = with a label + rejected.

    Raises:
        DataError: The labels are worthless; the message has the figures and remedies.
    """
    work = plan(run, prepared, config)
    done = work.publication.already()
    if done is not None:
        return done
    names = [_part(shard) for shard in range(len(Dataset.open(prepared).manifest.shards))]
    make, count = partial(_made, work), partial(_counts, work)
    return work.publication.complete(names, make, count, __version__)


def _part(shard: int) -> str:
    return f"part-{shard:05d}.parquet"


def _made(work: Work, done: Mapping[str, PartManifest]) -> list[PartManifest]:
    """Make all pieces that are missing, and the parts that they make up."""
    shards = range(len(Dataset.open(work.prepared).manifest.shards))
    if work.config.method == "teacher":
        pieces = {shard: [_teach.remote(work, shard)] for shard in shards}
    else:
        refs = [_embed.remote(work, shard) for shard in shards]
        groups = _grouped(work, refs)
        total = sum(ray.get([sums for _, sums in groups]), LabelSums())
        _require_worth(total, work.config, Dataset.open(work.prepared).manifest.counts.items)
        pieces = {shard: [table for table, _ in groups] for shard in shards}
    written = [
        _write_part.remote(work, shard, *pieces[shard])
        for shard in shards
        if _part(shard) not in done
    ]
    return list(ray.get(written))


class _Users:
    """See `Parts`; a part is the users of a shard, in the object store."""

    def __init__(self, refs: list[ray.ObjectRef]) -> None:
        self.refs = refs

    def map(self, function: Any, *arguments: Any) -> list[Any]:
        """Run a task for each part; see `Parts`."""
        return list(ray.get([_applied.remote(ref, function, *arguments) for ref in self.refs]))


@ray.remote
def _applied(users: Embedded, function: Any, *arguments: Any) -> Any:
    return function(users.points, *arguments)


def _grouped(work: Work, refs: list[ray.ObjectRef]) -> list[tuple[ray.ObjectRef, ray.ObjectRef]]:
    """Make the labels of all clusters, several clusters in a task; return tables and sums."""
    config, users = work.config, _Users(refs)
    found = _clustered(work, users, config.clusters_of(sum(users.map(_count))))
    labels = users.map(_assigned, found.center_KZ, config)
    counts = [np.bincount(label_B, minlength=len(found.center_KZ)) for label_B in labels]
    count_K = np.sum(counts, axis=0)
    sizes = np.sort(count_K)[::-1]
    emit(
        "clustered",
        clusters=len(sizes),
        rounds=found.rounds,
        mean_squared_distance=round(found.mean_distance, 4),
        largest=int(sizes[0]),
        median=int(np.median(sizes)),
        smallest=int(sizes[-1]),
    )
    shared = ray.put(labels)
    return [
        _soften_group.remote(work, place, clusters, shared, *refs)
        for place, clusters in enumerate(groups_of(count_K, len(refs)))
    ]


def groups_of(count_K: np.ndarray, num_groups: int) -> list[list[int]]:
    """Share clusters out by the work they make, which grows with the square of their users.

    Args:
        count_K: Users of each cluster.
        num_groups: Number of groups at most.

    Returns:
        The clusters of each group; the largest cluster first, to the least loaded group.
    """
    groups: list[list[int]] = [[] for _ in range(min(num_groups, len(count_K)))]
    load = [0.0] * len(groups)
    for cluster in np.argsort(-count_K, kind="stable").tolist():
        place = load.index(min(load))
        groups[place].append(cluster)
        load[place] += float(count_K[cluster]) ** 2 + 1.0
    return groups


def _count(points: Points) -> int:
    return len(points.number_B)


def _assigned(points: Points, center_KZ: np.ndarray, config: SoftenConfig) -> np.ndarray:
    """Return the cluster of each user; with ``shuffled_share`` some have another at random."""
    label_B, _ = nearest(points.vector_BZ, center_KZ)
    if config.shuffled_share:
        rng, number_B = CounterRng.of(config.seed, 0), torch.tensor(points.number_B)
        is_moved_B = (rng.uniform(_MOVED, number_B) < config.shuffled_share).numpy()
        others = max(len(center_KZ) - 1, 1)
        step_B = 1 + rng.below(_ELSEWHERE, others, number_B).numpy()
        label_B = np.where(is_moved_B, (label_B + step_B) % len(center_KZ), label_B)
    return label_B


def _clustered(work: Work, users: _Users, num_clusters: int) -> Clustering:
    """Cluster all users, unless an earlier attempt did."""
    name, config = "clusters.safetensors", work.config
    if work.pieces.exists(name):
        held = safetensors.numpy.load(work.pieces.read(name))
        about = held["about"].tolist()
        return Clustering(held["centers"], held["counts"], int(about[0]), about[1])
    found = k_means(
        users, num_clusters, start=config.start, seed=config.seed, max_rounds=config.max_rounds
    )
    held = {
        "centers": np.ascontiguousarray(found.center_KZ),
        "counts": found.count_K,
        "about": np.array([found.rounds, found.mean_distance]),
    }
    work.pieces.write(name, safetensors.numpy.save(held))
    return found


@ray.remote
def _embed(work: Work, shard: int) -> Embedded:
    bundle = load_bundle(Folder(work.bundle))
    found = embedded(bundle, _readable(work, shard, bundle), work.config.batch_users)
    if work.config.method == "neighbors":  # which imputes nothing
        return found._replace(rated_BI=csr_array(found.target_BI.shape))
    return found._replace(history_BI=found.target_BI)


@ray.remote
def _teach(work: Work, shard: int) -> pa.Table:
    bundle = load_bundle(Folder(work.bundle))
    train = _readable(work, shard, bundle)
    label_BI = taught(bundle, train, work.config)
    return _table(train.number_B, Labels(label_BI), 0)


def _readable(work: Work, shard: int, bundle: Bundle) -> HistoryArrays:
    """Return the training histories of a shard that the model can learn from."""
    dataset = Dataset.open(work.prepared)
    train = dataset.training(dataset.manifest.shards[shard])
    return select(train, np.ones(len(train.item_N), bool), is_long_enough(bundle, train))


@ray.remote(num_returns=2)
def _soften_group(
    work: Work, place: int, clusters: list[int], labels: list[np.ndarray], *users: Embedded
) -> tuple[pa.Table, LabelSums]:
    """Make the labels of some clusters, unless an earlier attempt did."""
    name, about = f"pieces/group-{place:05d}.parquet", f"pieces/group-{place:05d}.json"
    if work.pieces.exists(about):
        table = pq.read_table(io.BytesIO(work.pieces.read(name)))
        return table, LabelSums(*work.pieces.read_json(about))
    is_rated = any(part.rated_BI.nnz for part in users)
    nothing = Labels(csr_array((0, 1)), np.zeros(0) if is_rated else None)
    sums, tables = LabelSums(), [_table(np.zeros(0, np.int64), nothing, 0)]
    for cluster in sorted(clusters):
        parts = [
            part.chosen(np.flatnonzero(label_B == cluster))
            for part, label_B in zip(users, labels, strict=True)
        ]
        members = Embedded.joined(parts)
        if not len(members.points.number_B):
            continue
        found = labels_of(members, work.config)
        sums += LabelSums.of(found.weight_BI, members.target_BI)
        tables.append(_table(members.points.number_B, found, cluster))
    table = pa.concat_tables(tables)
    work.pieces.write_parquet(name, table)
    work.pieces.write_json(about, list(sums))
    return table, sums


def _table(number_B: np.ndarray, labels: Labels, cluster: int) -> pa.Table:
    entries = {
        "items": labels.weight_BI.indices.astype(np.int32),
        "weights": labels.weight_BI.data.astype(np.float32),
    }
    if labels.rating_N is not None:
        entries["ratings"] = labels.rating_N.astype(np.float32)
    pointer = pa.array(labels.weight_BI.indptr.astype(np.int32))
    lists = {
        name: pa.ListArray.from_arrays(pointer, pa.array(part)) for name, part in entries.items()
    }
    clusters = pa.array(np.full(len(number_B), cluster, np.int32))
    return pa.table({"number": pa.array(number_B), **lists, "cluster": clusters})


@ray.remote
def _write_part(work: Work, shard: int, *pieces: pa.Table) -> PartManifest:
    """Write the labels of a shard's users, and account for all others."""
    dataset = Dataset.open(work.prepared)
    entry = dataset.manifest.shards[shard]
    first, step = dataset.numbering(entry.shard)
    own = [
        piece.filter(pa.array((piece["number"].to_numpy() - first) % step == 0)) for piece in pieces
    ]
    table = pa.concat_tables(own).sort_by("number")
    users = dataset.table(entry, ["user"])
    row_B = (table["number"].to_numpy() - first) // step
    table = table.add_column(0, "user", users["user"].take(pa.array(row_B)))
    name = _part(shard)
    content = work.pieces.write_parquet(name, table)
    num_trained = dataset.training(entry).num_users
    held_out, short = len(users) - num_trained, num_trained - len(table)
    rejected = {reason: n for reason, n in ((_HELD_OUT, held_out), (_SHORT, short)) if n}
    part = PartManifest(
        name=name,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        users={"read": len(users), "scored": len(table)},
        rejected=rejected,
    )
    work.publication.note(part)
    return part


def _require_worth(total: LabelSums, config: SoftenConfig, item_count: int) -> None:
    """Report what the labels are like, and refuse worthless ones."""
    found = total.means()
    emit("labels", users=total.users, **{name: round(mean, 4) for name, mean in found.items()})
    if config.method == "propagation" and total.users:
        faults = faults_of(total, config, item_count)
        if faults:
            raise DataError(f"the soft labels are worthless: {'; '.join(faults)}")


def _counts(work: Work, parts: list[PartManifest]) -> ScoreCounts:
    """Add up users, and what the labels are like."""
    folder, total = work.pieces / "pieces", LabelSums()
    for name in folder.files(".json"):
        total += LabelSums(*folder.read_json(name))
    statistics = {"statistics": total.means()} if total.users else {}
    return add_counts(parts).model_copy(update=statistics)
