"""Text logs as bytes: plain or compressed, whole or by range, always cut at the ends of lines."""

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distrib.errors import DataError
from distrib.storage import Folder

RANGE_BYTES = 64 << 20
"""A plain file is cut into ranges of this size; the unit of parallel reading."""

_CHUNK_BYTES = 16 << 20
_STEP_BYTES = 64 << 10
_CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = (b"\xff\xfe", b"\xfe\xff")
_DAMAGES = (OSError, EOFError, zlib.error, zipfile.BadZipFile, pa.ArrowException)
_OF_THE_STORE = (FileNotFoundError, PermissionError, ConnectionError, TimeoutError)


class LogFile(NamedTuple):
    """A file of a log."""

    url: str
    origin: int
    """An `Origin`."""

    member: str = ""
    """Inside a zip archive."""

    @property
    def label(self) -> str:
        """What to call it in a message."""
        return f"{self.url}:{self.member}" if self.member else self.url

    @property
    def name(self) -> str:
        """Name of what is read, without the suffix of a compression."""
        name = self.member or self.url
        suffix = next((suffix for suffix in _CODECS if name.endswith(suffix)), "")
        return name.removesuffix(suffix)

    @property
    def is_plain(self) -> bool:
        """Whether byte ranges of it can be read on their own."""
        return not self.member and self.name == self.url


def archive_members(url: str) -> list[str]:
    """Return the names of the files in a zip archive.

    Args:
        url: Of the archive.

    Returns:
        Sorted names, without folders and hidden files.

    Raises:
        DataError: It is no zip archive, or a truncated one.
    """
    with Folder(url).open() as stream:
        try:
            names = zipfile.ZipFile(stream).namelist()
        except zipfile.BadZipFile as error:
            raise DataError(
                f"{url}: not a complete zip archive ({error}); fetch it again"
            ) from error
    return sorted(n for n in names if not n.endswith("/") and n.rsplit("/", 1)[-1][0] not in "._")


def first_lines(file: LogFile, count: int) -> list[str]:
    """Return the first lines of a file, without line ends.

    Args:
        file: Which.
        count: At most so many.

    Returns:
        Those that are not empty.

    Raises:
        DataError: There is none, or the file is damaged or UTF-16.
    """
    head = b""
    with _opened(file) as stream:
        while head.count(b"\n") < count and (more := stream.read(_STEP_BYTES)):
            head += more
    if head.startswith(_OTHER_BOMS):
        raise DataError(f"{file.label}: is UTF-16 text; convert it to UTF-8")
    lines = head.decode("utf-8-sig", errors="replace").split("\n")[:count]
    found = [whole for line in lines if (whole := line.removesuffix("\r"))]
    if not found:
        raise DataError(f"{file.label}: the log is empty (its first line is); nothing to prepare")
    return found


def chunks(file: LogFile, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Yield the lines of a file, or those that begin in a byte range, in pieces of bounded size.

    A byte-order mark at the start of the file is left out.

    Args:
        file: Which.
        start: First byte of the range; for plain files only.
        stop: End of the range, None for the end of the file.

    Yields:
        Whole lines; only the last line of the file may lack its end.

    Raises:
        DataError: The file is damaged, or the store refuses.
    """
    with _opened(file, start) as stream:
        limit = None if stop is None else stop - max(start - 1, 0)
        blocks = _blocks(stream, limit)
        if start:
            blocks = _after_first_line(blocks)
        for position, text in enumerate(_whole_lines(blocks)):
            yield text.removeprefix(BOM) if position == 0 and start == 0 else text


def ranges(file: LogFile) -> list[tuple[int, int | None]]:
    """Cut a file into byte ranges; a compressed one stays whole."""
    if not file.is_plain:
        return [(0, None)]
    size = Folder(file.url).size()
    return [
        (start, min(start + RANGE_BYTES, size)) for start in range(0, max(size, 1), RANGE_BYTES)
    ]


def count_lines(text: bytes) -> int:
    """Count the line ends, several times as fast as ``text.count`` where lines are short."""
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord("\n")))


def line_bounds(text: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return where each line begins, and where it ends without its line end."""
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
    if not text.endswith(b"\n"):
        ends = np.append(ends, len(text))
    starts = np.append(0, ends[:-1] + 1)
    has_return = (ends > starts) & (np.frombuffer(text, np.uint8)[np.maximum(ends - 1, 0)] == 13)
    return starts, ends - has_return


@contextmanager
def _opened(file: LogFile, start: int = 0) -> Iterator[BinaryIO]:
    """Open the text of a file; errors inside are raised as faults of the file."""
    with Folder(file.url).open() as raw, _explained(file), ExitStack() as stack:
        if file.member:
            archive = stack.enter_context(zipfile.ZipFile(raw))
            yield _decompressed(stack.enter_context(archive.open(file.member)), file)
        else:
            raw.seek(max(start - 1, 0))  # a range may begin right after a line end
            yield _decompressed(raw, file)


@contextmanager
def _explained(file: LogFile) -> Iterator[None]:
    try:
        yield
    except _DAMAGES as error:
        if file.is_plain or isinstance(error, _OF_THE_STORE):
            raise
        raise DataError(f"{file.label}: damaged ({error}); fetch it again") from error


def _decompressed(stream: Any, file: LogFile) -> BinaryIO:
    name = file.member or file.url
    codec = next((codec for suffix, codec in _CODECS.items() if name.endswith(suffix)), None)
    if codec is None:
        return stream  # type: ignore[no-any-return]
    return pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), codec)  # type: ignore[no-any-return]


def _blocks(stream: BinaryIO, limit: int | None) -> Iterator[bytes]:
    """Yield what is in the stream up to the first line end at or after ``limit`` bytes."""
    left = limit
    while left is None or left > 0:
        size = _CHUNK_BYTES if left is None else min(left, _CHUNK_BYTES)
        block = stream.read(size)
        if not block:
            return
        left = None if left is None else left - len(block)
        if left == 0 and not block.endswith(b"\n"):
            block += _rest_of_line(stream)
        yield block


def _rest_of_line(stream: BinaryIO) -> bytes:
    rest = io.BytesIO()
    while step := stream.read(_STEP_BYTES):
        cut = step.find(b"\n") + 1
        rest.write(step[:cut] if cut else step)
        if cut:
            break
    return rest.getvalue()


def _after_first_line(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Leave out all up to the first line end: that line belongs to the range before."""
    for block in blocks:
        cut = block.find(b"\n") + 1
        if cut:
            yield block[cut:]
            break
    yield from blocks


def _whole_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        cut = block.rfind(b"\n") + 1
        if cut:
            yield rest + block[:cut]
            rest = b""
        rest += block[cut:]
    if rest:
        yield rest
