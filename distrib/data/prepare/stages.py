"""Ray stages of prepare: one shuffle of the log by user, then scans over its blocks.

A block holds all interactions of some shards' users, cleaned and sorted, and rows that represent
rejected ones (`schema.interactions`). Scans return summaries, merged in a tree of tasks.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from distrib.data.arrow import dense_ids, distinct, to_numpy, whole
from distrib.data.config import CleaningConfig
from distrib.data.logs.config import ExpandedLog, Source, SyntheticLog
from distrib.data.logs.generated import draw
from distrib.data.logs.layout import Layout, LogPiece
from distrib.data.logs.rating_scale import Scale
from distrib.data.logs.readers import CheckedRows, counts_as_rows, read_log
from distrib.data.prepare import kcore
from distrib.data.prepare.cleaning import cleaned, rejected_counts
from distrib.data.prepare.histories import ItemCounts, added_counts, item_counts, with_shard
from distrib.data.prepare.quantile import added, digit_counts, smallest
from distrib.data.schema import QUARANTINE, Status
from distrib.data.splits import rules
from distrib.data.splits.liang_2018 import LiangDraw, held_out, with_targets
from distrib.data.splits.rules import (
    GivenSplit,
    GlobalTimeSplit,
    LiangSplit,
    Split,
    SplitState,
    StrongGeneralizationSplit,
)
from distrib.storage import Folder

_FAN_IN = 8
_BEYOND = 2**64 - 1

Blocks = list[ray.ObjectRef]


class ReadPlan(NamedTuple):
    """How a log is read, determined before any task starts."""

    source: Source
    layout: Layout
    scale: Scale
    cleaning: CleaningConfig
    split: Split
    pieces: tuple[LogPiece, ...]
    num_shards: int
    generation: int = 0
    """Number of extensions of the dataset, including this one."""


class Survey(NamedTuple):
    """Result of a scan over the blocks."""

    counts: Counter[int]
    """Rows of the log by `Status`."""

    num_users: int
    first_s: int | None
    """Earliest time, if any."""

    last_s: int | None

    def merged(self, other: "Survey") -> "Survey":
        """Return the sum of two surveys."""
        firsts = [s for s in (self.first_s, other.first_s) if s is not None]
        lasts = [s for s in (self.last_s, other.last_s) if s is not None]
        return Survey(
            self.counts + other.counts,
            self.num_users + other.num_users,
            min(firsts, default=None),
            max(lasts, default=None),
        )


def part_name(kind: str, number: int, generation: int) -> str:
    """Return a file name; an extension writes other names than those it replaces."""
    return f"{kind}/part-{number:05d}" + (f"-g{generation}" if generation else "") + ".parquet"


def cleaned_blocks(plan: ReadPlan, target: Folder) -> Blocks:
    """Read the log, group the interactions by user, and clean them.

    Damaged rows are written to the folder's quarantine.

    Args:
        plan: How the log is read.
        target: Folder of the dataset.

    Returns:
        The blocks.
    """
    url, by_number = str(target), {piece.number: piece for piece in plan.pieces}

    def read_pieces(table: pa.Table) -> Iterator[pa.Table]:
        for number in table["piece"].to_pylist():
            damaged = [QUARANTINE.empty_table()]
            for reading in readings(by_number[number], plan):
                damaged.append(reading.quarantine)
                yield with_shard(reading.interactions, plan.num_shards)
            rejected = pa.concat_tables(damaged)
            if len(rejected):
                name = part_name("quarantine", number, plan.generation)
                Folder(url).write_parquet(name, rejected)

    numbers = [{"piece": piece.number} for piece in plan.pieces]
    with whole_blocks():
        raw = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
            read_pieces, batch_size=1, batch_format="pyarrow"
        )
        grouped = raw.repartition(plan.num_shards, keys=["shard"])
        cleaned = grouped.map_batches(
            lambda table: clean(table, plan), batch_size=None, batch_format="pyarrow"
        ).materialize()
    blocks = cleaned.to_arrow_refs() or [ray.put(counts_as_rows({}, plan.layout.id_type))]
    return _after_core(blocks, plan.cleaning)


def clean(table: pa.Table, plan: ReadPlan) -> pa.Table:
    """Clean the interactions of complete users; dropped rows remain as counts."""
    if not len(table):
        return counts_as_rows({}, plan.layout.id_type)
    drops_known = isinstance(plan.split, GivenSplit) and plan.split.known == "drop"
    found = cleaned(table, plan.cleaning, plan.scale, drops_known=drops_known)
    kept, counts = found.kept, found.counts
    counts.pop(Status.KEPT, None)
    if plan.cleaning.min_item_users <= 1 and plan.cleaning.min_user_items > 1:
        alive = np.ones(len(kept), dtype=bool)
        status_N = kcore.row_status(dense_ids(kept["user"]), alive, plan.cleaning.min_user_items)
        kept, counts = _without(kept, status_N, counts)
    return pa.concat_tables([kept, counts_as_rows(counts, plan.layout.id_type)])


def kept_rows(block: pa.Table) -> pa.Table:
    """Return the interactions of a block."""
    is_row_N = to_numpy(block["status"]) == Status.KEPT
    return block.slice(0, int(is_row_N.sum()))  # counts are at the end


def shards_of(block: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    """Yield the shards of a block with their interactions."""
    kept = kept_rows(block)
    shard_N = to_numpy(kept["shard"])
    for shard in np.unique(shard_N):
        low, high = np.searchsorted(shard_N, [shard, shard + 1])
        yield int(shard), kept.slice(low, high - low)


@contextmanager
def whole_blocks() -> Iterator[None]:
    """Keep Ray from splitting blocks: grouping by shard needs complete users, whatever the size."""
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = None
    with ray.data.DataContext.current(context):
        yield


def survey(blocks: Blocks, *, has_time: bool) -> Survey:
    """Count rows and users, and find the first and last time if the log has times."""
    found: Survey = ray.get(tree([_survey.remote(ref) for ref in blocks], _merge_surveys))
    return found if has_time else found._replace(first_s=None, last_s=None)


def fit_split(blocks: Blocks, split: Split, num_rows: int, num_users: int) -> SplitState:
    """Compute the global state of a split.

    Args:
        blocks: All blocks.
        split: The split.
        num_rows: Number of interactions.
        num_users: Number of users.

    Returns:
        The limits, or the drawn held-out users.

    Raises:
        DataError: More users are to be held out than there are.
    """
    if isinstance(split, StrongGeneralizationSplit):
        wanted = split.valid_users + split.test_users + 1
        parts = [_smallest_hashes.remote(ref, split, wanted) for ref in blocks]
        hashes = ray.get(tree(parts, lambda found: _smallest_of(found, wanted)))
        return SplitState(rules.held_out_limits(split, hashes))
    if isinstance(split, LiangSplit):
        rules.require_enough_users(split.valid_users + split.test_users, num_users)
        users = tree([_distinct.remote(ref, "user") for ref in blocks], _union)
        return SplitState(draw=ray.get(_held_out.remote(users, split)))
    ranks = rules.limit_ranks(split, num_rows)
    if ranks is None:
        is_named = isinstance(split, GlobalTimeSplit)
        return SplitState(rules.moments(split)) if is_named else SplitState()  # type: ignore[arg-type]

    def count(prefixes: Sequence[int], shift: int) -> Any:
        parts = [_digits.remote(ref, split, prefixes, shift) for ref in blocks]
        return ray.get(tree(parts, added))

    inside = [rank for rank in ranks if rank < num_rows]
    found = smallest(inside, count) if inside else []
    low, high = [*found, *[_BEYOND] * (len(ranks) - len(found))]
    return SplitState((low, high))


def with_drawn_targets(
    blocks: Blocks, split_state: SplitState, split: Split, vocabulary: ray.ObjectRef
) -> SplitState:
    """Draw the targets of held-out users if that needs the items of all of them."""
    if split_state.draw is None or not isinstance(split, LiangSplit):
        return split_state
    held = split_state.draw
    lengths = ray.get(
        tree([_held_out_lengths.remote(ref, held, vocabulary) for ref in blocks], _sum)
    )
    return split_state._replace(draw=with_targets(held, lengths, split))


def count_items(
    blocks: Blocks, levels: tuple[float, ...], split: Split, split_state: SplitState
) -> ItemCounts:
    """Count the training interactions of all items."""
    shared = ray.put(split_state)
    parts = [_item_counts.remote(ref, levels, split, shared) for ref in blocks]
    found: ItemCounts = ray.get(tree(parts, added_counts))
    return found


def readings(piece: LogPiece, plan: ReadPlan) -> Iterator[CheckedRows]:
    """Yield the rows of a piece, read or generated."""
    if isinstance(plan.source, SyntheticLog | ExpandedLog):
        yield draw(piece, plan.source, plan.layout, plan.scale)
    else:
        yield from read_log(piece, plan.layout, plan.scale)


def _after_core(blocks: Blocks, cleaning: CleaningConfig) -> Blocks:
    """Filter the blocks by the minimum interactions of users and items."""
    if cleaning.min_item_users <= 1:
        return blocks
    items = tree([_distinct.remote(ref, "item") for ref in blocks], _union)
    edges = [_edges.remote(ref, items) for ref in blocks]
    is_alive_I = np.ones(ray.get(_length.remote(items)), dtype=bool)
    while True:
        shared = ray.put(is_alive_I)
        least = cleaning.min_user_items if cleaning.iterate_kcore else 0
        counts = ray.get(tree([_alive_counts.remote(ref, shared, least) for ref in edges], _sum))
        left_I = kcore.next_alive(is_alive_I, counts, cleaning)
        is_stable = bool((left_I == is_alive_I).all())
        is_alive_I = left_I
        if is_stable or not cleaning.iterate_kcore:
            break
    shared = ray.put(is_alive_I)
    return [
        _within_core.remote(ref, edge, shared, cleaning.min_user_items)
        for ref, edge in zip(blocks, edges, strict=True)
    ]


def _without(kept: pa.Table, status_N: Any, counts: Counter[int]) -> tuple[pa.Table, Counter[int]]:
    for status in np.unique(status_N[status_N != Status.KEPT]):
        counts[int(status)] += int((status_N == status).sum())
    return kept.filter(pa.array(status_N == Status.KEPT)), counts


def tree(parts: Sequence[ray.ObjectRef], merge: Callable[[list[Any]], Any]) -> ray.ObjectRef:
    """Merge results in a tree of tasks, so that no process holds them all."""
    level = list(parts)
    while len(level) > 1:
        groups = [level[low : low + _FAN_IN] for low in range(0, len(level), _FAN_IN)]
        level = [_merged.remote(merge, *group) for group in groups]
    return level[0]


@ray.remote
def _merged(merge: Callable[[list[Any]], Any], *parts: Any) -> Any:
    return merge(list(parts))


def _merge_surveys(parts: list[Survey]) -> Survey:
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merged(part)
    return merged


def _smallest_of(parts: list[Any], wanted: int) -> Any:
    return np.sort(np.concatenate(parts))[:wanted]


def _union(parts: list[pa.Array]) -> pa.Array:
    return distinct(pa.concat_arrays(parts))


def _sum(parts: list[Any]) -> Any:
    return np.sum(parts, axis=0)


@ray.remote
def _survey(block: pa.Table) -> Survey:
    kept = kept_rows(block)
    counts = rejected_counts(block.slice(len(kept)))
    counts[int(Status.KEPT)] = len(kept)
    time_N = to_numpy(kept["time"])
    times = (int(time_N.min()), int(time_N.max())) if len(kept) else (None, None)
    return Survey(+counts, int(pc.count_distinct(kept["user"]).as_py()), *times)


@ray.remote
def _smallest_hashes(block: pa.Table, split: Split, wanted: int) -> Any:
    users = whole(pc.unique(kept_rows(block)["user"]))
    return np.sort(rules.user_hash(users, split))[:wanted]


@ray.remote
def _distinct(block: pa.Table, name: str) -> pa.Array:
    return distinct(kept_rows(block)[name])


@ray.remote
def _held_out(users: pa.Array, split: LiangSplit) -> LiangDraw:
    return held_out(users, split)


@ray.remote
def _held_out_lengths(block: pa.Table, held: LiangDraw, vocabulary: Any) -> Any:
    kept = kept_rows(block)
    known = kept.filter(pa.array(vocabulary.positions(whole(kept["item"])) >= 0))
    row_N = to_numpy(pc.index_in(whole(known["user"]), value_set=held.users).fill_null(-1))
    return np.bincount(row_N[row_N >= 0], minlength=len(held.users)).astype(np.int64)


@ray.remote
def _digits(block: pa.Table, split: Split, prefixes: Sequence[int], shift: int) -> Any:
    return digit_counts(rules.limit_keys(kept_rows(block), split), prefixes, shift)


@ray.remote
def _item_counts(
    block: pa.Table, levels: tuple[float, ...], split: Split, split_state: SplitState
) -> ItemCounts:
    return item_counts(kept_rows(block), levels, split, split_state)


@ray.remote
def _edges(block: pa.Table, items: pa.Array) -> tuple[Any, Any]:
    kept = kept_rows(block)
    item_N = to_numpy(pc.index_in(whole(kept["item"]), value_set=items))
    return dense_ids(kept["user"]), item_N.astype(np.int64)


@ray.remote
def _length(items: pa.Array) -> int:
    return len(items)


@ray.remote
def _alive_counts(edges: tuple[Any, Any], is_alive_I: Any, min_user_items: int) -> Any:
    return kcore.item_counts(*edges, is_alive_I, min_user_items)


@ray.remote
def _within_core(
    block: pa.Table, edges: tuple[Any, Any], is_alive_I: Any, min_user_items: int
) -> pa.Table:
    user_N, item_N = edges
    kept = kept_rows(block)
    status_N = kcore.row_status(user_N, is_alive_I[item_N], min_user_items)
    left, counts = _without(kept, status_N, Counter())
    gone = counts_as_rows(counts, kept.schema.field("user").type)
    return pa.concat_tables([left, gone, block.slice(len(kept))])
