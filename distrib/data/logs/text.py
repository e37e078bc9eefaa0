"""Text logs as bytes: plain or compressed, whole or by range, always cut at the ends of lines."""

import codecs
import io
import lzma
import re
import urllib.parse
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distrib.errors import DataError
from distrib.storage import Folder

RANGE_BYTES = 64 << 20
"""A plain file is cut into ranges of this size; the unit of parallel reading."""

LONGEST_LINE = 16 << 20
"""Bytes; more without a line end is no line of a log."""

_CHUNK_BYTES = 16 << 20
_STEP_BYTES = 64 << 10
_SNIFFED_BYTES = 64 << 10
_REMARKS = 1000
_MOST_ZEROS = 0.02
_SUFFIXES = (".gz", ".zst", ".bz2", ".lz4", ".xz")
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bz2",
    b"\x04\x22\x4d\x18": "lz4",
    b"\xfd7zXZ\x00": "xz",
}
_ARCHIVES = {
    b"PK\x03\x04": "a zip archive or a workbook; unpack it, or save it as CSV",
    b"7z\xbc\xaf": "a 7z archive; unpack it (7z x)",
    b"Rar!": "a RAR archive; unpack it (unrar x)",
    b"PAR1": 'a Parquet file; set data.source.format = "parquet"',
    b"SQLite format 3": "a SQLite database; export the table as CSV",
    b"Obj\x01": "an Avro file; convert it to Parquet",
    b"ORC": "an ORC file; convert it to Parquet",
    b"\x89HDF": "an HDF5 file; convert it to Parquet",
    b"\x93NUMPY": "a NumPy array; convert it to Parquet",
}
_TAR_PLACE = 257
BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = (b"\xff\xfe", b"\xfe\xff")
_DAMAGES = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, pa.ArrowException)
_OF_THE_STORE = (FileNotFoundError, PermissionError, ConnectionError, TimeoutError)


class LogFile(NamedTuple):
    """A file of a log."""

    url: str
    origin: int
    """An `Origin`."""

    member: str = ""
    """Inside a zip archive."""

    codec: str = ""
    """Of the compression."""

    encoding: str = "utf-8"
    has_carriage_returns: bool = False
    """Whether lines end in a carriage return alone."""

    stamp: str = ""
    """Size and time when the log was listed; see `Folder.stamp`."""

    @property
    def label(self) -> str:
        """What to call it in a message."""
        return f"{self.url}:{self.member}" if self.member else self.url

    @property
    def name(self) -> str:
        """Name of what is read, without the suffix of a compression."""
        name = self.member or self.url
        suffix = next((suffix for suffix in _SUFFIXES if name.lower().endswith(suffix)), "")
        return name[: len(name) - len(suffix)]

    @property
    def is_wide(self) -> bool:
        """Whether a line end takes more than one byte."""
        return codecs.lookup(self.encoding).name.startswith(("utf-16", "utf-32"))

    @property
    def is_plain(self) -> bool:
        """Whether byte ranges of it can be read on their own."""
        return not self.member and not self.codec and not self.is_wide

    @property
    def partition(self) -> dict[str, str | None]:
        """Columns that stand in the path only: ``dt=2024-01-01/event=buy/part-0.parquet``."""
        folders = f"{self.url}/{self.member}".split("/")[:-1]
        found = [folder.partition("=") for folder in folders if re.match(r"\w+=", folder)]
        return {
            name: None if value == "__HIVE_DEFAULT_PARTITION__" else urllib.parse.unquote(value)
            for name, _, value in found
        }


def sniffed(file: LogFile) -> LogFile:
    """Look at the first bytes of a text file: how it is compressed, and how its lines end.

    Args:
        file: As listed.

    Returns:
        The file with what was found.

    Raises:
        DataError: It is an archive or a binary file of another kind.
    """
    head = _head(file)
    codec = next((codec for magic, codec in _MAGIC.items() if head.startswith(magic)), "")
    file = file._replace(codec=codec)
    if codec:
        head = _head(file)
    if head[_TAR_PLACE : _TAR_PLACE + 5] == b"ustar":
        raise DataError(
            f"{file.label}: is a tar archive; unpack it (tar -xf) and name the file or folder"
        )
    for magic, what in _ARCHIVES.items():
        if head.startswith(magic):
            raise DataError(f"{file.label}: is {what}")
    if head.startswith(_OTHER_BOMS) and not file.is_wide:
        raise DataError(
            f'{file.label}: is UTF-16 text; set data.source.encoding = "utf-16" (csv), or convert '
            "it to UTF-8"
        )
    if head.count(b"\0") > len(head) * _MOST_ZEROS and not file.is_wide:
        raise DataError(f"{file.label}: holds zero bytes, so it is not text; check data.source")
    return file._replace(has_carriage_returns=b"\r" in head[:-1] and b"\n" not in head)


def _head(file: LogFile) -> bytes:
    with _opened(file) as stream:
        return stream.read(_SNIFFED_BYTES)


def archive_members(url: str) -> list[str]:
    """Return the names of the files in a zip archive.

    Args:
        url: Of the archive.

    Returns:
        Sorted names, without folders and hidden files.

    Raises:
        DataError: It is no zip archive, a truncated one, or cannot be read.
    """
    with Folder(url).open() as stream:
        try:
            entries = zipfile.ZipFile(stream).infolist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise DataError(
                f"{url}: not a complete zip archive ({error}); fetch it again"
            ) from error
    shown = [e for e in entries if e.filename and not e.is_dir()]
    shown = [e for e in shown if e.filename.rsplit("/", 1)[-1][:1] not in ("", ".", "_")]
    if not shown:
        raise DataError(f"{url}: the archive holds no files; check data.source.path")
    if any(entry.flag_bits & 1 for entry in shown):
        raise DataError(f"{url}: the archive is encrypted; unpack it with its password")
    return sorted(entry.filename for entry in shown)


def first_lines(file: LogFile, count: int, comment: str = "") -> list[str]:
    """Return the first lines of a file, without line ends.

    Args:
        file: Which.
        count: At most so many.
        comment: Lines that begin with it are left out.

    Returns:
        Those that are not empty.

    Raises:
        DataError: There is none, the first one has no end, or the file is damaged.
    """
    blocks, size, ends = [], 0, 0
    most = count + _REMARKS if comment else count
    with _opened(file) as stream:
        while ends < most and size < LONGEST_LINE and (more := stream.read(_STEP_BYTES)):
            blocks.append(more)
            size += len(more)
            ends += more.count(b"\n")
    if not ends and size >= LONGEST_LINE:
        raise _too_long(file)
    head = b"".join(blocks)
    encoding = "utf-8-sig" if file.is_wide or file.encoding == "utf-8" else file.encoding
    lines = head.decode(encoding, errors="replace").split("\n")[:most]
    found = [whole for line in lines if (whole := line.removesuffix("\r"))]
    found = [line for line in found if not comment or not line.startswith(comment)]
    if not found:
        raise DataError(f"{file.label}: the log is empty (its first line is); nothing to prepare")
    return found[:count]


def _too_long(file: LogFile) -> DataError:
    return DataError(
        f"{file.label}: a line is longer than {LONGEST_LINE >> 20} MB; check data.source.format, "
        "and that lines have ends"
    )


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
        blocks = _blocks(stream, limit, file)
        if start:
            blocks = _after_first_line(blocks)
        for position, text in enumerate(_whole_lines(blocks, file)):
            if not file.is_wide and file.encoding != "utf-8":
                yield text.decode(file.encoding, errors="replace").encode()
            else:
                yield text.removeprefix(BOM) if position == 0 and start == 0 else text


def ranges(file: LogFile) -> list[tuple[int, int | None]]:
    """Cut a file into byte ranges; a compressed one stays whole."""
    if not file.is_plain:
        return [(0, None)]
    starts = range(0, max(Folder(file.url).size(), 1), RANGE_BYTES)
    return [(start, start + RANGE_BYTES if start != starts[-1] else None) for start in starts]


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
            member = stack.enter_context(archive.open(file.member))
            yield _translated(_decompressed(member, file), file)
        else:
            raw.seek(max(start - 1, 0))  # a range may begin right after a line end
            yield _translated(_decompressed(raw, file), file)


@contextmanager
def _explained(file: LogFile) -> Iterator[None]:
    try:
        yield
    except NotImplementedError as error:  # a compression that zipfile does not know
        raise DataError(f"{file.label}: {error}; unpack the archive") from error
    except _DAMAGES as error:
        if file.is_plain or isinstance(error, _OF_THE_STORE):
            raise
        raise DataError(f"{file.label}: damaged ({error}); fetch it again") from error


def _decompressed(stream: Any, file: LogFile) -> BinaryIO:
    if not file.codec:
        return stream  # type: ignore[no-any-return]
    if file.codec == "xz":
        return cast("BinaryIO", lzma.LZMAFile(stream))
    return pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), file.codec)  # type: ignore[no-any-return]


def _translated(stream: BinaryIO, file: LogFile) -> BinaryIO:
    is_plain = not file.is_wide and not file.has_carriage_returns
    return stream if is_plain else cast("BinaryIO", _Translated(stream, file))


class _Translated:
    """Reads wide text as UTF-8, and carriage returns as line ends."""

    def __init__(self, stream: BinaryIO, file: LogFile) -> None:
        self.stream, self.file = stream, file
        self.decoder = codecs.getincrementaldecoder(file.encoding)("replace")

    def read(self, size: int) -> bytes:
        """Read about as many bytes; none at the end only."""
        while block := self.stream.read(size):
            text = self.decoder.decode(block).encode() if self.file.is_wide else block
            if text:
                return text.replace(b"\r", b"\n") if self.file.has_carriage_returns else text
        return self.decoder.decode(b"", final=True).encode() if self.file.is_wide else b""


def _blocks(stream: BinaryIO, limit: int | None, file: LogFile) -> Iterator[bytes]:
    """Yield what is in the stream up to the first line end at or after ``limit`` bytes."""
    left = limit
    while left is None or left > 0:
        size = _CHUNK_BYTES if left is None else min(left, _CHUNK_BYTES)
        block = stream.read(size)
        if not block:
            return
        left = None if left is None else left - len(block)
        if left == 0 and not block.endswith(b"\n"):
            block += _rest_of_line(stream, file)
        yield block


def _rest_of_line(stream: BinaryIO, file: LogFile) -> bytes:
    rest = io.BytesIO()
    while step := stream.read(_STEP_BYTES):
        if rest.getbuffer().nbytes > LONGEST_LINE:
            raise _too_long(file)
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


def _whole_lines(blocks: Iterator[bytes], file: LogFile) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        if len(rest) > LONGEST_LINE:
            raise _too_long(file)
        cut = block.rfind(b"\n") + 1
        if cut:
            yield rest + block[:cut]
            rest = b""
        rest += block[cut:]
    if rest:
        yield rest
