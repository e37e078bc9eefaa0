"""Remove people from published lists, vectors and soft labels, and from tables by user."""

import hashlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distrib.config import Config, read_record, sealed
from distrib.errors import DataError
from distrib.ids import id_column, kind_of
from distrib.scoring.commit import (
    MOVING,
    SUCCESS,
    PartManifest,
    Publication,
    Success,
    add_counts,
    success_of,
    work_folders,
)
from distrib.scoring.table_formats import table_of
from distrib.storage import Folder, parquet_bytes

USER = "user"
_NOTES = "_forgetting"  # manifests of parts that are about to be replaced
_PART = re.compile(r"part-\d+(-[0-9a-f]{8}){1,9}\.parquet")
_AT_ONCE = 8


class ForgetConfig(Config):
    """Which people to remove, and where else than in the folders of the run."""

    users: str | None = None
    """Path or URL of a text file with one user id per line; required by the forget job."""

    lists: tuple[str, ...] = ()
    """More folders of published lists, such as those of a server's clients or of earlier runs."""


class ForgottenLists(NamedTuple):
    """What was removed from a folder."""

    users: int
    rows: int
    files: int
    """Files that were written again."""


class _Left(NamedTuple):
    """A file without some people."""

    users: int
    rows: int
    empty: dict[str, int]
    """Empty lists among the removed ones, by list."""

    content: bytes


def forget_lists(folder: Folder, ids: Sequence[str]) -> ForgottenLists:
    """Remove people from what `Publication` has published; the manifest is written last.

    Staged parts of an unfinished run are removed, so that it cannot publish them afterwards. Of a
    table, all files of earlier versions are removed; its history names them still. An
    interrupted removal ends as an undisturbed one when it is started again.

    Args:
        folder: The output folder; nothing is done if nothing is published there.
        ids: Of the users, as text.

    Returns:
        What was removed.

    Raises:
        DataError: See `require_forgettable`; or a part has no column of users.
    """
    success = require_forgettable(folder)
    for work in work_folders(folder):
        work.remove()
    if success is None:
        return ForgottenLists(0, 0, 0)
    publication = Publication(folder, success.recipe)
    is_table = publication.table is not None
    without = partial(_part_without, folder, ids, is_renamed=is_table)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(without, success.files))
    parts = [part for part, _ in found]
    if parts != list(success.files):
        changed = _counted(success, parts)
        if is_table:
            publication.commit(changed)
        folder.write_json(SUCCESS, sealed(changed.to_json()))
    if is_table:
        _remove_earlier(folder, {part.name for part in parts})
    folder.remove(_NOTES)
    return _total([left for _, left in found if left is not None])


def require_forgettable(folder: Folder) -> Success | None:
    """Refuse a folder in which a removal would leave someone behind, or damage a table.

    Args:
        folder: Of published lists; it may be missing.

    Returns:
        The manifest; None if nothing is published there.

    Raises:
        DataError: A publication was stopped between two changes, or others changed the table.
    """
    if any(work.exists(MOVING) for work in work_folders(folder)):
        raise DataError(
            f"{folder}: a run was stopped while it published; start it again first, so that "
            "nothing of it is left"
        )
    success = success_of(folder)
    table = None if success is None else table_of(success.recipe)
    if success is None or table is None:
        return success
    live, ours = table.live_files(folder), {part.name for part in success.files}
    is_interrupted = len(live) == len(ours) and all(_is_ours(name) for name in live)
    if live != ours and not is_interrupted:
        raise DataError(
            f"{folder}: others have changed the table since scoring wrote it; delete the people "
            "with its own tools, or score again first"
        )
    return success


def _is_ours(name: str) -> bool:
    return _PART.fullmatch(name) is not None


def _counted(success: Success, parts: list[PartManifest]) -> Success:
    added = add_counts(parts)
    users = {"users_read": added.users_read, "users": added.users}
    lists = {"users_with_empty_lists": added.users_with_empty_lists}
    counts = success.counts.model_copy(update=users | lists)
    return success.model_copy(update={"counts": counts, "files": tuple(parts)})


def _remove_earlier(folder: Folder, current: set[str]) -> None:
    """Remove the files of a table's earlier versions, which may hold the people, too."""
    for name in {*folder.files(".parquet")} - current:
        if _is_ours(name):
            folder.remove(name)


def forget_tables(folder: Folder, ids: Sequence[str]) -> ForgottenLists:
    """Remove people from a folder of Parquet files with a column of users.

    Args:
        folder: The folder; it may be missing.
        ids: Of the users, as text.

    Returns:
        What was removed.

    Raises:
        DataError: A file has no column of users.
    """
    found = []
    for name in folder.files(".parquet"):
        left = _left(folder, name, ids)
        if left is not None:
            folder.write(name, left.content)
            found.append(left)
    return _total(found)


def _part_without(
    folder: Folder, ids: Sequence[str], part: PartManifest, *, is_renamed: bool
) -> tuple[PartManifest, _Left | None]:
    """Write a part without some people, and return its manifest.

    A file of a table never changes: its content goes to another name.
    """
    notes, note = folder / _NOTES, part.name + ".json"
    if notes.exists(note):
        noted = read_record(PartManifest, notes.read_json(note), notes / note)
        if hashlib.sha256(folder.read(part.name)).hexdigest() == noted.sha256:
            part = noted  # an interrupted removal has written it
    left = _left(folder, part.name, ids)
    if left is None:
        return part, None
    users = {**part.users}
    for name in ("read", "scored"):
        users[name] = users.get(name, 0) - left.users
    digest = hashlib.sha256(left.content).hexdigest()
    stem = part.name.removesuffix(".parquet")
    changes = {
        "name": f"{stem}-{digest[:8]}.parquet" if is_renamed else part.name,
        "bytes": len(left.content),
        "sha256": digest,
        "users": users,
        "empty": {name: n - left.empty.get(name, 0) for name, n in part.empty.items()},
    }
    made = part.model_copy(update=changes)
    notes.write_json(note, sealed(made.to_json()))
    folder.write(made.name, left.content)
    return made, left._replace(content=b"")


def _left(folder: Folder, name: str, ids: Sequence[str]) -> _Left | None:
    """Return what is left of a file without some people; None if it holds none of them."""
    with folder.open(name) as stream:
        file = pq.ParquetFile(stream)
        if USER not in file.schema_arrow.names:
            raise DataError(f"{folder / name}: has no column {USER!r}; it is not one of users")
        if not pc.any(_are_of(file.read([USER])[USER], ids), min_count=0).as_py():
            return None
        table = file.read()
    is_gone = _are_of(table[USER], ids)
    gone = table.filter(is_gone)
    names = [field.name for field in table.schema if field.name.endswith("items")]
    lengths = {n: pc.list_value_length(gone[n]) for n in names if "rank" not in gone.column_names}
    empty = {n: int(pc.sum(pc.equal(length, 0)).as_py() or 0) for n, length in lengths.items()}
    content = parquet_bytes(table.filter(pc.invert(is_gone)))
    return _Left(int(pc.count_distinct(gone[USER]).as_py()), len(gone), empty, content)


def _are_of(users: pa.ChunkedArray, ids: Sequence[str]) -> pa.Array:
    kind = kind_of(users)
    wanted = id_column(pa.array(ids, pa.string()), kind).ids.drop_null()
    return pc.is_in(id_column(users, kind).ids, value_set=wanted)


def _total(found: Sequence[_Left]) -> ForgottenLists:
    return ForgottenLists(sum(f.users for f in found), sum(f.rows for f in found), len(found))
