"""A folder of results that changes all at once: made aside, moved in when it is whole."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

from pydantic import Field

from distrib.config import JsonObject, Record
from distrib.errors import DataError
from distrib.events import emit
from distrib.storage import Folder

SUCCESS = "_SUCCESS"
"""Manifest, written last; readers of Parquet folders pass over names that begin so."""

_RECEIPTS, _BEGUN, _MOVING = "receipts", "begun.json", "moving.json"
_LISTED = 3
_STALE_S = 2 * 24 * 3600.0


class PartManifest(Record):
    """What is known of a part that is written."""

    name: str
    bytes: int
    sha256: str
    users: dict[str, int]
    """``read``, ``scored`` and ``unchanged``."""

    rejected: dict[str, int]
    """Users that could not be scored, by reason."""

    interactions: dict[str, int] = Field(default_factory=dict)
    """Of the histories, by what became of them."""

    empty: dict[str, int] = Field(default_factory=dict)
    """Users whose list has no item, by list."""

    versions: tuple[str, ...] = ()
    """Of the models of a server that made the lists."""


class ScoreCounts(Record):
    """Users of all parts: read = scored + unchanged + rejected by reason."""

    users_read: int
    users: int
    """Scored."""

    users_unchanged: int | None = None
    users_rejected: dict[str, int]
    users_with_empty_lists: dict[str, int] | None = None
    interactions: dict[str, int] | None = None
    versions: tuple[str, ...] | None = None


class ScoreResult(Record):
    """Where lists are, and of how many users."""

    output: str
    counts: ScoreCounts


class Success(Record):
    """The manifest of published lists."""

    recipe: JsonObject
    """All that the parts depend on."""

    distrib: str | None = None
    counts: ScoreCounts
    files: tuple[PartManifest, ...]


class Publication:
    """Parts of one recipe on their way into a folder.

    They are made in a folder inside that readers pass over, one for each recipe, so that whatever
    fails or is begun beside, what was published before stays as it is until all parts are there.

    Args:
        target: The folder.
        recipe: All that the parts depend on.
    """

    def __init__(self, target: Folder, recipe: JsonObject) -> None:
        self.target = target
        self.recipe = recipe
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
        self._tag = digest[:8]
        self.work = target / f"_work-{digest[:16]}"

    def final(self, part: str) -> str:
        """Return the name of a part once it is published: no two recipes have one in common."""
        return part.replace(".parquet", f"-{self._tag}.parquet")

    def begin(self) -> None:
        """Note that parts are being made; the work of those who never came back goes."""
        for name in self.target.folders():
            mark = self.target / name
            if name.startswith("_work-") and mark.exists(_BEGUN):
                age_s = time.time() - mark.read_json(_BEGUN)["time"]
                if age_s > _STALE_S and mark.url != self.work.url:
                    mark.remove()
        self.work.write_json(_BEGUN, {"time": time.time()})

    def require_ours(self) -> None:
        """Refuse a folder with files that were not published here; they would have to go.

        Raises:
            DataError: There are such files.
        """
        others = [name for name in self.target.files() if not name.startswith(("_", "."))]
        if others and not self.target.exists(SUCCESS) and not self._is_being_moved():
            raise DataError(
                f"{self.target}: holds files that scoring did not write "
                f"({', '.join(others[:_LISTED])}); set the output to a new folder"
            )

    def already(self) -> ScoreResult | None:
        """Return what `complete` did, where it was called for this very recipe before."""
        done = self.published()
        if done is None:
            return None
        emit("already_scored", folder=self.target.url)
        return ScoreResult(output=self.target.url, counts=done.counts)

    def published(self) -> Success | None:
        """Return the manifest of what is published, where it is of this very recipe."""
        if not self.target.exists(SUCCESS):
            return None
        found = Success.model_validate(self.target.read_json(SUCCESS))
        return found if found.recipe == self.recipe else None

    def finished(self, parts: Collection[str]) -> dict[str, PartManifest]:
        """Return the manifests of the parts that an earlier start finished, by part."""
        folder = self.work / _RECEIPTS
        found = (
            PartManifest.model_validate(folder.read_json(name)) for name in folder.files(".json")
        )
        return {part.name: part for part in found if part.name in parts and self._is_there(part)}

    def note(self, part: PartManifest) -> None:
        """Write the manifest of a part that is there; it counts from then on."""
        name = part.name.removesuffix(".parquet")
        self.work.write_json(f"{_RECEIPTS}/{name}.json", part.to_json())

    def complete(
        self,
        parts: Collection[str],
        make: Callable[[Mapping[str, PartManifest]], Iterable[PartManifest]],
        count: Callable[[list[PartManifest]], ScoreCounts],
        version: str | None = None,
    ) -> ScoreResult:
        """Make the parts that are not there yet, and publish them all.

        Args:
            parts: Names of all parts.
            make: Takes the manifests of finished parts, by part, and yields those of the others.
            count: Adds up the manifests of all parts.
            version: Of distrib, where it made the lists.

        Returns:
            Where, and how many.

        Raises:
            DataError: A part vanished, or another recipe was published meanwhile.
        """
        found = self.finished(parts)
        self.begin()
        made = sorted([*found.values(), *make(found)], key=lambda part: part.name)
        counts = count(made)
        self.publish(made, counts, version)
        emit("scored", folder=self.target.url, counts=counts.to_json())
        return ScoreResult(output=self.target.url, counts=counts)

    def publish(
        self, parts: list[PartManifest], counts: ScoreCounts, version: str | None = None
    ) -> None:
        """Move all parts in, in place of what was published before, and write the manifest.

        Cut off at any moment, the same call ends what it began.

        Args:
            parts: All of them.
            counts: Of their users.
            version: Of distrib, where it made the lists.

        Raises:
            DataError: A part is not there, or another recipe was published meanwhile.
        """
        if self.published() is not None:
            return  # a second attempt of the same job was quicker
        absent = [part.name for part in parts if not self._is_there(part)]
        if absent:
            raise DataError(f"{self.work}: {', '.join(absent[:_LISTED])} vanished; start again")
        self._begin_to_move()
        self.target.remove(SUCCESS)
        for part in parts:
            if self.work.exists(part.name):
                self.work.move(part.name, self.target, self.final(part.name))
        entries = [part.model_copy(update={"name": self.final(part.name)}) for part in parts]
        wanted = {entry.name for entry in entries}
        for name in self.work.read_json(_MOVING)["replaces"]:
            if name not in wanted:
                self.target.remove(name)
        there = {name for name in self.target.files(".parquet") if name.startswith("part-")}
        if there != wanted or self.target.exists(SUCCESS):
            raise DataError(
                f"{self.target}: another scoring with other settings is being published here; give "
                "each its own output, and start this one again"
            )
        about = {} if version is None else {"distrib": version}
        success = Success(recipe=self.recipe, counts=counts, files=tuple(entries), **about)
        self.target.write_json(SUCCESS, success.to_json())
        self.work.remove()

    def _begin_to_move(self) -> None:
        """Remember what goes, before its manifest does."""
        if self._is_being_moved():
            return
        replaced: list[str] = []
        if self.target.exists(SUCCESS):
            found = Success.model_validate(self.target.read_json(SUCCESS))
            replaced = [entry.name for entry in found.files]
        self.work.write_json(_MOVING, {"replaces": replaced})

    def _is_there(self, part: PartManifest) -> bool:
        """Tell whether a part is here, or was moved in already by a start that was cut off."""
        places = ((self.work, part.name), (self.target, self.final(part.name)))
        return any(place.exists(at) and place.size(at) == part.bytes for place, at in places)

    def _is_being_moved(self) -> bool:
        return self.work.exists(_MOVING)


def add_counts(parts: list[PartManifest]) -> ScoreCounts:
    """Add up the counts of all parts.

    Args:
        parts: Of one output.

    Returns:
        The sums.

    Raises:
        DataError: Users got lost: those read are not those scored, unchanged and rejected.
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
