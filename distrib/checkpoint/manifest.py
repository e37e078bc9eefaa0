"""Manifests with size and digest of every file, so that a partial folder is never used."""

import hashlib
from collections.abc import Mapping
from typing import Any

from distrib.errors import CheckpointError, DataError
from distrib.storage import Folder

MANIFEST = "manifest.json"


def seal(folder: Folder, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> None:
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
    folder.write_json(MANIFEST, {**facts, "files": entries})


def open_sealed(folder: Folder) -> tuple[dict[str, Any], dict[str, bytes]]:
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
    for name, entry in manifest["files"].items():
        if not folder.exists(name):
            raise CheckpointError(
                f"{folder / name}: listed in {MANIFEST} but absent; copy the folder again"
            )
        files[name] = folder.read(name)
        found = describe(files[name])
        if found != entry:
            what = next(key for key in found if found[key] != entry.get(key))
            raise CheckpointError(
                f"{folder / name}: content differs from {MANIFEST} ({what} is {found[what]}, not "
                f"{entry.get(what)}); copy the folder again"
            )
    return manifest, files


def read_manifest(folder: Folder) -> dict[str, Any]:
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
        manifest: Any = folder.read_json(MANIFEST)
    except DataError as error:
        if error.__cause__ is None or not isinstance(error.__cause__, ValueError):
            raise
        raise CheckpointError(str(error)) from error
    entries = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(entries, dict) or not all(
        _is_plain(name) and isinstance(entry, dict) for name, entry in entries.items()
    ):
        raise CheckpointError(
            f"{folder / MANIFEST}: is not a valid distrib manifest, it lists no files of this "
            "folder; check the URL"
        )
    return manifest  # type: ignore[no-any-return]


def _is_plain(name: object) -> bool:
    """Return whether a name is a plain file name, without a path."""
    return isinstance(name, str) and name not in {"", ".", ".."} and not {"/", "\\"} & {*name}


def describe(content: bytes) -> dict[str, Any]:
    """Return the size and digest of a file's content."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
