"""A folder of results that changes all at once: made aside, moved in when it is whole."""

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from distrib.errors import DataError
from distrib.events import emit
from distrib.storage import Folder

SUCCESS = "_SUCCESS"
"""Manifest, written last; readers of Parquet folders pass over names that begin so."""

_RECEIPTS, _BEGUN, _MOVING = "receipts", "begun.json", "moving.json"
_LISTED = 3
_STALE_S = 2 * 24 * 3600.0


class Publication:
    """Parts of one recipe on their way into a folder.

    They are made in a folder inside that readers pass over, one for each recipe, so that whatever
    fails or is begun beside, what was published before stays as it is until all parts are there.

    Args:
        target: The folder.
        recipe: All that the parts depend on.
    """

    def __init__(self, target: Folder, recipe: dict[str, Any]) -> None:
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

    def already(self) -> dict[str, Any] | None:
        """Return what `complete` did, where it was called for this very recipe before."""
        done = self.published()
        if done is None:
            return None
        emit("already_scored", folder=self.target.url)
        return {"output": self.target.url, "counts": done["counts"]}

    def published(self) -> dict[str, Any] | None:
        """Return the manifest of what is published, where it is of this very recipe."""
        if not self.target.exists(SUCCESS):
            return None
        found: dict[str, Any] = self.target.read_json(SUCCESS)
        return found if found.get("recipe") == self.recipe else None

    def receipts(self, parts: Collection[str]) -> dict[str, dict[str, Any]]:
        """Return the receipts of the parts that an earlier start finished, by part."""
        folder = self.work / _RECEIPTS
        found = (folder.read_json(name) for name in folder.files(".json"))
        return {
            receipt["name"]: receipt
            for receipt in found
            if receipt["name"] in parts and self._is_there(receipt)
        }

    def note(self, receipt: dict[str, Any]) -> None:
        """Write the receipt of a part that is there; it counts from then on."""
        name = receipt["name"].removesuffix(".parquet")
        self.work.write_json(f"{_RECEIPTS}/{name}.json", receipt)

    def complete(
        self,
        parts: Collection[str],
        make: Callable[[Mapping[str, Any]], Iterable[dict[str, Any]]],
        count: Callable[[list[dict[str, Any]]], dict[str, Any]],
        facts: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Make the parts that are not there yet, and publish them all.

        Args:
            parts: Names of all parts.
            make: Takes the receipts that are there, by part, and yields those of the others.
            count: Takes all receipts, and returns the manifest's ``counts``.
            facts: What else the manifest says.

        Returns:
            ``output`` and ``counts``.

        Raises:
            DataError: A part vanished, or another recipe was published meanwhile.
        """
        found = self.receipts(parts)
        self.begin()
        receipts = sorted([*found.values(), *make(found)], key=lambda one: str(one["name"]))
        counts = count(receipts)
        self.publish(receipts, {**facts, "counts": counts})
        emit("scored", folder=self.target.url, counts=counts)
        return {"output": self.target.url, "counts": counts}

    def publish(self, receipts: list[dict[str, Any]], facts: dict[str, Any]) -> None:
        """Move all parts in, in place of what was published before, and write the manifest.

        Cut off at any moment, the same call ends what it began.

        Args:
            receipts: Of all parts.
            facts: What else the manifest says.

        Raises:
            DataError: A part is not there, or another recipe was published meanwhile.
        """
        if self.published() is not None:
            return  # a second attempt of the same job was quicker
        absent = [receipt["name"] for receipt in receipts if not self._is_there(receipt)]
        if absent:
            raise DataError(f"{self.work}: {', '.join(absent[:_LISTED])} vanished; start again")
        self._begin_to_move()
        self.target.remove(SUCCESS)
        for receipt in receipts:
            if self.work.exists(receipt["name"]):
                self.work.move(receipt["name"], self.target, self.final(receipt["name"]))
        entries = [{**receipt, "name": self.final(receipt["name"])} for receipt in receipts]
        wanted = {entry["name"] for entry in entries}
        for name in self.work.read_json(_MOVING)["replaces"]:
            if name not in wanted:
                self.target.remove(name)
        there = {name for name in self.target.files(".parquet") if name.startswith("part-")}
        if there != wanted or self.target.exists(SUCCESS):
            raise DataError(
                f"{self.target}: another scoring with other settings is being published here; give "
                "each its own output, and start this one again"
            )
        self.target.write_json(SUCCESS, {"recipe": self.recipe, **facts, "files": entries})
        self.work.remove()

    def _begin_to_move(self) -> None:
        """Remember what goes, before its manifest does."""
        if self._is_being_moved():
            return
        old: dict[str, Any] = {"files": []}
        if self.target.exists(SUCCESS):
            old = self.target.read_json(SUCCESS)
        self.work.write_json(_MOVING, {"replaces": [entry["name"] for entry in old["files"]]})

    def _is_there(self, receipt: dict[str, Any]) -> bool:
        """Tell whether a part is here, or was moved in already by a start that was cut off."""
        name, size = receipt["name"], receipt["bytes"]
        places = ((self.work, name), (self.target, self.final(name)))
        return any(place.exists(at) and place.size(at) == size for place, at in places)

    def _is_being_moved(self) -> bool:
        return self.work.exists(_MOVING)
