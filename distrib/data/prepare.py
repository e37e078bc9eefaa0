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
from distrib.data import formats, schema, splits
from distrib.data.formats import Layout, Source, SyntheticLog
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

    Returns:
        How the log is read.

    Args:
        config: What is to be prepared.

    Raises:
        DataError: The log or one of its columns is absent, or the target folder is taken.
    """
    layout = _layout(config)
    folder = Folder(config.prepared)
    if folder.exists(MANIFEST):
        found = folder.read_json(MANIFEST)["recipe"]
        if found != recipe(config):
            changed = sorted(key for key in found if found[key] != recipe(config).get(key))
            raise DataError(
                f"{folder}: holds data of another preparation (differs in {', '.join(changed)}); "
                "set data.prepared to a new folder, or remove this one"
            )
    return layout


def recipe(config: DataConfig) -> dict[str, Any]:
    """Return what the result depends on."""
    found: dict[str, Any] = json.loads(config.model_dump_json(exclude={"prepared"}))
    return found


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
    manifest = _manifest(config, counts, shards, vocabulary)
    folder.write_json(MANIFEST, manifest)
    emit("prepared", folder=str(folder), counts=manifest["counts"])
    return manifest


def load_manifest(folder: Folder) -> dict[str, Any]:
    """Read the manifest of a prepared folder.

    Returns:
        The manifest.

    Args:
        folder: A prepared folder.

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
                yield _with_shard(table, num_shards)

    def clean(table: pa.Table) -> pa.Table:
        return _filtered(_deduplicated(table), config)

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


def _with_shard(table: pa.Table, num_shards: int) -> pa.Table:
    kept = table["status"].combine_chunks().to_numpy(zero_copy_only=False) == Status.KEPT
    shard = np.zeros(len(table), dtype=np.int32)
    if kept.any():
        users = table.filter(pa.array(kept))["user"].combine_chunks()
        shard[kept] = splits.shard_of(_array(users), num_shards)
    return table.set_column(table.schema.get_field_index("shard"), "shard", pa.array(shard))


def _deduplicated(table: pa.Table) -> pa.Table:
    """Keep the latest interaction of a user with an item, whatever the order of lines."""
    keys = [("status", "ascending"), ("user", "ascending"), ("item", "ascending")]
    table = table.sort_by([*keys, ("time", "ascending"), ("rating", "ascending")])
    status = _numpy(table["status"])
    if len(table) > 1:
        same = _equals_next(table["user"]) & _equals_next(table["item"])
        status[:-1][same & (status[:-1] == Status.KEPT) & (status[1:] == Status.KEPT)] = (
            Status.DUPLICATE
        )
    return _with_status(table, status)


def _filtered(table: pa.Table, config: DataConfig) -> pa.Table:
    status = _numpy(table["status"])
    if config.keep_above is not None:
        low = _numpy(table["rating"].fill_null(0.0)) <= config.keep_above
        status[low & (status == Status.KEPT)] = Status.NOT_ABOVE_THRESHOLD
    if config.min_user_items > 1:
        # Codes, since ids may be text; rejected rows may have none.
        codes = _numpy(_array(table["user"]).dictionary_encode().indices.fill_null(-1))
        kept = status == Status.KEPT
        lengths = np.bincount(codes[kept], minlength=max(int(codes.max(initial=-1)) + 1, 1))
        status[kept & (lengths[codes] < config.min_user_items)] = Status.USER_TOO_SHORT
    return _with_status(table, status)


def _count_statuses(table: pa.Table) -> dict[int, int]:
    values, numbers = np.unique(_numpy(table["status"]), return_counts=True)
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
        users = _array(pc.unique(_kept(table)["user"]))
        return pa.table({"hash": splits.user_hash(users, split)})

    blocks = _blocks(cleaned.map_batches(of_block, batch_size=None, batch_format="pyarrow"))
    return np.concatenate([np.zeros(0, np.uint64), *(_numpy(block["hash"]) for block in blocks)])


def _vocabulary(
    cleaned: ray.data.Dataset, config: DataConfig, layout: Layout, limits: tuple[int, int]
) -> Vocabulary:
    """Collect items and count training interactions by item and level."""
    split, levels = config.split, np.asarray(layout.levels)

    def of_block(table: pa.Table) -> pa.Table:
        kept = _kept(table)
        subset_N, role_N = _subset_and_role(kept, split, limits)
        counted_N = (subset_N == Subset.TRAIN) & (role_N == Role.INPUT)
        level_N = np.abs(_numpy(kept["rating"])[:, None] - levels).argmin(1)
        kept = kept.append_column("level", pa.array(level_N.astype(np.int64)))
        kept = kept.append_column("count", pa.array(counted_N.astype(np.int64)))
        if isinstance(split, splits.StrongGeneralisationSplit):
            kept = kept.filter(pa.array(counted_N))  # a held-out user's items may be unknown
        grouped = kept.group_by(["item", "level"]).aggregate([("count", "sum")])
        users = len(
            np.unique(
                splits.hash_ids(_array(kept["user"].filter(pa.array(_numpy(kept["count"]) > 0))), 0)
            )
        )
        num_users = np.zeros(len(grouped), dtype=np.int64)
        num_users[:1] = users
        return grouped.append_column("users", pa.array(num_users))

    blocks = list(_blocks(cleaned.map_batches(of_block, batch_size=None, batch_format="pyarrow")))
    counts = pa.concat_tables([block for block in blocks if len(block)])
    ids = _array(pc.unique(counts["item"]).sort())
    count_IL = np.zeros((len(ids), len(levels)), dtype=np.int64)
    places = _numpy(pc.index_in(_array(counts["item"]), value_set=ids)).astype(np.int64)
    np.add.at(count_IL, (places, _numpy(counts["level"])), _numpy(counts["count_sum"]))
    return Vocabulary(ids, layout.levels, count_IL, int(_numpy(counts["users"]).sum()))


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
        kept = _kept(table)
        written = []
        for shard in np.unique(_numpy(kept["shard"])):
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


def build_histories(
    kept: pa.Table, vocabulary: Vocabulary, split: Split, limits: tuple[int, int]
) -> tuple[pa.Table, int]:
    """Group the interactions of complete users into histories.

    Args:
        kept: Rows of `schema.interactions`, all kept, no (user, item) twice.
        vocabulary: Items; interactions with others are left out.
        split: What is held out.
        limits: `splits.subset_limits` of all users.

    Returns:
        A table of `schema.histories` ordered by user, and the number of interactions left out.
    """
    positions = vocabulary.positions(_array(kept["item"]))
    num_unseen = int((positions < 0).sum())
    kept = kept.append_column("position", pa.array(positions.astype(np.int32)))
    kept = kept.filter(pa.array(positions >= 0))
    kept = kept.sort_by([("user", "ascending"), ("time", "ascending"), ("position", "ascending")])
    subset_N, role_N = _subset_and_role(kept, split, limits)
    changes = (
        ~_equals_next(kept["user"]) if len(kept) > 1 else np.zeros(max(len(kept) - 1, 0), bool)
    )
    start_B = np.flatnonzero(np.concatenate([[len(kept) > 0], changes]))
    pointers = pa.array(np.append(start_B, len(kept)).astype(np.int32))

    def lists(values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(pointers, values)

    columns = [
        _array(kept["user"]).take(pa.array(start_B)),
        pa.array(subset_N[start_B]),
        lists(_array(kept["position"])),
        lists(_array(kept["rating"])),
        lists(_array(kept["time"])),
        lists(pa.array(role_N)),
    ]
    return pa.table(columns, schema=schema.histories(kept.schema.field("user").type)), num_unseen


def _subset_and_role(kept: pa.Table, split: Split, limits: tuple[int, int]) -> tuple[Any, Any]:
    users, items = _array(kept["user"]), _array(kept["item"])
    subset_N = splits.subsets(splits.user_hash(users, split), limits)
    return subset_N, splits.roles(users, items, subset_N, split)


def _shard_entry(name: str, content: bytes, histories: pa.Table, num_unseen: int) -> dict[str, Any]:
    role_N = _numpy(pc.list_flatten(histories["roles"]))
    subset_B = _numpy(histories["subset"])
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
    config: DataConfig, counts: Counter[int], shards: list[dict[str, Any]], vocabulary: Vocabulary
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
        "recipe": recipe(config),
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


def _kept(table: pa.Table) -> pa.Table:
    return table.filter(pc.equal(table["status"], int(Status.KEPT)))


def _blocks(dataset: ray.data.Dataset) -> Iterable[pa.Table]:
    return dataset.iter_batches(batch_size=None, batch_format="pyarrow")  # type: ignore[no-any-return]


def _array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if isinstance(column, pa.Array):
        return column
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _numpy(column: pa.ChunkedArray | pa.Array) -> Any:
    return np.array(
        column.to_numpy()
        if isinstance(column, pa.ChunkedArray)
        else column.to_numpy(zero_copy_only=False)
    )


def _equals_next(column: pa.ChunkedArray) -> Any:
    whole = _array(column)
    return _numpy(pc.equal(whole[:-1], whole[1:]).fill_null(False))


def _with_status(table: pa.Table, status: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index("status"), "status", pa.array(status))
