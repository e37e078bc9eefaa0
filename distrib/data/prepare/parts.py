"""Which files of a prepared folder prepare has written, so that nothing else is ever removed."""

import re
import uuid
from collections.abc import Collection

from distrib import __version__
from distrib.config import Record, read_record, sealed
from distrib.data.dataset import MANIFEST, DatasetManifest
from distrib.errors import DataError
from distrib.storage import Folder

BEGUN = "_begun.json"
"""Marks a folder that prepare writes to, and which attempt does."""

_KINDS = ("histories", "item_histories", "quarantine")
_PART = re.compile(r"part-\d{5}(-g\d+)?\.parquet")
_ITEMS = re.compile(r"items(-g\d+)?\.parquet")


class _Begun(Record):
    """Content of `BEGUN`."""

    attempt: str = ""


def begin(folder: Folder, keep: Collection[str] = ()) -> str:
    """Mark a folder as started, and remove what interrupted preparations left.

    Args:
        folder: The prepared folder.
        keep: Names of the files of its manifest.

    Returns:
        The attempt, for `finish`.
    """
    attempt = uuid.uuid4().hex
    folder.write_json(BEGUN, {"distrib": __version__, "attempt": attempt})
    remove_parts(folder, keep)
    return attempt


def finish(folder: Folder, attempt: str, manifest: DatasetManifest) -> None:
    """Write the manifest, unless a later start has taken the folder over.

    Args:
        folder: The prepared folder.
        attempt: From `begin`.
        manifest: What was prepared.

    Raises:
        DataError: A later start writes here.
    """
    is_there = folder.exists(BEGUN)
    if not is_there or read_record(_Begun, folder.read_json(BEGUN), folder).attempt != attempt:
        raise DataError(
            f"{folder}: a later start of prepare writes here, or has finished; give each its own "
            "data.prepared, and run this one again"
        )
    folder.write_json(MANIFEST, sealed(manifest.to_json()))
    remove_parts(folder, manifest.file_names)
    folder.remove(BEGUN)


def remove_parts(folder: Folder, keep: Collection[str] = ()) -> None:
    """Remove what interrupted preparations left.

    Args:
        folder: The prepared folder.
        keep: Names of the files of its manifest.
    """
    names = [name for name in folder.files() if _ITEMS.fullmatch(name)]
    for kind in _KINDS:
        names += [f"{kind}/{n}" for n in (folder / kind).files() if _PART.fullmatch(n)]
    for name in names:
        if name not in keep:
            folder.remove(name)
