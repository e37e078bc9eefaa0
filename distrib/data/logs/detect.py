"""How a log is laid out, found out from its first lines before any task starts."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from distrib.data.logs.config import (
    AmazonSource,
    Columns,
    CsvSource,
    FileSource,
    HetRecSource,
    IdKind,
    JsonLinesSource,
    MatrixSource,
    MovieLensSource,
    ParquetSource,
    RecBoleSource,
    SessionsSource,
    TimeUnit,
)
from distrib.data.logs.text import LogFile, archive_members, first_lines
from distrib.data.schema import Origin
from distrib.errors import DataError
from distrib.storage import Folder

WHOLE_STARS = (1.0, 2.0, 3.0, 4.0, 5.0)
HALF_STARS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)

_SAMPLE_LINES = 5000
_MOVIELENS_HEADER = ("userId", "movieId", "rating", "timestamp")
_MOVIELENS_FILES = ("u.data", "ratings.dat", "ratings.csv")
_AMAZON_2018 = Columns(user="reviewerID", item="asin", rating="overall", time="unixReviewTime")
_AMAZON_2023 = Columns(user="user_id", item="parent_asin", rating="rating", time="timestamp")
_AMAZON_ITEM, _AMAZON_USER = r"[0-9A-Z]{10}", r"A[0-9A-Z]{9,}"
_HETREC = {
    "artistID": (Columns(user="userID", item="artistID", rating="weight"), "s"),
    "timestamp": (
        Columns(user="userID", item="movieID", rating="rating", time="timestamp"),
        "ms",
    ),
    "movieID": (Columns(user="userID", item="movieID", rating="rating"), "s"),
}
_RECBOLE_USUAL = {"rating": "rating", "time": "timestamp"}

Kind = Literal["text", "jsonl", "parquet", "sessions", "matrix", "drawn"]


class Layout(NamedTuple):
    """How to read the files of a log."""

    files: tuple[LogFile, ...]
    kind: Kind
    columns: Columns
    id_kind: IdKind
    levels: tuple[float, ...] | None = None
    """Levels that the format is known to have."""

    separator: str = ","
    header: tuple[str, ...] | None = None
    """Names of the fields of the first file."""

    has_header: bool = False
    """Whether each file has a header line; columns may stand in another order in each."""

    is_typed: bool = False
    """Whether the names in the header carry a type, after a colon."""

    is_quoted: bool = True
    time_unit: TimeUnit = "s"
    json_types: tuple[str, ...] = ()
    """Arrow types of the columns in the first JSON line."""

    absent: str = ""
    """What stands for no item in a sequence, or for no rating in a matrix."""

    @property
    def id_type(self) -> pa.DataType:
        """Arrow type of the ids."""
        return pa.int64() if self.id_kind == "int" else pa.string()

    @property
    def has_time(self) -> bool:
        """Whether rows carry a time, rather than stand in the order of the log."""
        return self.columns.time is not None


def inspect(source: FileSource) -> Layout:
    """Look at the first lines of a log and settle how to read it.

    Args:
        source: What the run file says.

    Returns:
        How to read the files.

    Raises:
        DataError: A file is absent or empty, a column is not there, or the layout is not known.
    """
    return _INSPECTORS[type(source)](source)


def header_of(file: LogFile, layout: Layout) -> tuple[str, ...]:
    """Return the names of a file's columns.

    Args:
        file: One of a log with header lines.
        layout: Of the log.

    Returns:
        Names, without quotes and types.

    Raises:
        DataError: A column that is read is not there.
    """
    names = tuple(
        name.strip().strip('"').partition(":")[0] if layout.is_typed else name.strip().strip('"')
        for name in first_lines(file, 1)[0].split(layout.separator)
    )
    _require_columns(layout.columns, names, file)
    return names


def with_held_out(layout: Layout, source: FileSource, paths: Sequence[tuple[str, int]]) -> Layout:
    """Add the files that a given split holds out; they must be laid out like the log.

    Args:
        layout: Of the log.
        source: The log.
        paths: URLs and their `Origin`.

    Returns:
        The layout of all files.

    Raises:
        DataError: A file is absent or laid out otherwise.
    """
    files = list(layout.files)
    for path, origin in paths:
        other = inspect(source.model_copy(update={"path": path}))
        if other._replace(files=(), header=None) != layout._replace(files=(), header=None):
            raise DataError(
                f"{path}: is not laid out like {source.path}; convert it to that layout"
            )
        files += [file._replace(origin=origin) for file in other.files]
    return layout._replace(files=tuple(files))


def _movielens(source: MovieLensSource) -> Layout:
    files = _files(source.path, _MOVIELENS_FILES)
    first = first_lines(files[0], 1)[0]
    columns = Columns(
        **dict(zip(("user", "item", "rating", "time"), _MOVIELENS_HEADER, strict=True))
    )
    if tuple(name.strip('"') for name in first.split(",")) == _MOVIELENS_HEADER:
        return Layout(
            files, "text", columns, "int", HALF_STARS, header=_MOVIELENS_HEADER, has_header=True
        )
    for separator in ("::", "\t"):
        fields = first.split(separator)
        if len(fields) == len(_MOVIELENS_HEADER):
            levels = HALF_STARS if any("." in f[2] for f in _sample(files[0], separator)) else None
            return Layout(
                files,
                "text",
                columns,
                "int",
                levels or WHOLE_STARS,
                separator,
                _MOVIELENS_HEADER,
                is_quoted=False,
            )
    raise DataError(
        f"{files[0].label}: first line {first[:80]!r} is none of the MovieLens layouts (u.data, "
        'ratings.dat, ratings.csv); use format = "csv" with a column mapping'
    )


def _sample(file: LogFile, separator: str) -> list[list[str]]:
    rows = [line.split(separator) for line in first_lines(file, _SAMPLE_LINES)]
    return [row for row in rows if len(row) == len(rows[0])]


def _amazon(source: AmazonSource) -> Layout:
    files = _files(source.path)
    lines = first_lines(files[0], _SAMPLE_LINES)
    if lines[0].startswith("{"):
        fields = _json_object(lines[0], files[0])
        columns = _AMAZON_2018 if _AMAZON_2018.user in fields else _AMAZON_2023
        unit: TimeUnit = "s" if columns is _AMAZON_2018 else "ms"
        return _json_lines(files, columns, "string", unit)._replace(levels=WHOLE_STARS)
    if lines[0].split(",")[0] == _AMAZON_2023.user:
        header = tuple(lines[0].split(","))
        _require_columns(_AMAZON_2023, header, files[0])
        unit, columns = "ms", _AMAZON_2023
        has_header = True
    else:
        order = source.order if source.order != "auto" else _amazon_order(files[0])
        ids = ("user", "item") if order == "user_first" else ("item", "user")
        header, unit, has_header = (*ids, "rating", "timestamp"), "s", False
        columns = Columns(user="user", item="item", rating="rating", time="timestamp")
    return Layout(
        files, "text", columns, "string", WHOLE_STARS,
        header=header, has_header=has_header, time_unit=unit,
    )  # fmt: skip


def _amazon_order(file: LogFile) -> str:
    """Tell which of the first two columns holds products; their ids have ten characters."""
    rows = _sample(file, ",")

    def share(column: int, pattern: str) -> float:
        return sum(bool(re.fullmatch(pattern, row[column])) for row in rows) / len(rows)

    if len(rows[0]) == len(_MOVIELENS_HEADER):
        fits = {
            "item_first": share(0, _AMAZON_ITEM) * share(1, _AMAZON_USER),
            "user_first": share(1, _AMAZON_ITEM) * share(0, _AMAZON_USER),
        }
        best = max(fits, key=lambda order: fits[order])
        if fits[best] > 0.9 and min(fits.values()) < 0.1:
            return best
    raise DataError(
        f"{file.label}: cannot tell users from products in {','.join(rows[0])[:80]!r}; set "
        'data.source.order to "user_first" or "item_first"'
    )


def _hetrec(source: HetRecSource) -> Layout:
    files = _files(source.path)
    header = tuple(first_lines(files[0], 1)[0].split("\t"))
    for mark, (columns, unit) in _HETREC.items():
        if mark in header and "userID" in header:
            levels = HALF_STARS if "rating" in header else None
            return Layout(
                files, "text", columns, "int", levels, "\t", header,
                has_header=True, is_quoted=False, time_unit=unit,  # type: ignore[arg-type]
            )  # fmt: skip
    raise DataError(
        f"{files[0].label}: header {list(header)} is none of HetRec's tables of users and items; "
        'use format = "csv" with a column mapping'
    )


def _recbole(source: RecBoleSource) -> Layout:
    files = tuple(f for f in _files(source.path) if f.name.endswith(".inter"))
    if not files:
        raise DataError(f"{source.path}: no *.inter files; check data.source.path")
    header = tuple(field.partition(":")[0] for field in first_lines(files[0], 1)[0].split("\t"))
    columns = source.columns
    if columns == RecBoleSource.model_fields["columns"].default:
        usual = {use: name for use, name in _RECBOLE_USUAL.items() if name in header}
        columns = Columns(**{**columns.model_dump(), **usual})
    _require_columns(columns, header, files[0])
    return Layout(
        files, "text", columns, source.ids, None, "\t", header,
        has_header=True, is_typed=True, is_quoted=False,
    )  # fmt: skip


def _csv(source: CsvSource) -> Layout:
    files = _files(source.path)
    lines = [line.split(source.separator) for line in first_lines(files[0], 2)]
    header = source.header or tuple(name.strip().strip('"') for name in lines[0])
    _require_columns(source.columns, header, files[0])
    row = lines[0] if source.header else lines[-1]
    if '"' not in "".join(row) and len(row) != len(header):
        raise DataError(
            f"{files[0].label}: {len(header)} column names {list(header)}, but the first row has "
            f"{len(row)} fields {row}; correct the header, or data.source.header"
        )
    return Layout(
        files, "text", source.columns, source.ids, None, source.separator, header,
        has_header=source.header is None, is_quoted=source.is_quoted, time_unit=source.time_unit,
    )  # fmt: skip


def _plain_json_lines(source: JsonLinesSource) -> Layout:
    return _json_lines(_files(source.path), source.columns, source.ids, source.time_unit)


def _json_lines(
    files: tuple[LogFile, ...], columns: Columns, ids: IdKind, unit: TimeUnit
) -> Layout:
    fields = _json_object(first_lines(files[0], 1)[0], files[0])
    _require_columns(columns, tuple(fields), files[0])
    kinds = tuple(
        "int64" if isinstance(fields[name], int) else
        "double" if isinstance(fields[name], float) else "string"
        for name in columns.names()
    )  # fmt: skip
    return Layout(files, "jsonl", columns, ids, None, json_types=kinds, time_unit=unit)


def _json_object(line: str, file: LogFile) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        found = error
    if not isinstance(found, dict):
        raise DataError(f"{file.label}: first line {line[:80]!r} is no JSON object; check format")
    return found


def _parquet(source: ParquetSource) -> Layout:
    files = _files(source.path)
    kinds = set()
    for file in files:
        schema = _parquet_schema(file)
        _require_columns(source.columns, tuple(schema.names), file)
        names = (source.columns.user, source.columns.item)
        kinds |= {pa.types.is_integer(schema.field(name).type) for name in names}
    ids: IdKind = source.ids or ("int" if kinds == {True} else "string")
    return Layout(files, "parquet", source.columns, ids, None, time_unit=source.time_unit)


def _parquet_schema(file: LogFile) -> pa.Schema:
    try:
        with Folder(file.url).open() as stream:
            return pq.read_schema(stream)
    except pa.ArrowException as error:
        raise DataError(f"{file.url}: is no Parquet file ({error}); check data.source") from error


def _headless(source: SessionsSource | MatrixSource) -> Layout:
    files = _files(source.path)
    first_lines(files[0], 1)
    if isinstance(source, MatrixSource):
        columns = Columns(user="row", item="column", rating="value")
        absent = repr(source.unobserved)
        if len(files) > 1:
            raise DataError(f"{source.path}: holds {len(files)} files; name the one matrix")
        return Layout(files, "matrix", columns, "int", absent=absent)
    ids: IdKind = "int" if source.ids == "int" and len(files) == 1 else "string"
    columns = Columns(user="line", item="entry")
    return Layout(
        files, "sessions", columns, ids, None, source.separator,
        absent=source.padding, is_quoted=False,
    )  # fmt: skip


def _files(url: str, wanted: tuple[str, ...] = ()) -> tuple[LogFile, ...]:
    """List the files of a log; of an archive or folder that has wanted names, only those."""
    folder = Folder(url)
    if not folder.exists():
        raise DataError(f"{url}: no such file, folder or bucket; check data.source.path")
    urls = [str(folder)]
    if folder.is_folder():
        urls = [str(folder / name) for name in folder.data_files()]
    elif folder.size() == 0:
        urls = []
    if not urls:
        raise DataError(f"{url}: the log is empty (0 bytes); nothing to prepare")
    files = []
    for file in urls:
        members = archive_members(file) if file.endswith(".zip") else [""]
        files += [LogFile(file, int(Origin.LOG), member) for member in members]
    chosen = [f for f in files if f.name.rsplit("/", 1)[-1] in wanted]
    return tuple(chosen or files)


def _require_columns(columns: Columns, present: tuple[str, ...], file: LogFile) -> None:
    absent = [name for name in columns.names() if name not in present]
    twice = sorted({name for name in columns.names() if present.count(name) > 1})
    if absent:
        looks_like_data = any(re.fullmatch(r"[-+]?[\d.]+", name) for name in present)
        hint = " (is its header missing? then set data.source.header)" if looks_like_data else ""
        raise DataError(
            f"{file.label}: no column(s) {absent}; it has {list(present)}{hint}; correct "
            "data.source.columns"
        )
    if twice:
        raise DataError(
            f"{file.label}: column(s) {twice} stand there twice; rename one in the log or with "
            "data.source.header"
        )


_INSPECTORS: dict[type[FileSource], Callable[[Any], Layout]] = {
    MovieLensSource: _movielens,
    AmazonSource: _amazon,
    HetRecSource: _hetrec,
    RecBoleSource: _recbole,
    SessionsSource: _headless,
    MatrixSource: _headless,
    CsvSource: _csv,
    JsonLinesSource: _plain_json_lines,
    ParquetSource: _parquet,
}
