"""Resumable checkpoints in a run folder: every rank writes its part atomically.

A checkpoint is complete when the manifests of all its ranks exist. The folder alone decides that,
so a restart depends on no service, database or process that may be dead.
"""

import functools
import re
from pathlib import Path
from typing import Annotated

from pydantic import Field

from distrib.checkpoint.manifest import FileEntry
from distrib.config import PlainName, Record, read_record, sealed
from distrib.errors import CheckpointError, DataError
from distrib.retries import with_retries
from distrib.storage import Folder

CHECKPOINTS = "checkpoints"
"""Checkpoint folder, inside a run."""


_OURS = re.compile(r"step-\d{10}-[0-9a-z]+")
"""Names of checkpoints; folders of other programs are never read or removed."""


class _RankPart(Record):
    """Manifest of the files that a rank wrote."""

    world_size: Annotated[int, Field(ge=1, le=1_000_000)]
    files: dict[PlainName, FileEntry]


class CheckpointStore:
    """The checkpoints of a run. Names begin with the step, so they sort by age."""

    def __init__(self, run: Folder) -> None:
        self.folder = run / CHECKPOINTS

    def complete(self) -> list[str]:
        """Return the names of the complete checkpoints, newest first."""
        return [name for name in reversed(self._names()) if self._is_complete(name)]

    def write(self, name: str, files: list[Path], *, rank: int, world_size: int) -> None:
        """Write one rank's files into the shared checkpoint folder, then its manifest.

        Args:
            name: From `checkpoint_name`; not yet used by this attempt.
            files: Local files with names unique across ranks.
            rank: Rank of this process.
            world_size: Number of ranks.

        Raises:
            DataError: The store failed.
        """
        target = self.folder / name
        entries = {path.name: target.upload(path.name, path)._asdict() for path in files}
        document = {"world_size": world_size, "files": entries}
        target.write_json(_part_name(rank), sealed(document))

    def fetch(self, name: str, target: Path, *, retry_s: float = 0.0) -> None:
        """Download a checkpoint and verify every file.

        Args:
            name: One of `complete`.
            target: Local folder to write to.
            retry_s: Seconds for which store failures are retried.

        Raises:
            CheckpointError: It is incomplete, or a file's content differs from what was written.
        """
        source = self.folder / name
        for file, entry in self._files(name).items():
            get = functools.partial(source.download, file, target / file)
            try:
                found = with_retries(get, timeout_s=retry_s)
            except DataError as error:
                raise CheckpointError(f"{source / file}: cannot be read: {error}") from error
            if found._asdict() != entry.model_dump():
                raise CheckpointError(
                    f"{source / file}: content differs from what was written; the checkpoint is "
                    "damaged"
                )

    def prune(self, keep: int, attempt: str) -> None:
        """Remove all but the newest complete checkpoints, and unfinished ones of dead attempts.

        Args:
            keep: Number of complete checkpoints to keep.
            attempt: The current attempt, whose unfinished checkpoint stays.
        """
        complete = self.complete()
        kept = set(complete[:keep])
        for name in self._names():
            is_unfinished = name not in complete
            if name in kept or (is_unfinished and name.endswith(f"-{attempt}")):
                continue
            (self.folder / name).remove(_part_name(0))  # makes it incomplete first
            (self.folder / name).remove()

    def _names(self) -> list[str]:
        return [name for name in self.folder.folders() if _OURS.fullmatch(name)]

    def _is_complete(self, name: str) -> bool:
        folder = self.folder / name
        try:
            first = _part(folder, 0)
        except DataError:
            return False
        parts = {_part_name(rank) for rank in range(first.world_size)}
        return parts <= set(folder.files(".json"))

    def _files(self, name: str) -> dict[str, FileEntry]:
        """Return the manifest entries of the files of all ranks."""
        folder = self.folder / name
        files: dict[str, FileEntry] = {}
        world_size, rank = 1, 0
        while rank < world_size:
            try:
                part = _part(folder, rank)
            except DataError as error:
                raise CheckpointError(
                    f"{folder / _part_name(rank)}: absent or damaged, the checkpoint is incomplete"
                ) from error
            if rank and part.world_size != world_size:
                raise CheckpointError(
                    f"{folder}: parts of {part.world_size} and {world_size} ranks are mixed"
                )
            world_size = part.world_size
            files |= part.files
            rank += 1
        return files


def checkpoint_name(step: int, attempt: str) -> str:
    """Return the name of a checkpoint, unique per attempt so that files never mix."""
    return f"step-{step:010d}-{attempt}"


def _part(folder: Folder, rank: int) -> _RankPart:
    name = _part_name(rank)
    return read_record(_RankPart, folder.read_json(name), folder / name)


def _part_name(rank: int) -> str:
    return f"_rank{rank:05d}.json"
