"""Remove people from a prepared dataset, as if their rows had never been in the log."""

from collections.abc import Mapping, Sequence
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
from distrib.data.prepare.parts import BEGUN, finish, take_dataset
from distrib.data.prepare.row_counts import contents, rows_by_status
from distrib.data.prepare.stages import Survey, part_name
from distrib.data.schema import Status
from distrib.data.splits.rules import shard_of
from distrib.errors import DataError
from distrib.ids import id_column
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary, nearest_level


class Forgotten(NamedTuple):
    """What was removed from a prepared dataset."""

    users: int
    interactions: int
    quarantined: int
    """Damaged rows whose text was removed."""

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


def forget(
    folder: Folder, ids: Sequence[str], stamps: Mapping[str, str] | None = None
) -> Forgotten:
    """Remove people from histories, item histories, counts and quarantine; Ray must be running.

    Users after them move up, so their indices change: models with a row per user, and soft labels,
    no longer fit the data. Items stay, also those that no one else has. Damaged rows lose their
    text, all of them: in what way an id stands in a damaged row cannot be known.

    Args:
        folder: A prepared dataset.
        ids: Of the users, as text.
        stamps: Of the log's files as they are now, by label; taken over for the files that were
            prepared, since the people were removed from them, too.

    Returns:
        What was removed.

    Raises:
        DataError: Nothing is prepared there, an id is of another kind, or no user would be left.
        TakenOverError: A later start of prepare writes there.
    """
    token, dataset = take_dataset(folder)
    manifest = dataset.manifest
    users = user_ids(dataset, ids)
    generation = manifest.generation + 1
    shards = set(shard_of(users, manifest.made_from.num_shards).tolist()) if len(users) else set()
    near = [entry for entry in manifest.shards if entry.shard in shards]
    are_there = ray.get([_holds.remote(folder.url, entry, users) for entry in near])
    holding = [entry for entry, holds in zip(near, are_there, strict=True) if holds]
    left: list[_Left] = ray.get(
        [_left.remote(folder.url, e, users, manifest.levels, generation) for e in holding]
    )
    if sum(part.users for part in left) == manifest.counts.users:
        raise DataError(f"{folder}: no user would be left; remove the folder instead")
    made = manifest
    if holding:
        made = _without(dataset, {e.shard: part for e, part in zip(holding, left, strict=True)})
    quarantine, blanked = _blanked(dataset, generation)
    files = {name: (stamps or {}).get(name, at) for name, at in manifest.recipe["files"].items()}
    recipe = {**manifest.recipe, "files": files}
    made = made.model_copy(update={"quarantine": quarantine, "recipe": recipe})
    if blanked:
        made = made.model_copy(update={"generation": generation})
    if made == manifest:
        folder.remove(BEGUN)
    else:
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
    counts = rows_by_status(manifest.counts)
    counts[int(Status.USER_REMOVED)] += gone
    counts[int(Status.KEPT)] -= gone
    return Survey(counts, 0, manifest.times.first, manifest.times.last)


def _blanked(dataset: Dataset, generation: int) -> tuple[tuple[QuarantineEntry, ...], int]:
    """Write damaged rows without their text; return the entries and the number of texts."""
    entries, removed = [], 0
    for number, entry in enumerate(dataset.manifest.quarantine):
        table = read_table(dataset.folder, entry)
        texts = len(table) - table["text"].null_count
        if texts:
            place = table.schema.get_field_index("text")
            table = table.set_column(place, "text", pa.nulls(len(table), pa.string()))
            name = part_name("quarantine", number, generation)
            entry = write.write_quarantine(name, table, dataset.folder)
            removed += texts
        entries.append(entry)
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
