"""JSON lines."""

import json
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json as pajson

from distrib.config import Config, JsonObject
from distrib.data.logs.columns import Columns, IdKind, TimeUnit
from distrib.data.logs.files import log_files, require_columns
from distrib.data.logs.layout import Layout, RawRows
from distrib.data.logs.text import LogFile, first_lines
from distrib.data.logs.text_reader import TextReader, filled_lines
from distrib.errors import DataError


class JsonLinesSource(Config):
    """One JSON object per line."""

    format: Literal["jsonl"] = "jsonl"

    path: str
    """Path or URL of a file, plain or compressed, or of a folder; reads all its files."""

    columns: Columns
    """Mapping of fields."""

    ids: IdKind = "string"
    """Kind of the user and item ids; numbers are read as text unless set to ``int``."""

    time_unit: TimeUnit = "s"
    """Unit of the time field, since 1970; or dates as text."""

    def inspect(self) -> Layout:
        """Return how to read the log; raise `DataError` where its first lines do not show it."""
        return json_layout(log_files(self.path), self.columns, self.ids, self.time_unit)


def json_layout(
    files: tuple[LogFile, ...], columns: Columns, ids: IdKind, unit: TimeUnit
) -> Layout:
    """Return the layout of JSON lines.

    Args:
        files: Of the log.
        columns: Which fields hold what.
        ids: Kind of the ids.
        unit: Of the time.

    Returns:
        How to read the files.

    Raises:
        DataError: The first line is not a JSON object, or lacks a field.
    """
    fields = first_object(first_lines(files[0], 1)[0], files[0])
    require_columns(columns, tuple(fields), files[0])
    kinds = tuple(
        "int64" if isinstance(fields[name], int) else
        "double" if isinstance(fields[name], float) else "string"
        for name in columns.names()
    )  # fmt: skip
    return Layout(files, JSON_LINES, columns, ids, None, json_types=kinds, time_unit=unit)


def first_object(line: str, file: LogFile) -> JsonObject:
    """Return the JSON object of the first line of a file; raise `DataError` if it is not one."""
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        found = error
    if not isinstance(found, dict):
        raise DataError(
            f"{file.label}: first line {line[:80]!r} is not a JSON object; check data.source.format"
        )
    return found


def _parse(text: bytes, layout: Layout) -> RawRows:
    """Parse one JSON object per line."""
    filled, taken = filled_lines(text)
    names = layout.columns.names()
    fields = [(n, pa.type_for_alias(t)) for n, t in zip(names, layout.json_types, strict=True)]
    malformed, table = np.zeros(0, dtype=np.int64), None
    try:
        table = pajson.read_json(
            pa.BufferReader(text),
            read_options=pajson.ReadOptions(use_threads=False, block_size=len(text) + 1),
            parse_options=pajson.ParseOptions(
                explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore"
            ),
        )
    except pa.ArrowInvalid:
        table = None
    if table is None or len(table) != len(filled):
        table, is_object_N = _json_one_by_one(taken(filled), names)
        filled, malformed = filled[is_object_N], filled[~is_object_N]
    return RawRows(table, lambda rows: (filled[rows], taken(filled[rows])), malformed, taken)


def _json_one_by_one(lines: pa.Array, names: list[str]) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
    """Read lines of which some are damaged, or of mixed types; all values become text."""
    objects: list[Any] = []
    for line in lines.to_pylist():
        try:
            objects.append(json.loads(line))
        except (ValueError, RecursionError):
            objects.append(None)
    is_object_N = np.array([isinstance(found, dict) for found in objects], dtype=bool)
    rows = [found for found in objects if isinstance(found, dict)]
    columns = {
        name: pa.array([_text(row.get(name)) for row in rows], pa.string()) for name in names
    }
    return pa.table(columns), is_object_N


def _text(value: Any) -> str | None:
    """Return a value of JSON as text; lists and objects are none."""
    if value is None or isinstance(value, list | dict):
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    return text if text.isascii() else _sound(text)


def _sound(text: str) -> str:
    """Return text with a mark in place of half a surrogate pair."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


JSON_LINES = TextReader("jsonl", _parse)
