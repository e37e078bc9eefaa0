"""The rules by which interactions become histories; pure functions of tables."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distrib.data import schema, splits
from distrib.data.columns import equals_next, to_numpy, whole
from distrib.data.schema import Role, Status, Subset
from distrib.data.splits import Split, StrongGeneralisationSplit
from distrib.errors import DataError
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary


def with_shard(table: pa.Table, num_shards: int) -> pa.Table:
    """Fill in the shard of each kept row's user."""
    kept = table["status"].combine_chunks().to_numpy(zero_copy_only=False) == Status.KEPT
    shard = np.zeros(len(table), dtype=np.int32)
    if kept.any():
        users = table.filter(pa.array(kept))["user"].combine_chunks()
        shard[kept] = splits.shard_of(whole(users), num_shards)
    return table.set_column(table.schema.get_field_index("shard"), "shard", pa.array(shard))


def deduplicated(table: pa.Table) -> pa.Table:
    """Keep the latest interaction of a user with an item, whatever the order of lines."""
    keys = [("status", "ascending"), ("user", "ascending"), ("item", "ascending")]
    table = table.sort_by([*keys, ("time", "ascending"), ("rating", "ascending")])
    status = to_numpy(table["status"])
    if len(table) > 1:
        same = equals_next(table["user"]) & equals_next(table["item"])
        status[:-1][same & (status[:-1] == Status.KEPT) & (status[1:] == Status.KEPT)] = (
            Status.DUPLICATE
        )
    return _with_status(table, status)


def filtered(table: pa.Table, *, keep_above: float | None, min_user_items: int) -> pa.Table:
    """Mark ratings that are not above a threshold, then users with too few interactions left."""
    status = to_numpy(table["status"])
    if keep_above is not None:
        low = to_numpy(table["rating"].fill_null(0.0)) <= keep_above
        status[low & (status == Status.KEPT)] = Status.NOT_ABOVE_THRESHOLD
    if min_user_items > 1:
        # Codes, since ids may be text; rejected rows may have none.
        codes = to_numpy(whole(table["user"]).dictionary_encode().indices.fill_null(-1))
        kept = status == Status.KEPT
        lengths = np.bincount(codes[kept], minlength=max(int(codes.max(initial=-1)) + 1, 1))
        status[kept & (lengths[codes] < min_user_items)] = Status.USER_TOO_SHORT
    return _with_status(table, status)


def kept_rows(table: pa.Table) -> pa.Table:
    """Return the rows that are kept so far."""
    return table.filter(pc.equal(table["status"], int(Status.KEPT)))


def count_items(
    kept: pa.Table, levels: Sequence[float], split: Split, limits: tuple[int, int]
) -> pa.Table:
    """Count training interactions by item and level, and training users, of complete users.

    Args:
        kept: Rows of `schema.interactions`, all kept.
        levels: Rating levels.
        split: What is held out; it is not counted. An item that only held-out users have is not
            in the result either, since nothing could be learned of it.
        limits: `splits.subset_limits` of all users.

    Returns:
        Columns ``item``, ``level`` (position), ``count``, and ``users``: the number of training
        users in the first row, 0 in the others.
    """
    subset_N, role_N = subset_and_role(kept, split, limits)
    trains_N = (subset_N == Subset.TRAIN) & (role_N == Role.INPUT)
    level_N = np.abs(to_numpy(kept["rating"])[:, None] - np.asarray(levels)).argmin(1)
    table = pa.table(
        {
            "user": kept["user"],
            "item": kept["item"],
            "level": level_N,
            "count": trains_N.astype(int),
        }
    )
    training = table.filter(pa.array(trains_N))
    if isinstance(split, StrongGeneralisationSplit):
        table = training
    counts = table.group_by(["item", "level"]).aggregate([("count", "sum")])
    users = np.zeros(len(counts), dtype=np.int64)
    users[:1] = pc.count_distinct(training["user"]).as_py()
    return counts.rename_columns(["item", "level", "count"]).append_column("users", pa.array(users))


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
    positions = vocabulary.positions(whole(kept["item"]))
    num_unseen = int((positions < 0).sum())
    kept = kept.append_column("position", pa.array(positions.astype(np.int32)))
    kept = kept.filter(pa.array(positions >= 0))
    kept = kept.sort_by([("user", "ascending"), ("time", "ascending"), ("position", "ascending")])
    subset_N, role_N = subset_and_role(kept, split, limits)
    changes = ~equals_next(kept["user"]) if len(kept) > 1 else np.zeros(max(len(kept) - 1, 0), bool)
    start_B = np.flatnonzero(np.concatenate([[len(kept) > 0], changes]))
    pointers = pa.array(np.append(start_B, len(kept)).astype(np.int32))

    def lists(values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(pointers, values)

    columns = [
        whole(kept["user"]).take(pa.array(start_B)),
        pa.array(subset_N[start_B]),
        lists(whole(kept["position"])),
        lists(whole(kept["rating"])),
        lists(whole(kept["time"])),
        lists(pa.array(role_N)),
    ]
    return pa.table(columns, schema=schema.histories(kept.schema.field("user").type)), num_unseen


def read_shard(prepared: Folder, shard: Mapping[str, Any]) -> pa.Table:
    """Read a shard of a prepared folder, checked against its manifest.

    Args:
        prepared: The folder.
        shard: The manifest's entry: ``name`` and ``sha256``.

    Returns:
        A table of `schema.histories`.

    Raises:
        DataError: The file is not what prepare wrote.
    """
    content = prepared.read(shard["name"])
    if hashlib.sha256(content).hexdigest() != shard["sha256"]:
        raise DataError(
            f"{prepared / shard['name']}: content differs from the manifest; it was damaged or "
            "changed, prepare the data anew"
        )
    return pq.read_table(pa.BufferReader(content))


def subset_and_role(kept: pa.Table, split: Split, limits: tuple[int, int]) -> tuple[Any, Any]:
    """Return what each interaction's user, and it itself, is for (int8)."""
    users, items = whole(kept["user"]), whole(kept["item"])
    subset_N = splits.subsets(splits.user_hash(users, split), limits)
    return subset_N, splits.roles(users, items, subset_N, split)


def _with_status(table: pa.Table, status: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index("status"), "status", pa.array(status))
