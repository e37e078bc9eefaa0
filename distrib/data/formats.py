"""Raw layouts of rating logs: files in, checked interactions out, every row accounted for."""

import gzip
import zlib
from collections.abc import Iterator
from typing import Annotated, BinaryIO, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from pydantic import AfterValidator, Field, model_validator

from distrib.config import Config
from distrib.data.columns import whole
from distrib.data.schema import Status, interactions
from distrib.data.synthetic import SyntheticSource
from distrib.errors import DataError
from distrib.storage import Folder

_CHUNK_BYTES = 32 << 20
_UNIT_SEPARATOR = b"\x1f"
_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"
_INTEGER = r"^\s*[-+]?\d{1,18}\s*$"
_LEVEL_TOLERANCE = 1e-4
_LATEST_S = 1e15  # far beyond any time, and exact in a float64
_WHOLE_STARS = (1.0, 2.0, 3.0, 4.0, 5.0)
_HALF_STARS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
_MOVIELENS_HEADER = ("userId", "movieId", "rating", "timestamp")

IdKind = Literal["int", "string"]


def _ascending(levels: tuple[float, ...]) -> tuple[float, ...]:
    if not levels or list(levels) != sorted(set(levels)):
        raise ValueError("levels must be one or more different numbers in ascending order")
    return levels


Levels = Annotated[tuple[float, ...], AfterValidator(_ascending)]


class Columns(Config):
    """Which columns of a log hold what."""

    user: str
    """Column of the user id."""

    item: str
    """Column of the item id."""

    rating: str | None = None
    """Column of the rating; without it every interaction counts as 1."""

    time: str | None = None
    """Column of the time in seconds since 1970; a row without one counts as oldest, and without the
    column interactions are ordered by item id."""

    @model_validator(mode="after")
    def _one_column_one_meaning(self) -> "Columns":
        if len(set(self.names())) != len(self.names()):
            raise ValueError(f"one column has two meanings: {self.names()}; map each but once")
        return self

    def names(self) -> list[str]:
        """Return the columns that are read."""
        return [name for name in (self.user, self.item, self.rating, self.time) if name is not None]


class MovieLensSource(Config):
    """A MovieLens rating file: ``u.data``, ``ratings.dat`` or ``ratings.csv``, plain or gzip."""

    format: Literal["movielens"] = "movielens"

    path: str
    """Path or URL of the file; the layout is told from its first line."""

    levels: Levels | None = None
    """Rating levels, ascending; whole stars for the two older layouts, half stars for CSV."""


class _MappedSource(Config):
    path: str
    """Path or URL of a file, or of a folder whose files are all read."""

    columns: Columns
    """Which columns hold what."""

    levels: Levels | None = None
    """Declared rating levels, ascending; needed with a rating column, absent without one."""

    @model_validator(mode="after")
    def _levels_belong_to_ratings(self) -> "_MappedSource":
        if (self.levels is None) != (self.columns.rating is None):
            raise ValueError(
                "give columns.rating and levels together, or neither for a log without ratings"
            )
        return self


class CsvSource(_MappedSource):
    """Delimited text with any columns, plain or gzip."""

    format: Literal["csv"] = "csv"

    separator: Annotated[str, Field(min_length=1)] = ","
    """One or more characters between fields."""

    header: tuple[str, ...] | None = None
    """Column names of a file that has no header line."""

    ids: IdKind = "string"
    """Kind of the user and item ids."""


class ParquetSource(_MappedSource):
    """Parquet with any columns; integer ids stay integers, all else becomes text."""

    format: Literal["parquet"] = "parquet"


class SyntheticLog(SyntheticSource):
    """A log drawn from a known process."""


Source = Annotated[
    MovieLensSource | CsvSource | ParquetSource | SyntheticLog, Field(discriminator="format")
]


class Layout(NamedTuple):
    """How to read the files of a source, found out before any task starts."""

    files: tuple[str, ...]
    kind: Literal["text", "parquet"]
    columns: Columns
    levels: tuple[float, ...]
    id_kind: IdKind
    separator: str = ","
    header: tuple[str, ...] | None = None
    is_quoted: bool = True

    @property
    def id_type(self) -> pa.DataType:
        """Arrow type of the ids."""
        return pa.int64() if self.id_kind == "int" else pa.string()

    @property
    def schema(self) -> pa.Schema:
        """Schema of what `read` yields."""
        return interactions(self.id_type)


def inspect(source: MovieLensSource | CsvSource | ParquetSource) -> Layout:
    """Look at the first line of a source and settle how to read it.

    Args:
        source: What the run file says.

    Returns:
        How to read the files.

    Raises:
        DataError: A file is absent or empty, a column is not there, or the layout is not known.
    """
    if isinstance(source, MovieLensSource):
        return _inspect_movielens(source)
    files = _files(source.path)
    levels = source.levels or (1.0,)
    if isinstance(source, CsvSource):
        header = source.header or tuple(_first_line(files[0]).split(source.separator))
        _require_columns(source.columns, [name.strip('"') for name in header], files[0])
        return Layout(
            files, "text", source.columns, levels, source.ids, source.separator, source.header
        )
    try:
        with Folder(files[0]).open() as file:
            schema = pq.read_schema(file)
    except pa.ArrowException as error:
        raise DataError(f"{files[0]}: is no Parquet file ({error}); check data.source") from error
    _require_columns(source.columns, schema.names, files[0])
    are_integers = all(
        pa.types.is_integer(schema.field(name).type)
        for name in (source.columns.user, source.columns.item)
    )
    return Layout(files, "parquet", source.columns, levels, "int" if are_integers else "string")


def read(file: str, layout: Layout) -> Iterator[pa.Table]:
    """Yield the rows of one file, checked, in bounded pieces.

    Args:
        file: One of the layout's files.
        layout: What `inspect` found.

    Yields:
        Tables of `schema.interactions`; column ``shard`` is 0 still, and the values of a row that
        is not kept are null.
    """
    try:
        yield from _pieces(file, layout)
    except (pa.ArrowException, zlib.error, UnicodeDecodeError) as error:
        raise DataError(
            f"{file}: cannot be read as {layout.kind} with columns {layout.columns.names()}: "
            f"{error}; convert or leave out the file"
        ) from error


def _pieces(file: str, layout: Layout) -> Iterator[pa.Table]:
    if layout.kind == "parquet":
        with Folder(file).open() as stream:
            for piece in pq.ParquetFile(stream).iter_batches(columns=layout.columns.names()):
                yield checked(pa.Table.from_batches([piece]), layout)
        return
    header = layout.header
    yield layout.schema.empty_table()  # so that a file of a header alone has columns too
    for text in _text_chunks(file):
        if header is None:
            header = _header_of(text, layout)
            _require_columns(layout.columns, list(header), file)
            text = text[text.find(b"\n") + 1 :] if b"\n" in text else b""
        if text.strip():
            table, num_malformed = _parse(text, layout, header)
            yield checked(table, layout)
            if num_malformed:
                yield _rejected(num_malformed, layout)


def checked(table: pa.Table, layout: Layout) -> pa.Table:
    """Turn raw columns (text or typed) into interactions with a status.

    Args:
        table: The columns that the layout names.
        layout: How to read them.

    Returns:
        One row of `schema.interactions` for each row given.
    """
    columns, num_rows = layout.columns, len(table)
    status = np.zeros(num_rows, dtype=np.int8)

    def reject(bad: np.ndarray, reason: Status) -> None:
        status[bad & (status == Status.KEPT)] = reason

    user, item = (_ids(table[name], layout.id_kind) for name in (columns.user, columns.item))
    reject(_null(user) | _null(item), Status.MISSING_ID)
    if columns.rating is None:
        rating = pa.array(np.ones(num_rows, dtype=np.float32))
    else:
        rating = _numbers(table[columns.rating], _NUMBER, pa.float32())
        reject(_null(rating), Status.RATING_NOT_A_NUMBER)
        values = rating.fill_null(np.nan).to_numpy(zero_copy_only=False)
        reject(~on_scale(values, layout.levels), Status.RATING_OUTSIDE_SCALE)
    if columns.time is None:
        time = pa.array(np.zeros(num_rows, dtype=np.int64))
    else:
        time = _times(table[columns.time])
        reject(_null(time) & ~_null(whole(table[columns.time])), Status.TIME_NOT_A_NUMBER)
        time = time.fill_null(0)  # a row without a time is as good as the others, and the oldest
    parts = [user, item, rating, time, pa.array(status), pa.array(np.zeros(num_rows, np.int32))]
    return pa.table(parts, schema=layout.schema)


def _inspect_movielens(source: MovieLensSource) -> Layout:
    files = _files(source.path)
    first = _first_line(files[0])
    columns = Columns(
        **dict(zip(("user", "item", "rating", "time"), _MOVIELENS_HEADER, strict=True))
    )
    if tuple(first.split(",")) == _MOVIELENS_HEADER:
        return Layout(files, "text", columns, source.levels or _HALF_STARS, "int")
    for separator in ("::", "\t"):
        if len(first.split(separator)) == len(_MOVIELENS_HEADER):
            levels = source.levels or _WHOLE_STARS
            return Layout(
                files, "text", columns, levels, "int", separator, _MOVIELENS_HEADER, False
            )
    raise DataError(
        f"{files[0]}: first line {first[:80]!r} is none of the MovieLens layouts (u.data, "
        'ratings.dat, ratings.csv); use format = "csv" with a column mapping'
    )


def _files(url: str) -> tuple[str, ...]:
    folder = Folder(url)
    if not folder.exists():
        raise DataError(f"{url}: no such file, folder or bucket; check data.source.path")
    files: tuple[str, ...] = (str(folder),)
    if folder.is_folder():  # marks of other writers, like _SUCCESS, are no data
        files = tuple(str(folder / name) for name in folder.files() if name[0] not in "._")
    if sum(Folder(file).size() for file in files) == 0:
        raise DataError(f"{url}: the log is empty (0 bytes); nothing to prepare")
    return files


def _first_line(file: str) -> str:
    with Folder(file).open() as stream:
        line = _plain(stream, file).readline().decode("utf-8-sig", errors="replace").rstrip("\r\n")
    if not line:
        raise DataError(f"{file}: the log is empty (its first line is); nothing to prepare")
    return line


def _require_columns(columns: Columns, present: list[str], file: str) -> None:
    absent = [name for name in columns.names() if name not in present]
    if absent:
        raise DataError(
            f"{file}: no column(s) {absent}; it has {present}; correct data.source.columns"
        )


def _plain(stream: BinaryIO, file: str) -> BinaryIO:
    return gzip.GzipFile(fileobj=stream) if file.endswith(".gz") else stream  # type: ignore[return-value]


def _text_chunks(file: str) -> Iterator[bytes]:
    """Cut a text file into pieces that end at line ends."""
    rest = b""
    with Folder(file).open() as stream:
        for block in _read_blocks(_plain(stream, file), file):
            cut = block.rfind(b"\n") + 1
            if cut:
                yield rest + block[:cut]
                rest = b""
            rest += block[cut:]
    if rest.strip():
        yield rest


def _read_blocks(stream: BinaryIO, file: str) -> Iterator[bytes]:
    try:
        while block := stream.read(_CHUNK_BYTES):
            yield block
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{file}: the gzip file is damaged ({error}); fetch it anew") from error


def _header_of(text: bytes, layout: Layout) -> tuple[str, ...]:
    first = text.partition(b"\n")[0].decode("utf-8-sig").rstrip("\r")
    return tuple(name.strip('"') for name in first.split(layout.separator))


def _parse(text: bytes, layout: Layout, header: tuple[str, ...]) -> tuple[pa.Table, int]:
    """Parse a piece of text without header; return its rows, and the number that are none."""
    separator = layout.separator
    if len(separator) > 1:
        text, separator = text.replace(separator.encode(), _UNIT_SEPARATOR), "\x1f"
    num_malformed = 0

    def skip(_row: pacsv.InvalidRow) -> str:
        nonlocal num_malformed
        num_malformed += 1
        return "skip"

    table = pacsv.read_csv(
        pa.BufferReader(text),
        read_options=pacsv.ReadOptions(column_names=header, use_threads=False),
        parse_options=pacsv.ParseOptions(
            delimiter=separator,
            quote_char='"' if layout.is_quoted else False,
            invalid_row_handler=skip,
        ),
        convert_options=pacsv.ConvertOptions(
            include_columns=layout.columns.names(),
            column_types=dict.fromkeys(layout.columns.names(), pa.string()),
            strings_can_be_null=True,
            null_values=[""],
        ),
    )
    return table, num_malformed


def _rejected(num_rows: int, layout: Layout) -> pa.Table:
    nothing = {field.name: pa.nulls(num_rows, field.type) for field in layout.schema}
    nothing["status"] = pa.array(np.full(num_rows, Status.MALFORMED, np.int8))
    nothing["shard"] = pa.array(np.zeros(num_rows, np.int32))
    return pa.table(nothing, schema=layout.schema)


def _ids(column: pa.ChunkedArray, kind: IdKind) -> pa.Array:
    if kind == "int":
        return _numbers(column, _INTEGER, pa.int64())
    text = whole(column.cast(pa.string()))
    return pc.if_else(pc.equal(text, ""), None, text)


def _numbers(column: pa.ChunkedArray, pattern: str, kind: pa.DataType) -> pa.Array:
    """Convert to numbers; what is none becomes null."""
    array = whole(column)
    if pa.types.is_large_string(array.type):
        array = array.cast(pa.string())
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_finite(array), array, None)
    if not pa.types.is_string(array.type):
        return array.cast(kind, safe=pa.types.is_integer(kind))
    try:
        return array.cast(kind)
    except pa.ArrowInvalid:
        clean = pc.utf8_trim_whitespace(array)
        return pc.if_else(pc.match_substring_regex(clean, pattern), clean, None).cast(kind)


def _times(column: pa.ChunkedArray) -> pa.Array:
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return whole(column.cast(pa.timestamp("s"), safe=False).cast(pa.int64()))
    number = _numbers(column, _NUMBER, pa.float64())
    possible = pc.less(pc.abs(number), _LATEST_S)
    return pc.if_else(possible, number, None).cast(pa.int64(), safe=False)


def on_scale(values: np.ndarray, levels: tuple[float, ...]) -> np.ndarray:
    """Tell which ratings are one of the levels, bool; NaN is none."""
    scale = np.asarray(levels)
    nearest = scale[np.abs(values[:, None] - scale[None, :]).argmin(1)]
    return np.asarray(np.abs(values - nearest) < _LEVEL_TOLERANCE)


def _null(array: pa.Array) -> np.ndarray:
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False))
