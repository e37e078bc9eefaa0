"""What a folder says of its own files, so that a part of it is never taken for the whole."""

import hashlib
from collections.abc import Mapping
from typing import Any

from distrib.errors import CheckpointError
from distrib.storage import Folder

MANIFEST = "manifest.json"


def seal(folder: Folder, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> None:
    """Write files and then, last, the manifest that makes the folder count.

    Args:
        folder: Where to.
        files: Content by name.
        facts: What else the manifest says; must be JSON.
    """
    folder.remove(MANIFEST)
    for name, content in files.items():
        folder.write(name, content)
    entries = {name: describe(content) for name, content in files.items()}
    folder.write_json(MANIFEST, {**facts, "files": entries})


def open_sealed(folder: Folder) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read a sealed folder, checking every file.

    Args:
        folder: What `seal` wrote.

    Returns:
        The manifest, and the content of its files by name.

    Raises:
        CheckpointError: The manifest is absent, or a file is not what the manifest says.
    """
    if not folder.exists(MANIFEST):
        raise CheckpointError(
            f"{folder}: no {MANIFEST}, so nothing complete is there; train first, or check the URL"
        )
    manifest: dict[str, Any] = folder.read_json(MANIFEST)
    files = {}
    for name, entry in manifest["files"].items():
        if not folder.exists(name):
            raise CheckpointError(
                f"{folder / name}: listed in {MANIFEST} but absent; copy the folder anew"
            )
        files[name] = folder.read(name)
        if describe(files[name]) != entry:
            raise CheckpointError(
                f"{folder / name}: content differs from {MANIFEST}; copy the folder anew"
            )
    return manifest, files


def describe(content: bytes) -> dict[str, Any]:
    """Return size and digest of a file's content."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
