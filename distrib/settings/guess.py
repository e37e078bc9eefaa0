"""What a file or folder of interactions is: the source to write into a run file, and how sure."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from distrib.config import JsonObject
from distrib.data.logs.config import AmazonSource, MovieLensSource, NetflixSource
from distrib.data.logs.files import TEXT, is_pattern, log_files, table_kind
from distrib.data.logs.formats.iceberg import metadata_of
from distrib.data.logs.formats.jsonl import objects_of, parser_of
from distrib.data.logs.layout import WHOLE_STARS
from distrib.data.logs.nested import field_of, leaf_names
from distrib.data.logs.text import LogFile, first_lines, sniffed
from distrib.data.logs.versioned import library
from distrib.errors import DataError
from distrib.settings.guess_columns import (
    Roles,
    Sample,
    filled,
    marks_in,
    roles_of,
)
from distrib.settings.guess_ratings import rated_by, scale_of
from distrib.settings.guess_text import Written, written
from distrib.storage import Folder

_ROWS = 2000
_JSON_LINES = 200
_LOOKED_AT = 40
_MOST = 0.95
_WHOLE = r"(0|[1-9]\d{0,17})(\.0+)?"
_MOVIELENS = re.compile(r"(u\d?[ab]?\.(data|base|test)|ratings\.(\w+\.)*(dat|csv)(\.\w+)?)$")
_ASIN = re.compile(r"[0-9A-Z]{10}|A[0-9A-Z]{9,}")

_SHOWN_EVENTS = 4

ROLES = ("user", "item", "rating", "time")
"""What a column may hold."""


class Guess(NamedTuple):
    """A log, as far as its first rows show."""

    source: JsonObject
    """``data.source`` of a run file."""

    ratings: JsonObject
    """``data.ratings``, where it is needed."""

    levels: tuple[float, ...] | None
    """The rating scale; None for a log without ratings."""

    has_time: bool
    is_sequence: bool
    """Whether lines are sequences of items."""

    events: tuple[str, Sequence[str]] | None
    """Column of kinds of events, and those that are there."""

    doubts: tuple[str, ...]
    """What to check; empty where all is plain."""

    has_named_ids: bool = True
    """Whether names or a known layout show which columns are ids."""


def guess(url: str, columns: Mapping[str, str] = MappingProxyType({})) -> Guess:
    """Look at a log.

    Args:
        url: Path or URL of a file, folder, pattern or member of an archive.
        columns: Names of its ``user``, ``item``, ``rating`` and ``time`` columns, as far as they
            are known.

    Returns:
        What it is.

    Raises:
        DataError: Nothing is there, or no two columns look like users and items.
    """
    table = _table_of(url, columns)
    if table is not None:
        return table
    files = _files(url)
    found = [(file, _looked_at(file, columns)) for file in files[:_LOOKED_AT]]
    fitting = [(file, each) for file, each in found if isinstance(each, Guess)]
    if not fitting:
        reasons = "; ".join(dict.fromkeys(str(each) for _, each in found))
        what = "" if columns else "no columns of users and items found: "
        raise DataError(f"{url}: {what}{reasons[:1500]}")
    if len(fitting) == len(found) and len({json.dumps(each.source) for _, each in fitting}) == 1:
        best, path = fitting[0][1], url
    else:
        file, best = max(fitting, key=lambda one: _plausibility(*one))
        path = file.label
        others = [PurePosixPath(each.label).name for each in files if each != file]
        if others:
            more = f"{path} is taken; the log is not in {', '.join(others[:8])}"
            best = best._replace(doubts=(more, *best.doubts))
    return best._replace(source={"format": best.source["format"], "path": path, **best.source})


def _table_of(url: str, columns: Mapping[str, str]) -> Guess | None:
    """Return a Delta Lake or Iceberg table."""
    kind = table_kind(Folder(url)) if _is_folder(url) else None
    if kind is None:
        return None
    if kind == "delta":
        opened = library("deltalake", kind).DeltaTable(str(Folder(url)))
        rows = opened.to_pyarrow_dataset().head(_ROWS)
    else:
        static = library("pyiceberg.table", kind).StaticTable
        rows = static.from_metadata(metadata_of(url)).scan(limit=_ROWS).to_arrow()
    found = _columned(kind, _sample_of(rows), (), columns)
    return found._replace(source={**found.source, "path": url})


def _files(url: str) -> Sequence[LogFile]:
    """List the files of the kind that most are of."""
    names = [url] if not _is_folder(url) else Folder(url).data_files()
    suffixes = [PurePosixPath(name).suffix.lower() for name in names]
    if suffixes.count(".parquet") * 2 >= len(suffixes):
        return log_files(url, unlike=TEXT - {".parquet"}, is_text=False)
    others = frozenset({".parquet", ".orc", ".avro"})
    files = log_files(url, unlike=others, is_text=False)
    return [*map(_sniffed, files[:_LOOKED_AT]), *files[_LOOKED_AT:]]


def _is_folder(url: str) -> bool:
    return not is_pattern(url) and ".zip:" not in url and Folder(url).is_folder()


def _sniffed(file: LogFile) -> LogFile:
    try:
        return sniffed(file)
    except DataError as error:
        if "Parquet" in str(error):
            return file
        if "UTF-16" in str(error):
            return sniffed(file._replace(encoding="utf-16"))
        raise


def _looked_at(file: LogFile, columns: Mapping[str, str]) -> Guess | DataError:
    try:
        return _guessed(file, columns)
    except DataError as error:
        return error


def _guessed(file: LogFile, columns: Mapping[str, str]) -> Guess:
    if _is_parquet(file):
        return _columned("parquet", {**_parquet_sample(file), **_path_sample(file)}, (), columns)
    lines = first_lines(file, _JSON_LINES)
    if lines[0].lstrip().startswith(("{", "[")):
        return _columned("jsonl", {**_json_sample(file, lines), **_path_sample(file)}, (), columns)
    return (None if columns else _known_release(file, lines)) or _of_text(file, columns)


def _of_text(file: LogFile, columns: Mapping[str, str]) -> Guess:
    found = written(file)
    if file.encoding != "utf-8":
        found = found._replace(settings={**found.settings, "encoding": file.encoding})
    if found.settings["format"] != "csv":
        return _listed(found)
    sample = {**found.sample, **_path_sample(file)}
    return _columned("csv", sample, found.doubts, columns, found.settings, is_named=found.is_named)


def _is_parquet(file: LogFile) -> bool:
    if file.member:
        return False
    with Folder(file.url).open() as stream:
        return bool(stream.read(4) == b"PAR1")


def _known_release(file: LogFile, lines: Sequence[str]) -> Guess | None:
    """Return a log whose columns are known from its publisher."""
    if re.match(r"^\d+:\s*$", lines[0]):
        NetflixSource(path=file.label).inspect()
        return Guess({"format": "netflix"}, {}, WHOLE_STARS, True, False, None, ())
    name = PurePosixPath(file.member or file.url).name
    is_movielens = _MOVIELENS.search(name) is not None or lines[0].count("::") == 3
    if is_movielens:
        try:
            levels = MovieLensSource(path=file.label).inspect().levels
            return Guess({"format": "movielens"}, {}, levels, True, False, None, ())
        except DataError:
            pass
    rows = [line.split(",") for line in lines[:50]]
    ids = [field for row in rows for field in row[:2]]
    if all(len(row) == 4 for row in rows) and all(_ASIN.fullmatch(field) for field in ids):
        AmazonSource(path=file.label).inspect()
        return Guess({"format": "amazon"}, {}, WHOLE_STARS, True, False, None, ())
    return None


def _listed(found: Written) -> Guess:
    """Return a log of lists of items, or a matrix."""
    ratings: JsonObject = {}
    levels = None
    if found.sample:
        (values,) = found.sample.values()
        ratings, levels, _ = scale_of(values)
    is_sequence = found.settings["format"] == "sessions"
    return Guess(found.settings, ratings, levels, False, is_sequence, None, found.doubts)


def _columned(
    format_: str,
    sample: Sample,
    doubts: tuple[str, ...],
    columns: Mapping[str, str],
    settings: Mapping[str, Any] = MappingProxyType({}),
    *,
    is_named: bool = True,
) -> Guess:
    """Return a log with columns."""
    roles = roles_of(sample, columns, is_named=is_named)
    if roles is None:
        raise DataError(f"{format_} with columns {list(sample)[:12]}")
    source: JsonObject = {"format": format_, **settings}
    if not is_named:
        sample, roles, source["header"] = _with_names(sample, roles)
    rated = rated_by(sample, roles.rating, source.get("decimal", "."))
    rating = roles.rating if rated.is_mapped else None
    names = {"user": roles.user, "item": roles.item, "rating": rating, "time": roles.time}
    source["columns"] = {role: name for role, name in names.items() if name is not None}
    source |= {**rated.source} | _ids(format_, sample, roles) | _moments(roles)
    marks = marks_in(sample, roles)
    if marks and format_ == "csv":
        source["null_values"] = list(marks)
    doubts = (*doubts, *roles.doubts, *rated.doubts)
    events = None
    if roles.event is not None:
        events = (roles.event, sorted({*map(str, filled(sample[roles.event]))}))
        if len(events[1]) > 1:
            kinds = ", ".join(events[1][:_SHOWN_EVENTS])
            doubts += (
                f"all kinds of {roles.event} count alike ({kinds}); data.source.where counts some, "
                "data.ratings.values weighs them",
            )
    has_time = roles.time is not None
    return Guess(
        source,
        {**rated.ratings},
        rated.levels,
        has_time,
        False,
        events,
        doubts,
        roles.has_named_ids,
    )


def _with_names(sample: Sample, roles: Roles) -> tuple[Sample, Roles, list[str]]:
    """Name the columns of a log without a header."""
    known = {roles.user: "user", roles.item: "item"}
    if roles.rating is not None:
        known[roles.rating] = "rating"
    if roles.time is not None:
        known[roles.time] = "time"
    named = {known.get(name, name): values for name, values in sample.items()}
    roles = roles._replace(
        user="user",
        item="item",
        rating="rating" if roles.rating else None,
        time="time" if roles.time else None,
    )
    return named, roles, list(named)


def _ids(format_: str, sample: Sample, roles: Roles) -> JsonObject:
    """Return the kind of ids: integers where all are, and none has leading zeros."""
    if format_ in {"parquet", "delta", "iceberg"}:
        return {}  # by type
    texts = [str(v) for name in (roles.user, roles.item) for v in filled(sample[name])]
    has_zeros = any(re.fullmatch(r"0\d+", text) for text in texts)
    fitting = sum(re.fullmatch(_WHOLE, text) is not None for text in texts)
    return {"ids": "int"} if fitting >= _MOST * len(texts) and not has_zeros else {}


def _moments(roles: Roles) -> JsonObject:
    if roles.time is None or roles.moment.is_typed:
        return {}
    if roles.moment.form is not None:
        return {"time_format": roles.moment.form}
    return {} if roles.moment.unit == "s" else {"time_unit": roles.moment.unit}


def _parquet_sample(file: LogFile) -> Sample:
    try:
        with Folder(file.url).open() as stream:
            parquet = pq.ParquetFile(stream)
            batch = next(parquet.iter_batches(_ROWS), None)
    except OSError as error:
        raise DataError(f"{file.label}: is not a complete Parquet file") from error
    if batch is None:
        raise DataError(f"{file.label}: has no rows")
    return _sample_of(batch)


def _sample_of(table: Any) -> Sample:
    names, whole = leaf_names(table.schema), pa.table(table)
    return {name: field_of(whole, name).to_pylist() for name in names}


def _json_sample(file: LogFile, lines: Sequence[str]) -> Sample:
    read = objects_of(lines, parser_of(lines[0], file))
    objects = [_flat(found) for found in read if found is not None]
    names = dict.fromkeys(name for found in objects for name in found)
    return {name: [found.get(name) for found in objects] for name in names}


def _flat(node: JsonObject, prefix: str = "") -> JsonObject:
    found: JsonObject = {}
    for name, value in node.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _path_sample(file: LogFile) -> Sample:
    """Return the columns that stand in the path."""
    return {name: [value] for name, value in file.partition.items()}


def _plausibility(file: LogFile, found: Guess) -> tuple[int, int, int, int]:
    """Rank the files of a folder: known layouts, named ids, ratings and times, then size."""
    is_known = found.source["format"] in {"movielens", "amazon", "netflix"}
    columns = len(found.source.get("columns", ()))
    return (is_known, found.has_named_ids, columns, Folder(file.url).size())
