"""Build histories from interactions; pure functions of tables."""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from distrib.data import schema
from distrib.data.arrow import dense_ids, distinct, flat_list, to_numpy, whole
from distrib.data.schema import Origin, Role, Status, Subset, interactions
from distrib.data.splits import rules
from distrib.data.splits.rules import Split, SplitState
from distrib.vocabulary import IntArray, Vocabulary, nearest_level


class ItemCounts(NamedTuple):
    """Training interaction counts of some users."""

    table: pa.Table
    """``item`` and ``train_count``, one count per level; may include items with zero counts."""

    num_users: int
    """Users with a training interaction."""


class ShardHistories(NamedTuple):
    """Histories of a shard."""

    table: pa.Table
    """`schema.histories`."""

    num_unseen: int
    """Dropped interactions, with items that are not in the vocabulary."""


def with_shard(table: pa.Table, num_shards: int) -> pa.Table:
    """Fill in the shard of each row's user; rows without a user stay in shard 0."""
    kept_N = to_numpy(table["status"]) == Status.KEPT
    shard_N = np.zeros(len(table), dtype=np.int32)
    if kept_N.all():
        shard_N = rules.shard_of(whole(table["user"]), num_shards)
    elif kept_N.any():
        users = whole(table["user"].filter(pa.array(kept_N)))
        shard_N[kept_N] = rules.shard_of(users, num_shards)
    return table.set_column(table.schema.get_field_index("shard"), "shard", pa.array(shard_N))


def item_counts(
    kept: pa.Table, levels: tuple[float, ...], split: Split, split_state: SplitState
) -> ItemCounts:
    """Count training interactions by item and level, and training users.

    Held-out interactions are not counted. If the split removes unseen items
    (`rules.removes_unseen`), the result excludes items with zero counts.

    Args:
        kept: Interactions of complete users, ordered by shard, user, time and item.
        levels: Rating levels.
        split: The split.
        split_state: Global state of the split.

    Returns:
        The counts.
    """
    subset_N, role_N = rules.assign(kept, split, split_state)
    trains_N = (subset_N == Subset.TRAIN) & (role_N <= Role.TRAIN_TARGET)
    items = distinct(kept["item"])
    level_N = nearest_level(to_numpy(kept["rating"]), levels)
    cell_N = dense_ids(kept["item"]) * len(levels) + level_N
    count_IL = np.bincount(cell_N[trains_N], minlength=len(items) * len(levels))
    count_IL = count_IL.reshape(len(items), len(levels)).astype(np.int64)
    users = whole(kept["user"]).filter(pa.array(trains_N))
    table = pa.table({"item": items, "train_count": counts_column(count_IL)})
    if rules.removes_unseen(split):
        table = table.filter(pa.array(count_IL.sum(1) > 0))
    return ItemCounts(table, int(pc.count_distinct(users).as_py()))


def counts_column(count_IL: npt.NDArray[np.int64]) -> pa.Array:
    """Store counts as one list per item."""
    flat = pa.array(np.ascontiguousarray(count_IL).reshape(-1), pa.int64())
    return pa.FixedSizeListArray.from_arrays(flat, count_IL.shape[1])


def counts_matrix(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Invert `counts_column`."""
    lists = whole(column)
    flat = to_numpy(lists.flatten())
    return np.asarray(flat.reshape(len(lists), lists.type.list_size), dtype=np.int64)


def added_counts(parts: list[ItemCounts]) -> ItemCounts:
    """Add up the counts of disjoint sets of users; items are ascending."""
    tables = [part.table for part in parts]
    counts = np.concatenate([counts_matrix(table["train_count"]) for table in tables])
    ids = pa.concat_arrays([whole(table["item"]) for table in tables])
    items = distinct(ids)
    count_IL = np.zeros((len(items), counts.shape[1]), dtype=np.int64)
    np.add.at(count_IL, dense_ids(ids), counts)
    table = pa.table({"item": items, "train_count": counts_column(count_IL)})
    return ItemCounts(table, sum(part.num_users for part in parts))


def build_histories(
    kept: pa.Table, vocabulary: Vocabulary, split: Split, split_state: SplitState
) -> ShardHistories:
    """Group the interactions of complete users into histories.

    Args:
        kept: Interactions ordered by user, time and item.
        vocabulary: Items; interactions with other items are dropped.
        split: The split.
        split_state: Global state of the split.

    Returns:
        One row per remaining user, in the order of ``kept``.
    """
    position_N = vocabulary.positions(whole(kept["item"]))
    is_known_N = position_N >= 0
    if not is_known_N.all():
        kept, position_N = kept.filter(pa.array(is_known_N)), position_N[is_known_N]
    subset_N, role_N = rules.assign(kept, split, split_state)
    start_P = rules.user_starts(whole(kept["user"]))
    pointers = pa.array(start_P.astype(np.int32))
    kinds = schema.histories(kept.schema.field("user").type)

    def lists(name: str, values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(pointers, values, type=kinds.field(name).type)

    first_B = start_P[:-1]
    columns = [
        whole(kept["user"]).take(pa.array(first_B)),
        pa.array(subset_N[first_B]),
        lists("items", pa.array(position_N.astype(np.int32))),
        lists("ratings", whole(kept["rating"])),
        lists("times", whole(kept["time"])),
        lists("roles", pa.array(role_N)),
    ]
    return ShardHistories(pa.table(columns, schema=kinds), int((~is_known_N).sum()))


def interactions_of(table: pa.Table, vocabulary: Vocabulary, shard: int) -> pa.Table:
    """Turn histories back into interactions, in the same order.

    Args:
        table: `schema.histories`.
        vocabulary: Vocabulary of the histories.
        shard: Shard of the histories.

    Returns:
        `schema.interactions`.
    """
    pointer_P, item_N = flat_list(table, "items")
    user_N = np.repeat(np.arange(len(table)), np.diff(pointer_P))
    kinds = interactions(table.schema.field("user").type)
    columns = [
        whole(table["user"]).take(pa.array(user_N)),
        vocabulary.ids.take(pa.array(item_N)),
        pa.array(flat_list(table, "ratings")[1], pa.float32()),
        pa.array(flat_list(table, "times")[1], pa.int64()),
        pa.array(np.zeros(len(item_N), np.int8)),
        pa.array(np.full(len(item_N), Origin.LOG, np.int8)),
        pa.array(np.full(len(item_N), shard, np.int32)),
    ]
    return pa.table(columns, schema=kinds)


def transposed_rows(table: pa.Table, first_number: int, step: int) -> dict[str, Any]:
    """Flatten histories into interactions, to be grouped by item.

    Args:
        table: `schema.histories`.
        first_number: Index of the first user.
        step: Step between the indices of two users.

    Returns:
        Flat columns ``item`` (index), ``user`` (index), ``rating``, ``time``, ``role``, ``subset``.
    """
    pointer_P, item_N = flat_list(table, "items")
    row_N = np.repeat(np.arange(len(table)), np.diff(pointer_P))
    return {
        "item": item_N,
        "user": first_number + step * row_N,
        "rating": flat_list(table, "ratings")[1],
        "time": flat_list(table, "times")[1],
        "role": flat_list(table, "roles")[1],
        "subset": to_numpy(table["subset"])[row_N],
    }


def build_item_histories(flat: pa.Table, vocabulary: Vocabulary, first: int, stop: int) -> pa.Table:
    """Group the interactions of a range of items.

    Args:
        flat: `transposed_rows` of all users for these items, in any order.
        vocabulary: All items.
        first: Index of the first of these items.
        stop: Index after the last.

    Returns:
        `schema.item_histories` with one row per item, rated or not; within a row, users are ordered
        by time, then index.
    """
    item_N, time_N, user_N = (to_numpy(flat[name]) for name in ("item", "time", "user"))
    order = pa.array(np.lexsort((user_N, time_N, item_N)))
    length_I = np.bincount(item_N - first, minlength=stop - first)
    pointers = pa.array(np.concatenate([[0], length_I.cumsum()]).astype(np.int32))
    kinds = schema.item_histories(vocabulary.ids.type)
    names = {"users": "user", "ratings": "rating", "times": "time", "roles": "role"}
    lists = [
        pa.ListArray.from_arrays(
            pointers, whole(flat[column]).take(order), type=kinds.field(name).type
        )
        for name, column in {**names, "subsets": "subset"}.items()
    ]
    return pa.table([vocabulary.ids.slice(first, stop - first), *lists], schema=kinds)


def item_ranges(length_I: IntArray, num_parts: int) -> list[tuple[int, int]]:
    """Split items into at most ``num_parts`` index ranges, balanced in interactions."""
    before = np.concatenate([[0], length_I.cumsum()])
    wanted = np.linspace(0, before[-1], num_parts + 1)
    inner = np.searchsorted(before, wanted[1:-1], side="left")
    cuts = np.unique(np.concatenate([[0], inner, [len(length_I)]]))
    return [(int(low), int(high)) for low, high in pairwise(cuts)]
