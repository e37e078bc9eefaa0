"""Resumable checkpoints on any file system: every rank writes its part, whole or not at all."""

import hashlib
import json
import posixpath
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from distrib.errors import CheckpointError

_PIECE_BYTES = 8 << 20


def upload_part(
    source: Path, fs: pafs.FileSystem, target: str, *, rank: int, world_size: int
) -> None:
    """Write one rank's files into the folder that all ranks share, then its manifest.

    Streams are closed explicitly and sizes compared: ``pyarrow.fs.copy_files``, which Ray Train
    would use, drops errors that come when an object store finishes an upload.

    Args:
        source: The rank's own folder.
        fs: Where the checkpoint goes.
        target: Folder there; must be new to this attempt.
        rank: Of this process.
        world_size: Ranks in all.

    Raises:
        CheckpointError: A file did not arrive whole.
    """
    entries = {}
    for path in sorted(source.rglob("*")):
        if path.is_file():
            name = path.relative_to(source).as_posix()
            entries[name] = _upload(path, fs, posixpath.join(target, name))
    content = json.dumps({"world_size": world_size, "files": entries}, indent=2).encode()
    with fs.open_output_stream(posixpath.join(target, _part_name(rank))) as stream:
        stream.write(content)


def verify(fs: pafs.FileSystem, target: str) -> dict[str, Any]:
    """Check that every rank's part is there and whole.

    Args:
        fs: Where the checkpoint is.
        target: Its folder there.

    Returns:
        Entries of all files by name.

    Raises:
        CheckpointError: A part or a file is missing, or parts of different attempts are mixed.
    """
    first = _read_part(fs, target, 0)
    files: dict[str, Any] = {}
    for rank in range(first["world_size"]):
        part = _read_part(fs, target, rank)
        if part["world_size"] != first["world_size"]:
            raise CheckpointError(
                f"{target}: parts of {part['world_size']} and {first['world_size']} ranks are mixed"
            )
        files.update(part["files"])
    for name, entry in files.items():
        size = fs.get_file_info(posixpath.join(target, name)).size
        if size != entry["bytes"]:
            raise CheckpointError(
                f"{target}/{name}: {size} bytes, but {entry['bytes']} were written; "
                "the checkpoint is damaged"
            )
    return files


def download(fs: pafs.FileSystem, source: str, target: Path) -> None:
    """Fetch a whole checkpoint, checking every byte.

    Args:
        fs: Where the checkpoint is.
        source: Its folder there.
        target: Local folder to write to.

    Raises:
        CheckpointError: It is not complete, or a file's content is not what was written.
    """
    for name, entry in verify(fs, source).items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with fs.open_input_stream(posixpath.join(source, name)) as stream, path.open("wb") as file:
            while piece := stream.read(_PIECE_BYTES):
                digest.update(piece)
                file.write(piece)
        if digest.hexdigest() != entry["sha256"]:
            raise CheckpointError(
                f"{source}/{name}: content differs from what was written; the checkpoint is damaged"
            )


def _upload(path: Path, fs: pafs.FileSystem, target: str) -> dict[str, Any]:
    fs.create_dir(posixpath.dirname(target), recursive=True)
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file, fs.open_output_stream(target) as stream:
        while piece := file.read(_PIECE_BYTES):
            stream.write(piece)
            digest.update(piece)
            size += len(piece)
    arrived = fs.get_file_info(target).size
    if arrived != size:
        raise CheckpointError(
            f"{target}: {arrived} bytes arrived of {size}; check the store and its free space"
        )
    return {"bytes": size, "sha256": digest.hexdigest()}


def _read_part(fs: pafs.FileSystem, target: str, rank: int) -> dict[str, Any]:
    name = posixpath.join(target, _part_name(rank))
    if fs.get_file_info(name).type != pafs.FileType.File:
        raise CheckpointError(
            f"{name} is absent: the checkpoint is not complete; an older one must serve"
        )
    with fs.open_input_stream(name) as stream:
        part: dict[str, Any] = json.loads(stream.read())
    return part


def _part_name(rank: int) -> str:
    return f"_rank{rank:05d}.json"
