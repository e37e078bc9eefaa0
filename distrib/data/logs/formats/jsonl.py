"""JSON lines."""

import ast
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json as pajson
from pydantic import Field

from distrib.config import Config, JsonObject
from distrib.data.logs.columns import Columns, IdKind, TimeFormat, TimeUnit, Where, wanted_values
from distrib.data.logs.files import (
    JSON,
    SAMPLE_LINES,
    Path,
    log_files,
    of_path,
    require_columns,
)
from distrib.data.logs.layout import Layout, RawRows
from distrib.data.logs.nested import field_of, part_of
from distrib.data.logs.text import LogFile, first_lines
from distrib.data.logs.text_reader import TextReader, filled_lines
from distrib.errors import DataError, excerpt

_ARROW_TYPES = {bool: "bool", int: "int64", float: "double"}


class JsonLinesSource(Config):
    """One JSON object per line; lines of Python dictionaries are read, too, but slowly."""

    format: Literal["jsonl"] = "jsonl"

    path: Path
    """Path or URL of a file, plain or compressed, of a folder, of a pattern, or of a member of an
    archive; or a list of them."""

    columns: Columns
    """Mapping of fields; a dotted name such as ``author.id`` reaches into objects."""

    where: Where = Field(default_factory=dict)
    """Values by field; only rows with one of them count; see the format ``csv``."""

    ids: IdKind = "string"
    """Kind of the user and item ids; numbers are read as text unless set to ``int``."""

    time_unit: TimeUnit = "s"
    """Unit of the time field, since 1970; or ``iso8601`` for dates as text."""

    time_format: TimeFormat | None = None
    """How dates are written, if not as ISO 8601; see the format ``csv``."""

    def inspect(self) -> Layout:
        """Return how to read the log; raise `DataError` where its first lines do not show it."""
        layout = Layout(
            log_files(self.path, unlike=JSON), JSON_LINES, self.columns, self.ids, None,
            time_unit=self.time_unit, time_format=self.time_format, where=wanted_values(self.where),
        )  # fmt: skip
        return with_json_types(layout)


def with_json_types(layout: Layout) -> Layout:
    """Find the types of the fields in the first lines.

    Args:
        layout: Of JSON lines.

    Returns:
        The layout with Arrow types; text where the lines differ.

    Raises:
        DataError: The first line is no object, or no line has a field.
    """
    file = layout.files[0]
    lines = first_lines(file, SAMPLE_LINES)
    parse = parser_of(lines[0], file)
    objects = objects_of(lines, parse)
    present = {name: _values(objects, name) for name in layout.names}
    shown = list(dict.fromkeys(key for found in objects if found for key in found))
    known = [*shown, *(name for name, values in present.items() if values)]
    require_columns(layout.names, [*dict.fromkeys(known)], file)
    from_path = of_path(layout.names, known, file)
    layout = layout._replace(from_path=from_path)
    types = tuple(_arrow_type(present[name]) for name in layout.stored_names)
    reader = JSON_LINES if parse is json.loads else PYTHON_LINES
    return layout._replace(json_types=types, reader=reader)


def parser_of(line: str, file: LogFile) -> Callable[[str], Any]:
    """Return what parses the lines of a file.

    Args:
        line: The first one.
        file: Named in errors.

    Returns:
        Of JSON, or of Python dictionaries.

    Raises:
        DataError: The line is no object.
    """
    for parse in (json.loads, ast.literal_eval):
        try:
            if isinstance(parse(line), dict):
                return parse
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    if line.lstrip().startswith("["):
        raise DataError(f"{file.label}: is one JSON array; write one object per line (jq -c '.[]')")
    hint = "if objects take several lines, write one per line (jq -c .); "
    raise DataError(
        f"{file.label}: first line {excerpt(line)!r} is not a JSON object; "
        f"{hint if line.strip() == '{' else ''}check data.source.format"
    )


def objects_of(lines: Sequence[str], parse: Callable[[str], Any]) -> list[JsonObject | None]:
    """Return the object of each line; None for a line that is none."""
    found: list[JsonObject | None] = []
    for line in lines:
        try:
            value = parse(line)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            value = None
        found.append(value if isinstance(value, dict) else None)
    return found


def _values(objects: Sequence[dict[str, Any] | None], name: str) -> list[Any]:
    """Return the values of a field where there is one."""
    found = [part_of(each, name) for each in objects if each is not None]
    return [value for value in found if value is not None]


def _arrow_type(values: Sequence[Any]) -> str:
    kinds = {type(value) for value in values}
    if kinds == {int, float}:
        return "double"
    return _ARROW_TYPES.get(next(iter(kinds)), "string") if len(kinds) == 1 else "string"


def _parse(text: bytes, layout: Layout) -> RawRows:
    """Parse one JSON object per line."""
    filled, taken = filled_lines(text)
    names = layout.stored_names
    schema = pa.schema([])
    for name, kind in zip(names, layout.json_types, strict=True):
        is_flat = f'"{name}"'.encode() in text  # a dot in a name, not a way into an object
        schema = _with_field(schema, name, pa.type_for_alias(kind), is_flat=is_flat)
    malformed, table = np.zeros(0, dtype=np.int64), None
    try:
        found = pajson.read_json(
            pa.BufferReader(text),
            read_options=pajson.ReadOptions(use_threads=False, block_size=len(text) + 1),
            parse_options=pajson.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="ignore"
            ),
        )
        table = pa.table({name: field_of(found, name) for name in names})
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        table = None
    if table is None or len(table) != len(filled):
        table, is_object_N = _one_by_one(taken(filled), names, json.loads)
        filled, malformed = filled[is_object_N], filled[~is_object_N]
    return RawRows(table, lambda rows: (filled[rows], taken(filled[rows])), malformed, taken)


def _parse_python(text: bytes, layout: Layout) -> RawRows:
    """Parse one Python dictionary per line."""
    filled, taken = filled_lines(text)
    table, is_object_N = _one_by_one(taken(filled), layout.stored_names, ast.literal_eval)
    filled, malformed = filled[is_object_N], filled[~is_object_N]
    return RawRows(table, lambda rows: (filled[rows], taken(filled[rows])), malformed, taken)


def _with_field(
    schema: pa.Schema, name: str, kind: pa.DataType, *, is_flat: bool = False
) -> pa.Schema:
    """Add a field, nested where its name is dotted."""
    head, _, rest = name.partition(".")
    if not rest or is_flat:
        return schema.append(pa.field(name, kind))
    place = schema.get_field_index(head)
    inner = pa.schema([] if place < 0 else list(schema.field(place).type))
    field = pa.field(head, pa.struct(list(_with_field(inner, rest, kind))))
    return schema.append(field) if place < 0 else schema.set(place, field)


def _one_by_one(
    lines: pa.Array, names: list[str], parse: Callable[[str], Any]
) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
    """Read lines of which some are damaged, or of mixed types; all values become text."""
    objects = objects_of(lines.to_pylist(), parse)
    is_object_N = np.array([found is not None for found in objects], dtype=bool)
    rows = [found for found in objects if found is not None]
    columns = {
        name: pa.array([_text(part_of(row, name)) for row in rows], pa.string()) for name in names
    }
    return pa.table(columns), is_object_N


def _text(value: Any) -> str | None:
    """Return a value of JSON as text; lists and objects are none."""
    if value is None or isinstance(value, list | dict | tuple | set | bytes):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as in lines without damage
    text = value if isinstance(value, str) else json.dumps(value)
    return text if text.isascii() else _sound(text)


def _sound(text: str) -> str:
    """Return text with a mark in place of half a surrogate pair."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


JSON_LINES = TextReader("jsonl", _parse)

PYTHON_LINES = TextReader("lines of Python dictionaries", _parse_python)
