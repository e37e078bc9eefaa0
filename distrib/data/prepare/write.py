"""Write the output of prepare on the cluster: shards, item histories, quarantine."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from distrib.data.arrow import flat_list, to_numpy
from distrib.data.dataset import ItemShardEntry, QuarantineEntry, ShardEntry, numbering, read_table
from distrib.data.logs.text import LogFile, chunks, count_lines
from distrib.data.prepare.cleaning import tied
from distrib.data.prepare.histories import (
    ShardHistories,
    build_histories,
    build_item_histories,
    item_ranges,
    transposed_rows,
)
from distrib.data.prepare.stages import Blocks, ReadPlan, part_name, shards_of, whole_blocks
from distrib.data.schema import Role, Subset
from distrib.data.splits.rules import Split, SplitState
from distrib.errors import DataError
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary


def write_shards(
    blocks: Blocks,
    split: Split,
    split_state: SplitState,
    vocabulary: ray.ObjectRef,
    target: Folder,
    *,
    has_time: bool,
) -> list[ShardEntry]:
    """Write the histories of all users, one file per shard.

    Args:
        blocks: All blocks.
        split: The split.
        split_state: Global state of the split.
        vocabulary: Reference to the vocabulary.
        target: Folder of the dataset.
        has_time: Whether the log has times; otherwise they are log positions and written as 0.

    Returns:
        An entry per shard, sorted by name.

    Raises:
        DataError: A shard is in two blocks.
    """
    shared = ray.put(split_state)
    written = [
        _write_block.remote(ref, split, shared, vocabulary, str(target), has_time) for ref in blocks
    ]
    entries = [entry for part in ray.get(written) for entry in part]
    names = [entry.name for entry in entries]
    if len(set(names)) != len(names):
        raise DataError(
            f"{target}: a shard was split across blocks ({sorted(names)}); report this as a bug"
        )
    return sorted(entries, key=lambda entry: entry.name)


def write_histories(name: str, shard: int, found: ShardHistories, target: Folder) -> ShardEntry:
    """Write the histories of one shard; equal tables give equal bytes."""
    histories = found.table
    content = target.write_parquet(name, histories)
    role_N = to_numpy(pc.list_flatten(histories["roles"]))
    subset_B = to_numpy(histories["subset"])
    pointer_P, time_N = flat_list(histories, "times")
    user_N = np.repeat(np.arange(len(histories)), np.diff(pointer_P))
    return ShardEntry(
        name=name,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        shard=shard,
        users=len(histories),
        interactions=len(role_N),
        unseen_items=found.num_unseen,
        roles={role.name.lower(): int((role_N == role).sum()) for role in Role},
        subsets={subset.name.lower(): int((subset_B == subset).sum()) for subset in Subset},
        tied=int(tied(user_N, time_N).sum()),
    )


def write_item_histories(
    shards: Sequence[ShardEntry],
    num_shards: int,
    vocabulary: Vocabulary,
    target: Folder,
    generation: int = 0,
) -> list[ItemShardEntry]:
    """Write the histories of all items, transposed from user histories.

    Args:
        shards: Entries of the user shards.
        num_shards: Number of user shards, including empty ones; at most as many files are written.
        vocabulary: Items.
        target: Folder of the dataset.
        generation: Generation of the file names.

    Returns:
        An entry per file, in item order.
    """
    bounds = item_ranges(vocabulary.train_count_IL.sum(1), num_shards)
    stops = np.array([stop for _, stop in bounds])
    url, shared = str(target), ray.put(vocabulary)

    def flatten(table: pa.Table) -> pa.Table:
        entry = shards[table["shard"][0].as_py()]
        numbers = numbering(entry.shard, num_shards)
        flat = transposed_rows(read_table(Folder(url), entry), *numbers)
        part = np.searchsorted(stops, flat["item"], side="right").astype(np.int32)
        return pa.table({**flat, "part": part})

    def write(table: pa.Table) -> pa.Table:
        written = []
        for part in np.unique(to_numpy(table["part"])):
            mine = table.filter(pc.equal(table["part"], int(part)))
            found = build_item_histories(mine, ray.get(shared), *bounds[part])
            name = part_name("item_histories", part, generation)
            content = Folder(url).write_parquet(name, found)
            entry = ItemShardEntry(
                name=name,
                sha256=hashlib.sha256(content).hexdigest(),
                bytes=len(content),
                first_item=bounds[part][0],
                items=len(found),
                interactions=len(mine),
            )
            written.append(entry.model_dump_json())
        return pa.table({"entry": pa.array(written, pa.string())})

    pieces = [{"shard": place} for place in range(len(shards))]
    with whole_blocks():
        flat = ray.data.from_items(pieces, override_num_blocks=len(pieces)).map_batches(
            flatten, batch_size=1, batch_format="pyarrow"
        )
        parts = flat.repartition(len(bounds), keys=["part"])
        rows = parts.map_batches(write, batch_size=None, batch_format="pyarrow").take_all()
    entries = [ItemShardEntry.model_validate_json(row["entry"]) for row in rows]
    return sorted(entries, key=lambda entry: entry.name)


def seal_quarantine(plan: ReadPlan, target: Folder) -> list[QuarantineEntry]:
    """Make line numbers in the quarantine relative to the start of each file, and describe it.

    Only files with damaged rows beyond their first range are read again, to count line ends.

    Args:
        plan: How the log was read.
        target: Folder of the dataset.

    Returns:
        An entry per quarantine file.
    """
    present = {f"quarantine/{name}" for name in (target / "quarantine").files()}
    names = {p.number: part_name("quarantine", p.number, plan.generation) for p in plan.pieces}
    damaged = [piece for piece in plan.pieces if names[piece.number] in present]
    late = {piece.file for piece in damaged if not piece.has_line_numbers}
    counted = [piece for piece in plan.pieces if piece.file in late]
    numbers = ray.get([_count_lines.remote(p.file, p.start, p.stop) for p in counted])
    before: dict[int, int] = {}
    totals: Counter[LogFile] = Counter()
    for piece, lines in zip(counted, numbers, strict=True):
        before[piece.number] = totals[piece.file]
        totals[piece.file] += lines
    sealed = [
        _seal_part.remote(names[p.number], before.get(p.number, 0), str(target)) for p in damaged
    ]
    return ray.get(sealed)  # type: ignore[no-any-return]


def write_quarantine(name: str, table: pa.Table, target: Folder) -> QuarantineEntry:
    """Write damaged rows; equal tables give equal bytes."""
    content = target.write_parquet(name, table)
    digest = hashlib.sha256(content).hexdigest()
    return QuarantineEntry(name=name, sha256=digest, bytes=len(content), rows=len(table))


@ray.remote
def _write_block(
    block: pa.Table,
    split: Split,
    split_state: SplitState,
    vocabulary: Any,
    url: str,
    has_time: bool,
) -> list[ShardEntry]:
    written = []
    for shard, mine in shards_of(block):
        found = build_histories(mine, vocabulary, split, split_state)
        if not has_time:
            found = found._replace(table=without_times(found.table))
        written.append(write_histories(part_name("histories", shard, 0), shard, found, Folder(url)))
    return written


def without_times(table: pa.Table) -> pa.Table:
    """Return histories with all times set to 0."""
    place = table.schema.get_field_index("times")
    kind = table.schema.field(place)
    times = table["times"].combine_chunks()
    zeros = pa.array(np.zeros(len(pc.list_flatten(times)), np.int64))
    return table.set_column(
        place, kind, pa.ListArray.from_arrays(times.offsets, zeros, type=kind.type)
    )


@ray.remote
def _count_lines(file: LogFile, start: int, stop: int | None) -> int:
    return sum(count_lines(text) for text in chunks(file, start, stop))


@ray.remote
def _seal_part(name: str, lines_before: int, url: str) -> QuarantineEntry:
    folder = Folder(url)
    table = folder.read_parquet(name)
    if lines_before:
        lines = pc.add(table["line"], lines_before)
        table = table.set_column(table.schema.get_field_index("line"), "line", lines)
    return write_quarantine(name, table, folder)
