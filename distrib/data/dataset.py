"""What lies in a prepared folder, and how it is read."""

import hashlib
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distrib.errors import DataError
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary

MANIFEST = "manifest.json"
FORMAT = 2


def load_manifest(folder: Folder) -> dict[str, Any]:
    """Read the manifest of a prepared folder.

    Args:
        folder: A prepared folder.

    Returns:
        The manifest.

    Raises:
        DataError: There is none, so the folder is not (completely) prepared.
    """
    if not folder.exists(MANIFEST):
        raise DataError(
            f"{folder}: no {MANIFEST}, so nothing complete is prepared there; run jobs/prepare.py"
        )
    manifest: dict[str, Any] = folder.read_json(MANIFEST)
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{folder}: prepared in format {manifest.get('format')}, this version reads {FORMAT}; "
            "prepare anew"
        )
    return manifest


def load_vocabulary(folder: Folder, manifest: Mapping[str, Any] | None = None) -> Vocabulary:
    """Read the vocabulary of a prepared folder.

    Args:
        folder: A prepared folder.
        manifest: Its manifest, where it is known already.

    Returns:
        The vocabulary.

    Raises:
        DataError: The folder is not prepared, or the file is not what prepare wrote.
    """
    known = manifest or load_manifest(folder)
    vocabulary = Vocabulary.from_table(read_part(folder, known["vocabulary"]))
    vocabulary.user_numbers = user_numbers(known)
    return vocabulary


def read_part(
    folder: Folder, entry: Mapping[str, Any], columns: list[str] | None = None
) -> pa.Table:
    """Read a file of a prepared folder, checked against its manifest.

    Args:
        folder: The folder.
        entry: The manifest's entry: ``name`` and ``sha256``.
        columns: Those wanted; all when None.

    Returns:
        The table: `schema.histories` for a shard.

    Raises:
        DataError: The file is not what prepare wrote.
    """
    content = folder.read(entry["name"])
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise DataError(
            f"{folder / entry['name']}: content differs from the manifest; it was damaged or "
            "changed, prepare the data anew"
        )
    return pq.read_table(pa.BufferReader(content), columns=columns, use_threads=False)


def user_number(shard: int, num_shards: int) -> tuple[int, int]:
    """Return the number of a shard's first user, and the step to the next.

    Numbers are unique and stay what they are when users are appended to shards; they leave gaps
    where shards differ in length.
    """
    return shard, num_shards


def user_numbers(manifest: Mapping[str, Any]) -> int:
    """Return one more than the largest number of a user of prepared data."""
    last = [
        first + step * (shard["users"] - 1)
        for shard in manifest["shards"]
        for first, step in [user_number(shard["shard"], manifest["recipe"]["num_shards"])]
    ]
    return max(last, default=-1) + 1
