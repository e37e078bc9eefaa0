"""Add new log files to a prepared dataset; ids are stable, only affected shards are rewritten."""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from distrib import __version__
from distrib.config import JsonObject
from distrib.data.arrow import dense_ids, to_numpy, whole
from distrib.data.config import CleaningConfig, DataConfig
from distrib.data.dataset import Dataset, DatasetManifest, ShardEntry, read_table
from distrib.data.logs.layout import Layout
from distrib.data.logs.rating_scale import ALREADY_APPLIED, Scale
from distrib.data.prepare import stages, write
from distrib.data.prepare.cleaning import cleaned
from distrib.data.prepare.histories import (
    ItemCounts,
    ShardHistories,
    added_counts,
    build_histories,
    counts_matrix,
    interactions_of,
    item_counts,
)
from distrib.data.prepare.parts import BEGUN, finish, take_dataset
from distrib.data.prepare.row_counts import (
    Contents,
    check_counts,
    contents,
    rows_by_status,
    warn_of_times,
)
from distrib.data.prepare.stages import Blocks, ReadPlan, Survey, part_name
from distrib.data.schema import Status
from distrib.data.splits.rules import SplitState
from distrib.errors import ConfigError, DataError
from distrib.events import emit
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary

_BEFORE_ALL = -(1 << 40)  # log positions of the old rows when the log has no times
_DRAWN_SPLITS = ("liang_2018", "given")


class _Old(NamedTuple):
    """What tasks need to know of the existing dataset."""

    url: str
    shards: dict[int, ShardEntry]
    vocabulary: Vocabulary
    split_state: SplitState


class _Summary(NamedTuple):
    """Result of merging old and new rows of a block's shards."""

    num_duplicates: int
    before: ItemCounts
    after: ItemCounts


def require_extensible(wanted: JsonObject) -> None:
    """Reject settings under which an extension would differ from preparing all files at once.

    Args:
        wanted: The recipe.

    Raises:
        ConfigError: Lists all reasons.
    """
    cleaning, split = wanted["cleaning"], wanted["split"]
    faults = [
        f"data.cleaning.{name} = {cleaning[name]}: dropped interactions are not stored"
        for name in ("min_user_items", "min_item_users")
        if cleaning[name] > 1
    ]
    if cleaning["duplicates"] in {"mean", "sum"}:
        faults.append(f"data.cleaning.duplicates = {cleaning['duplicates']!r} needs every rating")
    faults += [
        f"data.cleaning.{name} = {cleaning[name]}: dropped ratings may decide between duplicates"
        for name in ("keep_above", "keep_below")
        if cleaning[name] is not None
    ]
    if split["name"] in _DRAWN_SPLITS or split.get("exact"):
        faults.append(f"data.split = {split['name']!r} depends on the whole log")
    if split["name"] == "global_time" and split["valid_from"] is None:
        faults.append("data.split = 'global_time' with shares: set valid_from and test_from")
    if faults:
        listing = "\n".join(f"  {fault}" for fault in faults)
        raise ConfigError(
            f"data.extend = true would differ from a full prepare; disable it\n{listing}"
        )


def require_same_log(folder: Folder, found: JsonObject, wanted: JsonObject, layout: Layout) -> None:
    """Refuse to extend a dataset with other settings, or when known files have changed.

    Args:
        folder: Folder of the prepared dataset.
        found: Its recipe.
        wanted: The recipe of this run.
        layout: Of the log.

    Raises:
        DataError: Lists all reasons.
    """
    keys = sorted(key for key in wanted if key != "files" and found.get(key) != wanted[key])
    faults = [f"{key} differs from the prepared dataset" for key in keys]
    known = found["files"]
    faults += [
        f"{file} has changed since it was prepared"
        for file, stamp in known.items()
        if wanted["files"].get(file, stamp) != stamp
    ]
    if layout.is_versioned:
        gone = [file for file in known if file not in wanted["files"]]
        faults += [f"{file} is no longer part of the table: its rows were changed" for file in gone]
    if not layout.has_time:
        early = [file for file in wanted["files"] if file not in known and file < max(known)]
        faults += [f"{file} comes before known files, and the log has no times" for file in early]
    if faults:
        listing = "\n".join(f"  {fault}" for fault in faults)
        raise DataError(
            f"{folder}: cannot be extended; prepare all files into a new folder\n{listing}"
        )


def extend(
    config: DataConfig, plan: ReadPlan, recipe: JsonObject, folder: Folder
) -> DatasetManifest:
    """Add the log files that a prepared dataset does not contain yet.

    New users come after the old ones of their shard, new items after the old ones of the
    vocabulary. Replaced files are removed after the new manifest is written.

    Args:
        config: The ``data`` settings.
        plan: How all files of the log are read.
        recipe: Recipe of all files.
        folder: Folder of the prepared dataset.

    Returns:
        The new manifest.

    Raises:
        DataError: The new files are not usable.
    """
    token, dataset = take_dataset(folder)
    manifest = dataset.manifest
    known = manifest.recipe["files"]
    new = {label: stamp for label, stamp in recipe["files"].items() if label not in known}
    if not new:
        folder.remove(BEGUN)
        emit("already_prepared", folder=str(folder))
        return manifest
    plan = plan._replace(
        pieces=tuple(piece for piece in plan.pieces if piece.file.label in new),
        generation=manifest.generation + 1,
    )
    blocks = stages.cleaned_blocks(plan, folder)
    survey = stages.survey(blocks, has_time=plan.layout.has_time)
    check_counts(survey.counts, config, may_be_empty=True)
    warn_of_times(survey, plan.layout)
    found = _extended(dataset, blocks, plan, survey, config)
    made = DatasetManifest(
        format=manifest.format,
        distrib=__version__,
        recipe={**manifest.recipe, "files": {**known, **new}},
        generation=plan.generation,
        extends=(*manifest.extends, manifest.hash),
        forgets=manifest.forgets,
        limits=manifest.limits,
        quarantine=(*manifest.quarantine, *write.seal_quarantine(plan, folder)),
        **found.set_fields(),
    )
    finish(folder, token, made)
    written = {shard.name for shard in made.shards} - {shard.name for shard in manifest.shards}
    counts = made.counts.to_json()
    emit("extended", folder=str(folder), files=len(new), shards=len(written), counts=counts)
    return made


def _extended(
    dataset: Dataset, blocks: Blocks, plan: ReadPlan, survey: Survey, config: DataConfig
) -> Contents:
    """Write the affected shards and everything derived from them."""
    old = _old(dataset)
    shared = ray.put(old)
    merged, summary = _merged(blocks, shared, plan)
    grown = _grown(old.vocabulary, summary)
    written = _written(merged, shared, plan, ray.put(grown))
    shards = old.shards | {entry.shard: entry for entry in written}
    ordered = [shards[shard] for shard in sorted(shards)]
    total = _joined_survey(dataset.manifest, survey, summary)
    num_files = config.num_item_files
    return contents(dataset.folder, total, ordered, grown, num_files, plan.generation)


def _old(dataset: Dataset) -> _Old:
    low, high = (int(limit) for limit in dataset.manifest.limits)
    shards = {entry.shard: entry for entry in dataset.manifest.shards}
    return _Old(dataset.folder.url, shards, dataset.vocabulary, SplitState((low, high)))


def _merged(blocks: Blocks, old: ray.ObjectRef, plan: ReadPlan) -> tuple[Blocks, _Summary]:
    pairs = [_merge_block.remote(ref, old, plan) for ref in blocks]
    summary = ray.get(stages.tree([second for _, second in pairs], _merge_summaries))
    return [first for first, _ in pairs], summary


def _merge_summaries(parts: list[_Summary]) -> _Summary:
    return _Summary(
        sum(part.num_duplicates for part in parts),
        added_counts([part.before for part in parts]),
        added_counts([part.after for part in parts]),
    )


def _grown(vocabulary: Vocabulary, summary: _Summary) -> Vocabulary:
    """Append new items, and update the counts of all items."""
    found = summary.after.table
    ids = whole(found["item"])
    fresh = ids.filter(pa.array(vocabulary.positions(ids) < 0))
    counts = np.concatenate(
        [vocabulary.train_count_IL, np.zeros((len(fresh), len(vocabulary.levels)), np.int64)]
    )
    grown = Vocabulary(
        pa.concat_arrays([vocabulary.ids, fresh]),
        vocabulary.levels,
        counts,
        vocabulary.num_users,
        facts=vocabulary.facts,
    )
    for sign, part in ((-1, summary.before), (1, summary.after)):
        places = grown.positions(whole(part.table["item"]))
        np.add.at(grown.train_count_IL, places, sign * counts_matrix(part.table["train_count"]))
        grown.num_users += sign * part.num_users
    return grown


def _written(
    merged: Blocks, old: ray.ObjectRef, plan: ReadPlan, vocabulary: ray.ObjectRef
) -> list[ShardEntry]:
    parts = ray.get([_write_merged.remote(ref, old, plan, vocabulary) for ref in merged])
    return [entry for part in parts for entry in part]


def _joined_survey(manifest: DatasetManifest, survey: Survey, summary: _Summary) -> Survey:
    """Add up the rows of both logs by status."""
    total = rows_by_status(manifest.counts) + survey.counts
    total[int(Status.KEPT)] -= summary.num_duplicates
    total[int(Status.DUPLICATE)] += summary.num_duplicates
    times = manifest.times
    earlier = Survey(+total, 0, times.first, times.last)
    return earlier.merged(survey._replace(counts=Counter()))


def _old_rows(old: _Old, shard: int, plan: ReadPlan) -> tuple[pa.Table | None, pa.Table | None]:
    """Return a shard's old histories, as stored and as interactions."""
    if shard not in old.shards:
        return None, None
    histories = read_table(Folder(old.url), old.shards[shard])
    rows = interactions_of(histories, old.vocabulary, shard)
    if not plan.layout.has_time:
        places = pa.array(_BEFORE_ALL + np.arange(len(rows)))
        rows = rows.set_column(rows.schema.get_field_index("time"), "time", places)
    return histories, rows


@ray.remote(num_returns=2)
def _merge_block(block: pa.Table, old: _Old, plan: ReadPlan) -> Any:
    rules = CleaningConfig(duplicates=plan.cleaning.duplicates)
    scale = Scale(plan.scale.levels, ALREADY_APPLIED)
    nothing = stages.kept_rows(block).slice(0, 0)
    merged, before, num_rows = [nothing], [nothing], 0
    for shard, new in stages.shards_of(block):
        _, rows = _old_rows(old, shard, plan)
        both = new if rows is None else pa.concat_tables([rows, new])
        left = cleaned(both, rules, scale).kept
        merged.append(left)
        num_rows += len(both)
        if rows is not None:
            before.append(cleaned(rows, rules, scale).kept)
    found, was = pa.concat_tables(merged), pa.concat_tables(before)
    counted = [
        item_counts(table, plan.scale.levels, plan.split, old.split_state) for table in (was, found)
    ]
    return found, _Summary(num_rows - len(found), *counted)


@ray.remote
def _write_merged(
    merged: pa.Table, old: _Old, plan: ReadPlan, vocabulary: Vocabulary
) -> list[ShardEntry]:
    entries = []
    for shard, rows in stages.shards_of(merged):
        histories, _ = _old_rows(old, shard, plan)
        found = build_histories(rows, vocabulary, plan.split, old.split_state)
        table = found.table if plan.layout.has_time else write.without_times(found.table)
        num_unseen = found.num_unseen
        if histories is not None:
            table = _old_users_first(table, histories["user"])
            num_unseen += old.shards[shard].unseen_items
        name = part_name("histories", shard, plan.generation)
        entries.append(
            write.write_histories(name, shard, ShardHistories(table, num_unseen), Folder(old.url))
        )
    return entries


def _old_users_first(table: pa.Table, users: pa.ChunkedArray) -> pa.Table:
    """Keep existing users in their old order, followed by new ones."""
    place_B = to_numpy(pc.index_in(whole(table["user"]), value_set=whole(users)).fill_null(-1))
    place_B = np.where(place_B < 0, len(users), place_B)
    return table.take(pa.array(np.lexsort((dense_ids(table["user"]), place_B))))
