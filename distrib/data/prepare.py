"""The prepare job: a rating log of any size to sharded histories, vocabulary and manifest."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from pydantic import Field, NonNegativeInt, PositiveInt

from distrib import __version__
from distrib.config import Config
from distrib.data import formats, splits
from distrib.data.columns import to_numpy, whole
from distrib.data.formats import Layout, Source, SyntheticLog
from distrib.data.histories import (
    build_histories,
    count_items,
    deduplicated,
    filtered,
    kept_rows,
    with_shard,
)
from distrib.data.schema import DAMAGED, Role, Status, Subset
from distrib.data.splits import EntrywiseSplit, Split
from distrib.data.synthetic import SyntheticWorld
from distrib.errors import DataError
from distrib.events import emit
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary

MANIFEST = "manifest.json"
VOCABULARY = "items.parquet"
FORMAT = 1


class DataConfig(Config):
    """What is prepared, how, and where to."""

    prepared: str
    """Path or URL of the folder that prepare writes and all other jobs read."""

    source: Source = Field(default_factory=SyntheticLog)
    """The rating log."""

    split: Split = Field(default_factory=EntrywiseSplit)
    """What is held out."""

    keep_above: float | None = None
    """Keep ratings above this only; Mult-VAE's protocol says 3.5."""

    min_user_items: NonNegativeInt = 1
    """Drop users with fewer interactions (counted after the threshold)."""

    num_shards: PositiveInt = 8
    """Files that the histories are cut into, by a hash of the user; one is one unit of work."""

    max_damaged_share: float = Field(default=0.1, ge=0.0, le=1.0)
    """Stop when a larger share of the log is damaged: then the layout or the scale is wrong."""


def preflight(config: DataConfig) -> Layout:
    """Check all that can be known without reading the whole log.

    Args:
        config: What is to be prepared.

    Returns:
        How the log is read.

    Raises:
        DataError: The log or one of its columns is absent, or the target folder is taken.
    """
    layout = _layout(config)
    folder = Folder(config.prepared)
    if folder.exists(MANIFEST):
        found, wanted = folder.read_json(MANIFEST)["recipe"], recipe(config, layout)
        if found != wanted:
            changed = sorted(key for key in wanted if found.get(key) != wanted[key])
            raise DataError(
                f"{folder}: holds data of another preparation (differs in {', '.join(changed)}); "
                "set data.prepared to a new folder, or remove this one"
            )
    return layout


def recipe(config: DataConfig, layout: Layout) -> dict[str, Any]:
    """Return what the result depends on: the settings, and the log as it is now."""
    found: dict[str, Any] = json.loads(config.model_dump_json(exclude={"prepared"}))
    return {**found, "files": {file: Folder(file).stamp() for file in layout.files}}


def prepare(config: DataConfig) -> dict[str, Any]:
    """Write histories, vocabulary and manifest; needs a running Ray.

    The manifest is written last. When it is there already for the same recipe, nothing is done.

    Args:
        config: What to prepare.

    Returns:
        The manifest.

    Raises:
        DataError: The log cannot be used; the message counts what was rejected.
    """
    layout = preflight(config)
    folder = Folder(config.prepared)
    if folder.exists(MANIFEST):
        emit("already_prepared", folder=str(folder))
        found: dict[str, Any] = folder.read_json(MANIFEST)
        return found
    cleaned = _cleaned(config, layout)
    counts = Counter(_summed(cleaned, _count_statuses, "status"))
    _check_counts(counts, config)
    hashes = _hashes(cleaned, config.split)
    limits = splits.subset_limits(config.split, hashes)
    vocabulary = _vocabulary(cleaned, config, layout, limits)
    shards = _write_shards(cleaned, config, limits, vocabulary, folder)
    folder.write_parquet(VOCABULARY, vocabulary.to_table())
    manifest = _manifest(recipe(config, layout), counts, shards, vocabulary)
    folder.write_json(MANIFEST, manifest)
    emit("prepared", folder=str(folder), counts=manifest["counts"])
    return manifest


def load_manifest(folder: Folder) -> dict[str, Any]:
    """Read the manifest of a prepared folder.

    Args:
        folder: A prepared folder.

    Returns:
        The manifest.

    Raises:
        DataError: There is none, so the folder is not (completely) prepared.
    """
    if not folder.exists(MANIFEST):
        raise DataError(
            f"{folder}: no {MANIFEST}, so nothing complete is prepared there; run jobs/prepare.py"
        )
    manifest: dict[str, Any] = folder.read_json(MANIFEST)
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{folder}: prepared in format {manifest.get('format')}, this version reads {FORMAT}; "
            "prepare anew"
        )
    return manifest


def load_vocabulary(folder: Folder) -> Vocabulary:
    """Read the vocabulary of a prepared folder."""
    return Vocabulary.from_table(folder.read_parquet(VOCABULARY))


def _layout(config: DataConfig) -> Layout:
    if isinstance(config.source, SyntheticLog):
        columns = formats.Columns(user="user", item="item", rating="rating", time="time")
        return Layout((), "parquet", columns, config.source.levels, "int")
    return formats.inspect(config.source)


def _cleaned(config: DataConfig, layout: Layout) -> ray.data.Dataset:
    """Return all rows of the log with their final status but for unseen items, by shard."""
    pieces: list[dict[str, Any]] = [{"file": file} for file in layout.files]
    if isinstance(config.source, SyntheticLog):
        chunks = range(SyntheticWorld(config.source).num_chunks)
        pieces = [{"chunk": chunk} for chunk in chunks]
    source, num_shards = config.source, config.num_shards

    def read(piece: pa.Table) -> Iterator[pa.Table]:
        for entry in piece.to_pylist():
            for table in _read(entry, source, layout):
                yield with_shard(table, num_shards)

    def clean(table: pa.Table) -> pa.Table:
        return filtered(
            deduplicated(table),
            keep_above=config.keep_above,
            min_user_items=config.min_user_items,
        )

    # A shard must stay one block, whatever its size: duplicates and filters look at whole users.
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = None
    with ray.data.DataContext.current(context):
        raw = ray.data.from_items(pieces, override_num_blocks=len(pieces)).map_batches(
            read, batch_size=1, batch_format="pyarrow"
        )
        grouped = raw.repartition(num_shards, keys=["shard"])
        return grouped.map_batches(clean, batch_size=None, batch_format="pyarrow").materialize()


def _read(entry: dict[str, Any], source: Source, layout: Layout) -> Iterator[pa.Table]:
    if not isinstance(source, SyntheticLog):
        yield from formats.read(entry["file"], layout)
        return
    drawn = SyntheticWorld(source).draw(entry["chunk"])
    raw = pa.table(
        {"user": drawn.user_N, "item": drawn.item_N, "rating": drawn.rating_N, "time": drawn.time_N}
    )
    yield formats.checked(raw, layout)


def _count_statuses(table: pa.Table) -> dict[int, int]:
    values, numbers = np.unique(to_numpy(table["status"]), return_counts=True)
    return {int(value): int(number) for value, number in zip(values, numbers, strict=True)}


def _summed(dataset: ray.data.Dataset, count: Any, column: str) -> dict[int, int]:
    """Count within blocks on the cluster, add up here."""

    def counted(table: pa.Table) -> pa.Table:
        found = count(table)
        return pa.table({"key": list(found), "number": pa.array(list(found.values()), pa.int64())})

    total: Counter[int] = Counter()
    narrow = dataset.select_columns([column])
    for block in _blocks(narrow.map_batches(counted, batch_size=None, batch_format="pyarrow")):
        for key, number in zip(block["key"].to_pylist(), block["number"].to_pylist(), strict=True):
            total[int(key)] += number
    return dict(total)


def _check_counts(counts: Counter[int], config: DataConfig) -> None:
    total, damaged = sum(counts.values()), sum(counts[status] for status in DAMAGED)
    reasons = {Status(key).reason: counts[key] for key in sorted(counts) if key != Status.KEPT}
    if counts[Status.KEPT] == 0:
        raise DataError(
            f"nothing left of {total} row(s): {reasons}; check the layout, levels and filters"
        )
    if damaged > config.max_damaged_share * total:
        raise DataError(
            f"{damaged} of {total} rows are damaged, more than data.max_damaged_share = "
            f"{config.max_damaged_share}: {reasons}; check layout and levels, or raise the share"
        )


def _hashes(cleaned: ray.data.Dataset, split: Split) -> splits.HashArray:
    """Return `user_hash` of every user that is left."""

    def of_block(table: pa.Table) -> pa.Table:
        users = whole(pc.unique(kept_rows(table)["user"]))
        return pa.table({"hash": splits.user_hash(users, split)})

    blocks = _blocks(cleaned.map_batches(of_block, batch_size=None, batch_format="pyarrow"))
    return np.concatenate([np.zeros(0, np.uint64), *(to_numpy(block["hash"]) for block in blocks)])


def _vocabulary(
    cleaned: ray.data.Dataset, config: DataConfig, layout: Layout, limits: tuple[int, int]
) -> Vocabulary:
    """Collect items and count training interactions by item and level."""
    split, levels = config.split, layout.levels

    def of_block(table: pa.Table) -> pa.Table:
        return count_items(kept_rows(table), levels, split, limits)

    blocks = list(_blocks(cleaned.map_batches(of_block, batch_size=None, batch_format="pyarrow")))
    counts = pa.concat_tables([block for block in blocks if len(block)])
    ids = whole(pc.unique(counts["item"]).sort())
    count_IL = np.zeros((len(ids), len(levels)), dtype=np.int64)
    places = to_numpy(pc.index_in(whole(counts["item"]), value_set=ids)).astype(np.int64)
    np.add.at(count_IL, (places, to_numpy(counts["level"])), to_numpy(counts["count"]))
    return Vocabulary(ids, levels, count_IL, int(to_numpy(counts["users"]).sum()))


def _write_shards(
    cleaned: ray.data.Dataset,
    config: DataConfig,
    limits: tuple[int, int],
    vocabulary: Vocabulary,
    folder: Folder,
) -> list[dict[str, Any]]:
    shared, split, url = ray.put(vocabulary), config.split, str(folder)

    def write(table: pa.Table) -> pa.Table:
        known: Vocabulary = ray.get(shared)
        kept = kept_rows(table)
        written = []
        for shard in np.unique(to_numpy(kept["shard"])):
            mine = kept.filter(pc.equal(kept["shard"], int(shard)))
            histories, num_unseen = build_histories(mine, known, split, limits)
            name = f"histories/part-{shard:05d}.parquet"
            content = Folder(url).write_parquet(name, histories)
            written.append(_shard_entry(name, content, histories, num_unseen))
        return pa.table({"entry": pa.array([json.dumps(entry) for entry in written], pa.string())})

    dataset = cleaned.map_batches(write, batch_size=None, batch_format="pyarrow")
    entries = [
        json.loads(text) for block in _blocks(dataset) for text in block["entry"].to_pylist()
    ]
    names = [entry["name"] for entry in entries]
    if len(set(names)) != len(names):
        raise DataError(
            f"{folder}: a shard was split over blocks ({sorted(names)}); report this as a bug"
        )
    return sorted(entries, key=lambda entry: str(entry["name"]))


def _shard_entry(name: str, content: bytes, histories: pa.Table, num_unseen: int) -> dict[str, Any]:
    role_N = to_numpy(pc.list_flatten(histories["roles"]))
    subset_B = to_numpy(histories["subset"])
    return {
        "name": name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "users": len(histories),
        "interactions": len(role_N),
        "unseen_items": num_unseen,
        "roles": {role.name.lower(): int((role_N == role).sum()) for role in Role},
        "subsets": {subset.name.lower(): int((subset_B == subset).sum()) for subset in Subset},
    }


def _manifest(
    made_from: dict[str, Any],
    counts: Counter[int],
    shards: list[dict[str, Any]],
    vocabulary: Vocabulary,
) -> dict[str, Any]:
    read = sum(counts.values())
    rejected = {Status(key).reason: counts[key] for key in sorted(counts) if key != Status.KEPT}
    unseen = sum(shard["unseen_items"] for shard in shards)
    if unseen:
        rejected[Status.ITEM_UNSEEN_IN_TRAINING.reason] = unseen
    kept = sum(shard["interactions"] for shard in shards)
    if read != kept + sum(rejected.values()):
        raise DataError(
            f"{read} rows read, but {kept} kept and {rejected} rejected; report this as a bug"
        )

    def total(kind: str) -> dict[str, int]:
        return dict(sum((Counter(shard[kind]) for shard in shards), Counter()))

    digest = hashlib.sha256("".join(shard["sha256"] for shard in shards).encode())
    digest.update(vocabulary.fingerprint.encode())
    return {
        "format": FORMAT,
        "distrib": __version__,
        "recipe": made_from,
        "counts": {
            "read": read,
            "kept": kept,
            "rejected": rejected,
            "users": sum(shard["users"] for shard in shards),
            "items": len(vocabulary),
            "training_users": vocabulary.num_users,
            "interactions_by_role": total("roles"),
            "users_by_subset": total("subsets"),
        },
        "levels": list(vocabulary.levels),
        "vocabulary": vocabulary.fingerprint,
        "hash": digest.hexdigest(),
        "shards": shards,
    }


def _blocks(dataset: ray.data.Dataset) -> Iterable[pa.Table]:
    return dataset.iter_batches(batch_size=None, batch_format="pyarrow")  # type: ignore[no-any-return]
