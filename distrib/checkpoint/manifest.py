"""Manifests with size and digest of every file, so that a partial folder is never used."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from pydantic import ValidationError

from distrib.config import JsonObject, Record, sealed, unsealed
from distrib.errors import CheckpointError, DataError
from distrib.storage import Folder

MANIFEST = "manifest.json"


class FileEntry(Record):
    """Size and digest of a file."""

    bytes: int
    sha256: str


class Manifest(NamedTuple):
    """Content of a sealed folder."""

    files: dict[str, FileEntry]
    facts: JsonObject
    """What else the writer of the folder noted."""

    @property
    def digests(self) -> JsonObject:
        """The files as JSON; equal for equal files."""
        return {name: entry.to_json() for name, entry in self.files.items()}

    def to_json(self) -> JsonObject:
        """Return what the file holds."""
        return {**self.facts, "files": self.digests}


def seal(folder: Folder, files: Mapping[str, bytes], facts: JsonObject) -> None:
    """Write files and then, last, the manifest that makes the folder valid.

    Args:
        folder: Target folder.
        files: Content by name.
        facts: Further manifest entries; must be JSON.
    """
    folder.remove(MANIFEST)
    for name, content in files.items():
        folder.write(name, content)
    entries = {name: describe(content) for name, content in files.items()}
    folder.write_json(MANIFEST, sealed(Manifest(entries, facts).to_json()))


def open_sealed(folder: Folder) -> tuple[Manifest, dict[str, bytes]]:
    """Read a sealed folder and verify every file.

    Args:
        folder: Written by `seal`.

    Returns:
        The manifest, and the content of its files by name.

    Raises:
        CheckpointError: The manifest is absent, or a file differs from its entry.
    """
    manifest = read_manifest(folder)
    files = {}
    for name, entry in manifest.files.items():
        if not folder.exists(name):
            raise CheckpointError(
                f"{folder / name}: listed in {MANIFEST} but absent; copy the folder again"
            )
        files[name] = folder.read(name)
        found = describe(files[name])
        if found != entry:
            what = "bytes" if found.bytes != entry.bytes else "sha256"
            raise CheckpointError(
                f"{folder / name}: content differs from {MANIFEST} ({what} is "
                f"{getattr(found, what)}, not {getattr(entry, what)}); copy the folder again"
            )
    return manifest, files


def read_manifest(folder: Folder) -> Manifest:
    """Read the manifest of a sealed folder without reading its files.

    Args:
        folder: Written by `seal`.

    Returns:
        The manifest.

    Raises:
        CheckpointError: It is absent, damaged, or not a manifest.
    """
    if not folder.exists(MANIFEST):
        raise CheckpointError(
            f"{folder}: no {MANIFEST}, so the folder is incomplete; train first, or check the URL"
        )
    try:
        facts = folder.read_json(MANIFEST)
    except DataError as error:
        if error.__cause__ is None or not isinstance(error.__cause__, ValueError):
            raise
        raise CheckpointError(str(error)) from error
    try:
        facts = unsealed(facts, folder / MANIFEST)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    files = _entries(facts.pop("files", None)) if isinstance(facts, dict) else None
    if files is None:
        raise CheckpointError(
            f"{folder / MANIFEST}: is not a valid distrib manifest, it lists no files of this "
            "folder; check the URL"
        )
    return Manifest(files, facts)


def _entries(files: object) -> dict[str, FileEntry] | None:
    """Return the entries of a manifest; None if they are not valid."""
    if not isinstance(files, dict) or not all(map(_is_plain, files)):
        return None
    try:
        return {name: FileEntry.model_validate(entry) for name, entry in files.items()}
    except ValidationError:
        return None


def _is_plain(name: object) -> bool:
    """Return whether a name is a plain file name, without a path."""
    return isinstance(name, str) and name not in {"", ".", ".."} and not {"/", "\\"} & {*name}


def describe(content: bytes) -> FileEntry:
    """Return the size and digest of a file's content."""
    return FileEntry(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
