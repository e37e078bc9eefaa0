"""All file access: URLs to file systems, atomic writes, retries."""

import errno
import hashlib
import io
import json
import os
import posixpath
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from distrib.errors import DataError, excerpt
from distrib.redaction import has_credentials, redacted

_CLIENTS = {"aiohttp", "azure", "botocore", "gcsfs", "google"}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""Errors of a store without space."""

_PIECE_BYTES = 8 << 20
_PROBE = ".probe-"
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}


class Transferred(NamedTuple):
    """Size and digest of a file that was uploaded or downloaded."""

    bytes: int
    sha256: str


class Folder:
    """A folder at a URL: a local path, or any scheme that fsspec knows (``s3://``, ``gs://``...).

    Pickles as its URL, so it can be sent to workers; credentials come from the environment of the
    process that opens it.
    """

    def __init__(self, url: str) -> None:
        if has_credentials(url):
            raise DataError(
                f"{redacted(url)}: a URL must not contain credentials; set them in the environment "
                "or in the store's credential chain"
            )
        if "\0" in url or url.rstrip("/").endswith(":") or url.startswith("memory://"):
            raise DataError(f"{excerpt(url)!r}: is not a path or URL of files; correct it")
        url = absolute(url)
        self.url = url.rstrip("/") or url
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except Exception as error:  # each of many file systems has its own
            raise DataError(
                f"{excerpt(url, 200)}: {excerpt(str(error), 200)}; use a path or a URL of an "
                "installed fsspec scheme"
            ) from error

    def __reduce__(self) -> tuple[type["Folder"], tuple[str]]:
        return Folder, (self.url,)

    def __truediv__(self, name: str) -> "Folder":
        return Folder(posixpath.join(self.url, name))

    def __str__(self) -> str:
        return self.url

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a local disk."""
        return isinstance(self._fs, LocalFileSystem)

    @property
    def path(self) -> str:
        """The path inside the file system, without the scheme."""
        return str(self._root)

    def arrow(self) -> pafs.FileSystem:
        """The file system as a pyarrow object, for pyarrow and Ray."""
        if self.is_local:
            return pafs.LocalFileSystem()
        return pafs.PyFileSystem(pafs.FSSpecHandler(self._fs))

    def exists(self, name: str = "") -> bool:
        """Return whether a file or folder exists.

        Args:
            name: Inside the folder; the folder itself when empty.

        Returns:
            Whether it exists.

        Raises:
            DataError: The store does not respond or denies access.
        """
        with self._explained():
            self._fs.invalidate_cache()
            return bool(self._fs.exists(self._at(name)))

    def size(self, name: str = "") -> int:
        """Return the size of a file in bytes."""
        with self._explained():
            self._fs.invalidate_cache()
            return int(self._fs.size(self._at(name)))

    def is_folder(self) -> bool:
        """Return whether this is a folder rather than a file."""
        with self._explained():
            return bool(self._fs.isdir(self._root))

    def files(self, suffix: str = "") -> list[str]:
        """Return the sorted names of the files directly inside; empty if the folder is missing."""
        with self._explained():
            self._fs.invalidate_cache()
            if not self._fs.exists(self._root):
                return []
            entries = self._fs.ls(self._root, detail=True)
        names = [posixpath.basename(e["name"].rstrip("/")) for e in entries if e["type"] == "file"]
        return sorted(name for name in names if name.endswith(suffix))

    def data_files(self) -> list[str]:
        """Return the sorted names of all non-empty files inside, at any depth.

        Path parts that begin with a dot or an underscore mark metadata of other writers; skip them.
        """
        with self._explained():
            self._fs.invalidate_cache()
            found = self._fs.find(self._root, detail=True)
        sizes = {
            str(path)[len(self._root.rstrip("/")) + 1 :]: entry["size"]
            for path, entry in found.items()
        }
        return sorted(
            name
            for name, size in sizes.items()
            if size and not any(part[0] in "._" for part in name.split("/") if part)
        )

    def matching(self) -> list[str]:
        """Return the sorted URLs that match this one as a pattern (``*``, ``?``, ``[a-z]``)."""
        with self._explained():
            self._fs.invalidate_cache()
            found = [str(path) for path in self._fs.glob(self._root)]
        if self.is_local:
            return sorted(found)
        head = self.url[: self.url.index("://") + 3] if "://" in self.url else ""
        return sorted(head + path.removeprefix(head) for path in found)

    def stamp(self, name: str = "") -> str:
        """Return size, modification time and, where a store has one, ETag of a file as text."""
        with self._explained():
            self._fs.invalidate_cache()
            about = self._fs.info(self._at(name))
            try:
                changed = self._fs.modified(self._at(name)).isoformat()
            except NotImplementedError:  # not supported by every store
                changed = "unknown"
        tag = about.get("ETag") or about.get("etag")
        return f"{about['size']} bytes, {changed}" + (f", {str(tag).strip(chr(34))}" if tag else "")

    @contextmanager
    def open(self, name: str = "") -> Iterator[BinaryIO]:
        """Open a file for reading.

        Args:
            name: Inside the folder.

        Yields:
            The open file.

        Raises:
            DataError: It is missing, or the store denies access.
        """
        with self._explained(), self._fs.open(self._at(name), "rb") as file:
            yield cast("BinaryIO", file)

    def read(self, name: str = "") -> bytes:
        """Return the bytes of a file."""
        with self.open(name) as file:
            return file.read()

    def read_json(self, name: str) -> Any:
        """Return the content of a JSON file.

        Args:
            name: Inside the folder.

        Returns:
            The content.

        Raises:
            DataError: It is missing or not valid JSON.
        """
        try:
            return json.loads(self.read(name))
        except ValueError as error:  # not JSON, or not UTF-8
            raise DataError(
                f"{self / name} is not valid JSON: {error}; the file is damaged, write it again"
            ) from error

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically: a reader sees the old content or the new, never a part."""
        target = self._at(name)
        with self._explained():
            if self._has_folders:
                self._fs.makedirs(posixpath.dirname(target), exist_ok=True)
            if self.is_local:
                part = _unfinished(Path(target))
                try:
                    part.write_bytes(content)
                    part.replace(target)
                finally:  # a full disk, say
                    part.unlink(missing_ok=True)
            else:
                self._fs.pipe_file(target, content)

    def folders(self) -> list[str]:
        """Return the sorted names of the folders directly inside."""
        with self._explained():
            self._fs.invalidate_cache()
            if not self._fs.exists(self._root):
                return []
            entries = self._fs.ls(self._root, detail=True)
        return sorted(
            posixpath.basename(e["name"].rstrip("/")) for e in entries if e["type"] == "directory"
        )

    def upload(self, name: str, source: Path) -> Transferred:
        """Copy a local file here atomically, reading it in pieces.

        Args:
            name: Inside the folder.
            source: The local file.

        Returns:
            ``bytes`` and ``sha256`` of the copy.

        Raises:
            DataError: The store failed, or fewer bytes arrived than were sent.
        """
        target = self._at(name)
        with self._explained(), source.open("rb") as file:
            if self._has_folders:
                self._fs.makedirs(posixpath.dirname(target), exist_ok=True)
            if self.is_local:
                entry = _copied_whole(file, Path(target))
            else:
                with self._fs.open(target, "wb") as sink:
                    entry = _copied(file, sink)
        if self.size(name) != entry.bytes:
            raise DataError(
                f"{self / name}: {self.size(name)} of {entry.bytes} bytes arrived; check the "
                "store and its free space"
            )
        return entry

    def download(self, name: str, target: Path) -> Transferred:
        """Copy a file to a local path in pieces; return ``bytes`` and ``sha256``."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.open(name) as file, target.open("wb") as sink:
            return _copied(file, sink)

    def require_writable(self) -> None:
        """Write and remove a small file, so that access errors surface before the work starts.

        Raises:
            DataError: The store denies access, or the disk is full.
        """
        for left in self.files():
            if left.startswith(_PROBE):  # by a process that was killed
                self.remove(left)
        name = _PROBE + uuid.uuid4().hex[:8]
        self.write(name, b"distrib\n")
        self.remove(name)

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file atomically with sorted keys; equal content gives equal bytes."""
        self.write(name, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())

    def read_parquet(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Return a Parquet file as a table."""
        return pq.read_table(pa.BufferReader(self.read(name)), columns=columns)

    def write_parquet(self, name: str, content: pa.Table) -> bytes:
        """Write a Parquet file atomically and return its bytes; equal tables give equal bytes."""
        written = parquet_bytes(content)
        self.write(name, written)
        return written

    def move(self, name: str, target: "Folder", new_name: str) -> None:
        """Move a file to another folder of the same store, replacing an existing file."""
        with self._explained():
            if self.is_local:
                Path(self._at(name)).replace(target._at(new_name))
            else:
                self._fs.mv(self._at(name), target._at(new_name))

    def remove(self, name: str = "") -> None:
        """Remove a file, or a folder and its contents, if it exists."""
        with self._explained():
            if self._fs.exists(self._at(name)):
                self._fs.rm(self._at(name), recursive=True)

    @property
    def _has_folders(self) -> bool:
        """Whether folders must be created; on an object store that would create the bucket."""
        protocols = self._fs.protocol
        named = {protocols} if isinstance(protocols, str) else set(protocols)
        return not named & _OBJECT_STORES

    def _at(self, name: str) -> str:
        return posixpath.join(self._root, name) if name else self._root

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise DataError(
                f"{self.url}: no such file or bucket ({error}); check the URL"
            ) from error
        except PermissionError as error:
            raise DataError(
                f"{self.url}: access denied ({error}); check the credentials"
            ) from error
        except Exception as error:
            if not _is_of_a_store(error):
                raise
            if getattr(error, "errno", None) in FULL:
                raise DataError(
                    f"{self.url}: no space left ({error}); free some, or keep fewer checkpoints"
                ) from error
            raise DataError(
                f"{self.url}: the store failed ({error}); check it and the credentials, then retry"
            ) from error


def parquet_bytes(content: pa.Table) -> bytes:
    """Return a Parquet file; equal tables give equal bytes."""
    sink = io.BytesIO()
    pq.write_table(content, sink, compression="zstd", row_group_size=16_384)
    return sink.getvalue()


def absolute(url: str) -> str:
    """Return a path that means the same in every process; other URLs do."""
    return url if "://" in url or "::" in url else str(Path(url).expanduser().absolute())


def last_part(url: str) -> str:
    """Return the last part of a path or URL, by which people know a folder."""
    return url.rstrip("/").rsplit("/", 1)[-1]


def _unfinished(target: Path) -> Path:
    """Return a temporary name next to the target that folder readers skip if it is left behind."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")


def _copied_whole(source: IO[bytes], target: Path) -> Transferred:
    """Copy to a local file that appears only when it is fully on disk."""
    part = _unfinished(target)
    try:
        with part.open("wb") as sink:
            entry = _copied(source, sink)
            os.fsync(sink.fileno())
        part.replace(target)
    finally:  # a full disk, say
        part.unlink(missing_ok=True)
    return entry


def _copied(source: IO[bytes], sink: IO[bytes]) -> Transferred:
    """Copy all bytes; return their count and digest."""
    digest, size = hashlib.sha256(), 0
    while piece := source.read(_PIECE_BYTES):
        sink.write(piece)
        digest.update(piece)
        size += len(piece)
    return Transferred(size, digest.hexdigest())


def _is_of_a_store(error: Exception) -> bool:
    """Return whether a store raised the error; some clients raise their own exception types."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in _CLIENTS
