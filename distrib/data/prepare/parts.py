"""Which files of a prepared folder prepare has written, so that nothing else is ever removed."""

import re
from collections.abc import Collection

from distrib.config import sealed
from distrib.data.dataset import MANIFEST, Dataset, DatasetManifest
from distrib.fence import require_ours, take_over
from distrib.storage import Folder

BEGUN = "_begun.json"
"""Marks a folder that prepare writes to, and which start does."""

_KINDS = ("histories", "item_histories", "quarantine")
_PART = re.compile(r"part-\d{5}(-g\d+)?\.parquet")
_ITEMS = re.compile(r"items(-g\d+)?\.parquet")


def begin(folder: Folder) -> str:
    """Mark a folder as started, and remove what interrupted preparations left.

    Args:
        folder: The prepared folder; without a manifest.

    Returns:
        The start's token, for `finish`.
    """
    token = take_over(folder, BEGUN)
    remove_parts(folder)
    return token


def take_dataset(folder: Folder) -> tuple[str, Dataset]:
    """Take a prepared folder over, to change it; what a later start may have changed is seen.

    Args:
        folder: The prepared folder.

    Returns:
        The start's token, for `finish`, and the dataset.

    Raises:
        DataError: Nothing is prepared there.
    """
    Dataset.open(folder)
    token = take_over(folder, BEGUN)
    dataset = Dataset.open(folder)
    remove_parts(folder, dataset.manifest.file_names)
    return token, dataset


def finish(folder: Folder, token: str, manifest: DatasetManifest) -> None:
    """Write the manifest, unless a later start has taken the folder over.

    Args:
        folder: The prepared folder.
        token: From `begin`.
        manifest: What was prepared.

    Raises:
        TakenOverError: A later start writes here.
    """
    require_ours(folder, token, BEGUN)
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
