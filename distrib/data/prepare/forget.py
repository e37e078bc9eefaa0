"""Remove people from a prepared dataset, as if their rows had never been in the log."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from distrib import __version__
from distrib.data.arrow import to_numpy
from distrib.data.dataset import (
    Dataset,
    DatasetManifest,
    QuarantineEntry,
    ShardEntry,
    read_table,
)
from distrib.data.history_arrays import IntArray, history_arrays, training_rows
from distrib.data.prepare import write
from distrib.data.prepare.histories import ShardHistories
from distrib.data.prepare.parts import BEGUN, begin, finish, remove_parts
from distrib.data.prepare.row_counts import contents
from distrib.data.prepare.stages import Survey, part_name
from distrib.data.schema import Status
from distrib.data.splits.rules import shard_of
from distrib.errors import DataError
from distrib.ids import id_column
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary, nearest_level

_IDS_AT_ONCE = 500  # alternatives of one regular expression


class Forgotten(NamedTuple):
    """What was removed from a prepared dataset."""

    users: int
    interactions: int
    quarantined: int
    """Damaged rows whose text was removed because an id stands in it."""

    files: int
    """Files that were replaced or removed."""


class _Left(NamedTuple):
    """A shard without some people."""

    entry: ShardEntry | None
    users: int
    training_users: int
    interactions: int
    """Rows of the log; of a shard without anyone left, also those with unseen items."""

    item_N: IntArray
    """Items of their training interactions."""

    level_N: IntArray


def user_ids(dataset: Dataset, ids: Sequence[str]) -> pa.Array:
    """Read ids as those of a dataset's users.

    Args:
        dataset: Prepared data.
        ids: As text.

    Returns:
        Unique ids, of the type of the dataset's users.

    Raises:
        DataError: The users are numbers, and some of the ids are none.
    """
    found = id_column(pa.array(ids, pa.string()), dataset.user_kind)
    wrong = [text for text, ok in zip(ids, found.ids.is_valid().to_pylist(), strict=True) if not ok]
    if wrong:
        raise DataError(
            f"forget.users: {len(wrong)} of {len(ids)} ids are no integers, as the users of "
            f"{dataset.folder} are; correct the file"
        )
    return found.ids.unique()


def forget(folder: Folder, ids: Sequence[str]) -> Forgotten:
    """Remove people from histories, item histories, counts and quarantine; Ray must be running.

    Users after them move up, so their indices change: models with a row per user, and soft labels,
    no longer fit the data. Items stay, also those that no one else has.

    Args:
        folder: A prepared dataset.
        ids: Of the users, as text.

    Returns:
        What was removed.

    Raises:
        DataError: Nothing is prepared there, or an id is of another kind.
        TakenOverError: A later start of prepare writes there.
    """
    dataset = Dataset.open(folder)
    manifest = dataset.manifest
    users = user_ids(dataset, ids)
    generation = manifest.generation + 1
    shards = set(shard_of(users, manifest.made_from.num_shards).tolist()) if len(users) else set()
    entries = [entry for entry in manifest.shards if entry.shard in shards]
    holding = [
        entry
        for entry, holds in zip(
            entries, ray.get([_holds.remote(folder.url, e, users) for e in entries]), strict=True
        )
        if holds
    ]
    damaged = _damaged_with(dataset, ids)
    if not holding and not damaged:
        remove_parts(folder, manifest.file_names)
        folder.remove(BEGUN)
        return Forgotten(0, 0, 0, 0)
    token = begin(folder, manifest.file_names)
    left = ray.get(
        [_left.remote(folder.url, e, users, manifest.levels, generation) for e in holding]
    )
    made = _without(dataset, {e.shard: part for e, part in zip(holding, left, strict=True)})
    quarantine, blanked = _blanked(dataset, damaged, generation)
    made = made.model_copy(update={"quarantine": quarantine})
    finish(folder, token, made)
    return Forgotten(
        sum(part.users for part in left),
        sum(part.interactions for part in left),
        blanked,
        len(manifest.file_names - made.file_names),
    )


def _without(dataset: Dataset, left: dict[int, _Left]) -> DatasetManifest:
    """Write all that follows from the shards, and return the manifest."""
    manifest, folder = dataset.manifest, dataset.folder
    vocabulary = _counted_without(dataset.vocabulary, list(left.values()))
    entries = [left[e.shard].entry if e.shard in left else e for e in manifest.shards]
    gone = sum(part.interactions for part in left.values())
    generation = manifest.generation + 1
    found = contents(
        folder,
        _survey(manifest, gone),
        [entry for entry in entries if entry is not None],
        vocabulary,
        None if manifest.item_histories is None else manifest.made_from.num_shards,
        generation,
    )
    known = {**manifest.to_json(), **found.set_fields(), "extends": ()}
    before = (*manifest.forgets, *manifest.extends, manifest.hash)
    changes = {"distrib": __version__, "generation": generation, "forgets": before}
    return DatasetManifest.model_validate({**known, **changes})


def _counted_without(vocabulary: Vocabulary, left: list[_Left]) -> Vocabulary:
    count_IL = vocabulary.train_count_IL.copy()
    for part in left:
        np.subtract.at(count_IL, (part.item_N, part.level_N), 1)
    num_users = vocabulary.num_users - sum(part.training_users for part in left)
    return Vocabulary(
        vocabulary.ids, vocabulary.levels, count_IL, num_users, facts=vocabulary.facts
    )


def _survey(manifest: DatasetManifest, gone: int) -> Survey:
    """Return the rows of the log by status; those of removed users are a status of their own."""
    by_reason = {status.reason: int(status) for status in Status}
    counts = Counter({by_reason[reason]: n for reason, n in manifest.counts.rejected.items()})
    counts.pop(int(Status.ITEM_UNSEEN_IN_TRAINING), None)  # counted by shard
    counts[int(Status.USER_REMOVED)] += gone
    counts[int(Status.KEPT)] = manifest.counts.read - sum(counts.values())
    return Survey(counts, 0, manifest.times.first, manifest.times.last)


def _damaged_with(dataset: Dataset, ids: Sequence[str]) -> dict[str, pa.Table]:
    """Return the files of damaged rows in whose text an id stands, without that text."""
    found = {}
    for entry in dataset.manifest.quarantine:
        table = read_table(dataset.folder, entry)
        hits = _names_one(table["text"], ids)
        if pc.any(hits).as_py():
            place = table.schema.get_field_index("text")
            text = pc.if_else(hits, None, table["text"])
            found[entry.name] = table.set_column(place, "text", text)
    return found


def _names_one(text: pa.ChunkedArray, ids: Sequence[str]) -> pa.ChunkedArray:
    """Return where one of the ids stands in a text, not as a part of a longer word."""
    hits = pa.chunked_array([pa.array(np.zeros(len(text), dtype=bool))])
    for start in range(0, len(ids), _IDS_AT_ONCE):
        words = "|".join(re.escape(word) for word in ids[start : start + _IDS_AT_ONCE])
        found = pc.match_substring_regex(text, rf"(^|[^\pL\pN_])({words})($|[^\pL\pN_])")
        hits = pc.or_(hits, found.fill_null(False))
    return hits


def _blanked(
    dataset: Dataset, damaged: dict[str, pa.Table], generation: int
) -> tuple[tuple[QuarantineEntry, ...], int]:
    """Write the files of damaged rows again; return all entries and the number of texts removed."""
    entries, removed = [], 0
    for number, entry in enumerate(dataset.manifest.quarantine):
        table = damaged.get(entry.name)
        if table is None:
            entries.append(entry)
            continue
        before = read_table(dataset.folder, entry, ["text"])["text"].null_count
        removed += table["text"].null_count - before
        name = part_name("quarantine", number, generation)
        entries.append(write.write_quarantine(name, table, dataset.folder))
    return tuple(entries), removed


@ray.remote
def _holds(url: str, entry: ShardEntry, users: pa.Array) -> bool:
    table = read_table(Folder(url), entry, ["user"])
    return bool(pc.any(pc.is_in(table["user"], value_set=users), min_count=0).as_py())


@ray.remote
def _left(
    url: str, entry: ShardEntry, users: pa.Array, levels: tuple[float, ...], generation: int
) -> _Left:
    folder = Folder(url)
    table = read_table(folder, entry)
    is_gone = pc.is_in(table["user"], value_set=users)
    gone, kept = table.filter(is_gone), table.filter(pc.invert(is_gone))
    rows = history_arrays(gone)
    trained = training_rows(rows, to_numpy(gone["subset"]))
    made = None
    if len(kept):
        name = part_name("histories", entry.shard, generation)
        found = ShardHistories(kept, entry.unseen_items)
        made = write.write_histories(name, entry.shard, found, folder)
        if entry.tied is None:
            made = made.model_copy(update={"tied": None})
    return _Left(
        made,
        len(gone),
        trained.num_users,
        len(rows.item_N) + (0 if len(kept) else entry.unseen_items),
        trained.item_N.astype(np.int64),
        nearest_level(trained.value_N, levels),
    )
