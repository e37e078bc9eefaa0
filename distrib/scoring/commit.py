"""Output committer: parts are staged in a work folder and published when all are complete."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from pydantic import Field

from distrib.config import JsonObject, PlainName, Record, read_record, sealed
from distrib.errors import DataError
from distrib.events import emit
from distrib.renamed import renamed
from distrib.scoring.table_formats import table_of
from distrib.storage import Folder

SUCCESS = "_SUCCESS"
"""Manifest, written last; readers of Parquet folders ignore names with a leading underscore."""

_RECEIPTS, _BEGUN = "receipts", "begun.json"

MOVING = "moving.json"
"""In a work folder: the publication has begun to replace the previous output."""

_WORK = "_work-"
_RECIPE = "distrib.recipe"
_LISTED = 3
_STALE_S = 2 * 24 * 3600.0


class PartManifest(Record):
    """Manifest of one written part file."""

    name: PlainName
    bytes: int
    sha256: str
    users: dict[str, int]
    """``read``, ``scored`` and ``unchanged``."""

    rejected: dict[str, int]
    """Users that could not be scored, by reason."""

    interactions: dict[str, int] = Field(default_factory=dict)
    """Interactions of the histories, by status."""

    empty: dict[str, int] = Field(default_factory=dict)
    """Users with an empty list, by list."""

    versions: tuple[str, ...] = ()
    """Versions of the served models that made the lists."""


class _Begun(Record):
    """When a work folder was started."""

    time: float


class _Moving(Record):
    """Files that a publication replaces."""

    replaces: tuple[PlainName, ...]


class ScoreCounts(Record):
    """User counts of all parts: read = scored + unchanged + rejected."""

    users_read: int
    users: int
    """Scored."""

    users_unchanged: int | None = None
    users_rejected: dict[str, int]
    users_with_empty_lists: dict[str, int] | None = None
    interactions: dict[str, int] | None = None
    versions: tuple[str, ...] | None = None
    statistics: dict[str, float] | None = None
    """Means over users of what was written, by name."""


class ScoreResult(Record):
    """Output folder and counts of a scoring run."""

    output: str
    counts: ScoreCounts


class Success(Record):
    """The manifest of published lists."""

    recipe: JsonObject
    """Everything that the parts depend on."""

    distrib: str | None = None
    counts: ScoreCounts
    files: tuple[PartManifest, ...]


class Publication:
    """Publishes the parts of one recipe into a folder.

    Parts are staged in a subfolder that readers ignore, one per recipe. The previous output stays
    intact until all parts exist, whatever fails or runs concurrently. Where the recipe has a
    ``table``, one commit to it makes them visible, and files of earlier versions stay.

    Args:
        target: The output folder.
        recipe: Everything that the parts depend on.
    """

    def __init__(self, target: Folder, recipe: JsonObject) -> None:
        self.target = target
        self.recipe = recipe
        self.table = table_of(recipe)
        self._digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
        self._tag = self._digest[:8]
        self.work = target / f"{_WORK}{self._digest[:16]}"

    def final(self, part: str) -> str:
        """Return the published name of a part, unique to the recipe."""
        return part.replace(".parquet", f"-{self._tag}.parquet")

    def begin(self) -> None:
        """Mark the work folder as started, and remove stale work folders of other recipes."""
        for mark in work_folders(self.target):
            if mark.exists(_BEGUN):
                begun = read_record(_Begun, mark.read_json(_BEGUN), mark / _BEGUN)
                age_s = time.time() - begun.time
                if age_s > _STALE_S and mark.url != self.work.url:
                    mark.remove()
        self.work.write_json(_BEGUN, {"time": time.time()})

    def require_ours(self) -> None:
        """Refuse a folder with files of others, which publishing could overwrite.

        Raises:
            DataError: There are such files.
        """
        others = [name for name in self.target.files() if not name.startswith(("_", "."))]
        if others and not self.target.exists(SUCCESS) and not self.work.exists(MOVING):
            raise DataError(
                f"{self.target}: holds files that scoring did not write "
                f"({', '.join(others[:_LISTED])}); set the output to a new folder"
            )
        if self.table is not None:
            self.table.require_ours(self.target)
        before = success_of(self.target)
        if before is not None and before.recipe.get("table") != self.recipe.get("table"):
            raise DataError(
                f"{self.target}: the lists there are {_kind(before.recipe)}, and these would be "
                f"{_kind(self.recipe)}; set the output to a new folder, or score.table as before"
            )

    def already(self) -> ScoreResult | None:
        """Return the result of an earlier `complete` with this recipe, if any."""
        done = self.published()
        if done is None:
            return None
        self.work.remove()  # left by an attempt that was killed at the very end
        emit("already_published", folder=self.target.url)
        return ScoreResult(output=self.target.url, counts=done.counts)

    def published(self) -> Success | None:
        """Return the published manifest if it has this recipe, else None."""
        found = success_of(self.target)
        is_ours = found is not None and found.recipe == self.recipe
        return found if is_ours and self._is_committed() else None

    def finished(self, parts: Collection[str]) -> dict[str, PartManifest]:
        """Return the manifests of the parts that an earlier attempt finished, by part."""
        folder = self.work / _RECEIPTS
        found = (
            read_record(PartManifest, folder.read_json(name), folder / name)
            for name in folder.files(".json")
        )
        return {part.name: part for part in found if part.name in parts and self._is_there(part)}

    def note(self, part: PartManifest) -> None:
        """Write the manifest of a staged part, which makes it finished."""
        name = part.name.removesuffix(".parquet")
        self.work.write_json(f"{_RECEIPTS}/{name}.json", sealed(part.to_json()))

    def complete(
        self,
        parts: Collection[str],
        make: Callable[[Mapping[str, PartManifest]], Iterable[PartManifest]],
        count: Callable[[list[PartManifest]], ScoreCounts],
        version: str | None = None,
    ) -> ScoreResult:
        """Make the missing parts, and publish all of them.

        Args:
            parts: Names of all parts.
            make: Takes the manifests of finished parts, by part, and yields those of the others.
            count: Adds up the manifests of all parts.
            version: Version of distrib, if it made the lists itself.

        Returns:
            Output folder and counts.

        Raises:
            DataError: A part is missing, or another recipe was published concurrently.
        """
        found = self.finished(parts)
        self.begin()
        made = sorted([*found.values(), *make(found)], key=lambda part: part.name)
        counts = count(made)
        self.publish(made, counts, version)
        emit("published", folder=self.target.url, counts=counts.to_json())
        return ScoreResult(output=self.target.url, counts=counts)

    def publish(
        self, parts: list[PartManifest], counts: ScoreCounts, version: str | None = None
    ) -> None:
        """Replace the previous output by these parts, and write the manifest.

        Idempotent: after an interruption at any point, the same call finishes the work.

        Args:
            parts: All parts.
            counts: Their user counts.
            version: Version of distrib, if it made the lists itself.

        Raises:
            DataError: A part is missing, or another recipe was published concurrently.
        """
        if self.published() is not None:
            self.work.remove()
            return  # another attempt of the same job finished first
        absent = [part.name for part in parts if not self._is_there(part)]
        if absent:
            raise DataError(f"{self.work}: {', '.join(absent[:_LISTED])} missing; start again")
        try:
            self._move(parts, counts, version)
        except DataError:
            if self.published() is None:
                raise
            self.work.remove()  # another attempt of the same job has moved the parts meanwhile

    def _move(self, parts: list[PartManifest], counts: ScoreCounts, version: str | None) -> None:
        replaced = self._begin_to_move()
        if self.table is None and self.published() is None:
            self.target.remove(SUCCESS)
        for part in parts:
            if self.work.exists(part.name):
                self.work.move(part.name, self.target, self.final(part.name))
        entries = [part.model_copy(update={"name": self.final(part.name)}) for part in parts]
        about = {} if version is None else {"distrib": version}
        success = Success(recipe=self.recipe, counts=counts, files=tuple(entries), **about)
        if self.table is None:
            _replace(self.target, replaced, {entry.name for entry in entries}, self.recipe)
        elif not self._is_committed():
            self.commit(success)
        self.target.write_json(SUCCESS, sealed(success.to_json()))
        self.work.remove()

    def commit(self, success: Success) -> None:
        """Commit published files to the table.

        Args:
            success: Their manifest; it becomes part of the commit.

        Raises:
            DataError: The table was changed meanwhile.
        """
        assert self.table is not None
        receipt = json.dumps(success.to_json(), sort_keys=True)
        notes = {_RECIPE: self._digest, "distrib.receipt": receipt}
        self.table.commit(self.target, [entry.name for entry in success.files], notes)

    def _is_committed(self) -> bool:
        """Return whether the table's last commit of ours, if there is a table, is this one."""
        return (
            self.table is None or self.table.last_commit(self.target).get(_RECIPE) == self._digest
        )

    def _begin_to_move(self) -> list[str]:
        """Record the files to remove before their manifest is removed; return their names."""
        if self.work.exists(MOVING):
            found = read_record(_Moving, self.work.read_json(MOVING), self.work / MOVING)
            return list(found.replaces)
        before = success_of(self.target)
        replaced = [] if before is None else [entry.name for entry in before.files]
        self.work.write_json(MOVING, {"replaces": replaced})
        return replaced

    def _is_there(self, part: PartManifest) -> bool:
        """Return whether a part is staged, or was published by an interrupted attempt."""
        places = ((self.work, part.name), (self.target, self.final(part.name)))
        return any(place.exists(at) and place.size(at) == part.bytes for place, at in places)


def _replace(target: Folder, replaced: list[str], wanted: set[str], recipe: JsonObject) -> None:
    """Remove the files of the previous output; refuse to publish beside others."""
    for name in {*replaced} - wanted:
        target.remove(name)
    there = {name for name in target.files(".parquet") if name.startswith("part-")}
    before = success_of(target)
    is_taken = before is not None and before.recipe != recipe
    if there != wanted or is_taken:
        raise DataError(
            f"{target}: a scoring run with other settings is publishing here; give each its own "
            "output, and start this one again"
        )


def work_folders(target: Folder) -> list[Folder]:
    """Return the folders in which parts are staged, of any recipe."""
    return [target / name for name in target.folders() if name.startswith(_WORK)]


def success_of(folder: Folder) -> Success | None:
    """Return the manifest of published lists; None if nothing is published there."""
    if not folder.exists(SUCCESS):
        return None
    return read_record(Success, folder.read_json(SUCCESS), folder / SUCCESS)


def _kind(recipe: JsonObject) -> str:
    table = recipe.get("table")
    return "plain Parquet" if table is None else f"a table ({table})"


def previous_runs(folder: Folder) -> list[Folder]:
    """Return a folder of published lists and the earlier ones it builds on, the latest first."""
    found = [folder]
    while (success := success_of(found[-1])) is not None:
        before = success.recipe.get("incremental_from", success.recipe.get("since"))
        if before is None or before["folder"] in {one.url for one in found}:
            break
        found.append(Folder(before["folder"]))
    return found


def require_same(previous: Folder, made_by: Mapping[str, Any]) -> dict[str, str]:
    """Refuse a previous run with another model or policy.

    Args:
        previous: Folder of its lists.
        made_by: Bundle and settings of this run.

    Returns:
        The identity of the previous run.

    Raises:
        DataError: It differs, is not complete, or builds on one that is gone.
    """
    success = success_of(previous)
    if success is None:
        fault = f"{previous}: no {SUCCESS}, not a complete scoring run"
        raise DataError(f"{fault}; check score.incremental_from")
    found = {**success.recipe, "policy": renamed(success.recipe.get("policy"), "score")[0]}
    for what in made_by:
        if found.get(what) != made_by[what]:
            raise DataError(
                f"{previous}: was scored with another {what}, so lists of unchanged users may "
                "differ, too; unset score.incremental_from"
            )
    for folder in previous_runs(previous)[1:]:
        if not folder.exists(SUCCESS):
            fault = f"{folder}: {previous} depends on it, but it has no {SUCCESS}"
            raise DataError(f"{fault}; unset score.incremental_from")
    return {"folder": previous.url, "stamp": previous.stamp(SUCCESS)}


def add_counts(parts: list[PartManifest]) -> ScoreCounts:
    """Add up the counts of all parts.

    Args:
        parts: Parts of one output.

    Returns:
        The sums.

    Raises:
        DataError: Users were lost: read is not scored + unchanged + rejected.
    """
    users = _added_up(part.users for part in parts)
    rejected = _added_up(part.rejected for part in parts)
    read, scored = users.get("read", 0), users.get("scored", 0)
    unchanged = users.get("unchanged", 0)
    if read != scored + unchanged + sum(rejected.values()):
        raise DataError(
            f"{read} users read, but {scored} scored, {unchanged} unchanged and {rejected} "
            "rejected; report this as a bug"
        )
    return ScoreCounts(
        users_read=read,
        users=scored,
        users_unchanged=unchanged,
        users_rejected=rejected,
        users_with_empty_lists=_added_up(part.empty for part in parts),
        interactions=_added_up(part.interactions for part in parts),
    )


def _added_up(parts: Iterable[dict[str, int]]) -> dict[str, int]:
    return dict(sum(map(Counter, parts), Counter()))
