"""Files of a log in, checked interactions and quarantined rows out, in bounded pieces."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from distrib.data.checks import checked
from distrib.data.cleaning import Scale
from distrib.data.columns import to_numpy, whole
from distrib.data.layout import Layout, header_of
from distrib.data.schema import QUARANTINE, Origin, Status, interactions
from distrib.data.text import BOM, LogFile, chunks, count_lines, line_bounds, ranges
from distrib.errors import DataError
from distrib.storage import Folder

_HEXADECIMAL = re.compile(rb"0[xX]")  # a number to Arrow, not to us
_UNIT_SEPARATOR = "\x1f"
_LONGEST_TEXT = 1000
_ROWS_AT_ONCE = 1 << 20
_PIECE_BITS = 36  # a row's place in the log: piece, then row within it

IntArray = npt.NDArray[np.int64]
Places = Callable[[IntArray], tuple[IntArray, pa.Array]]
"""Tells for some rows on which line they stand, from 0, and what it says."""


class Piece(NamedTuple):
    """A part of a log that is read on its own."""

    number: int
    file: LogFile
    start: int = 0
    """First byte of a text, first row group of a Parquet file, chunk of a drawn log."""

    stop: int | None = None
    first_row: int = 0
    """Rows of the file before this piece, in Parquet."""

    @property
    def has_line_numbers(self) -> bool:
        """Whether lines are counted from the start of the file."""
        return self.start == 0 or self.first_row > 0


class Reading(NamedTuple):
    """What was read at once."""

    interactions: pa.Table
    """`schema.interactions`; what is rejected is there as counts."""

    quarantine: pa.Table
    """`schema.QUARANTINE`; lines count from the start of the piece where it starts in a range."""


class _Raw(NamedTuple):
    table: pa.Table
    places: Places
    malformed_M: IntArray
    """Lines that are no rows at all, from 0."""

    bounds: Callable[[IntArray], pa.Array]
    """Text of lines."""


def pieces(layout: Layout) -> list[Piece]:
    """Cut a log into parts to be read in parallel; the cut depends on nothing but the log.

    Args:
        layout: What `inspect` found.

    Returns:
        At least one piece.

    Raises:
        DataError: A file cannot be read.
    """
    found: list[Piece] = []
    for file in layout.files:
        parts: list[tuple[int, int | None, int]]
        if layout.kind == "parquet":
            parts = _row_group_parts(file)
        elif layout.kind in {"text", "jsonl"}:
            parts = [(start, stop, 0) for start, stop in ranges(file)]
        else:
            parts = [(0, None, 0)]
        found += [Piece(len(found) + n, file, *part) for n, part in enumerate(parts)]
    return found


def read(piece: Piece, layout: Layout, scale: Scale) -> Iterator[Reading]:
    """Yield the rows of a piece, checked.

    Args:
        piece: One of `pieces`.
        layout: What `inspect` found.
        scale: What ratings are possible.

    Yields:
        At least one reading; no row twice, none left out.

    Raises:
        DataError: The file is damaged or not laid out as said.
    """
    num_rows = 0
    try:
        for raw in _raw_tables(piece, layout):
            order_N = (piece.number << _PIECE_BITS) + num_rows + np.arange(len(raw.table))
            yield _settled(raw, layout, scale, order_N, piece.file)
            num_rows += len(raw.table)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"{piece.file.label}: cannot be read as {layout.kind} with columns "
            f"{layout.columns.names()}: {error}; convert or leave out the file"
        ) from error
    if num_rows == 0:
        yield Reading(interactions(layout.id_type).empty_table(), QUARANTINE.empty_table())


def counts_as_rows(counts: dict[int, int], id_type: pa.DataType) -> pa.Table:
    """Return rows of `schema.interactions` that stand for rejected ones, by status."""
    schema = interactions(id_type)
    columns: dict[str, Any] = {field.name: pa.nulls(len(counts), field.type) for field in schema}
    columns["time"] = pa.array(list(counts.values()), pa.int64())
    columns["status"] = pa.array(list(counts), pa.int8())
    for name in ("origin", "shard"):
        columns[name] = pa.array(np.zeros(len(counts)), schema.field(name).type)
    return pa.table(columns, schema=schema)


def _settled(raw: _Raw, layout: Layout, scale: Scale, order_N: IntArray, file: LogFile) -> Reading:
    found = checked(raw.table, layout, scale, order_N, file.origin)
    bad_N = np.flatnonzero(found.status_N)
    if not len(bad_N) and not len(raw.malformed_M):
        return Reading(found.kept, QUARANTINE.empty_table())
    line_M, text_M = raw.places(bad_N)
    lines = np.concatenate([line_M, raw.malformed_M])
    texts = pa.concat_arrays([text_M, raw.bounds(raw.malformed_M)])
    status = np.concatenate(
        [found.status_N[bad_N], np.full(len(raw.malformed_M), Status.MALFORMED, np.int8)]
    )
    reasons = pa.array([each.reason for each in Status], pa.string())
    columns = [
        pa.array([file.label]).take(pa.array(np.zeros(len(lines), np.int64))),
        pa.array(lines + 1),
        reasons.take(pa.array(status)),
        pc.utf8_slice_codeunits(texts, 0, _LONGEST_TEXT),
    ]
    quarantine = pa.table(columns, schema=QUARANTINE).sort_by("line")
    values, numbers = np.unique(status, return_counts=True)
    counts = dict(zip(values.tolist(), numbers.tolist(), strict=True))
    table = pa.concat_tables([found.kept, counts_as_rows(counts, layout.id_type)])
    return Reading(table, quarantine)


def _raw_tables(piece: Piece, layout: Layout) -> Iterator[_Raw]:
    if layout.kind == "parquet":
        yield from _parquet_tables(piece, layout)
        return
    parse = {"text": _csv, "jsonl": _json_lines, "sessions": _sessions, "matrix": _matrix}
    first_line = 0
    if layout.has_header:
        layout = layout._replace(header=header_of(piece.file, layout))
    for text in chunks(piece.file, piece.start, piece.stop):
        if layout.has_header and piece.start == 0 and first_line == 0:
            cut = text.find(b"\n") + 1
            body, first_line = (text[cut:] if cut else b""), 1
        else:
            body = text
        is_blank = not body or (body.isspace() and not body.strip(b"\r\n"))
        if not is_blank:
            raw = parse[layout.kind](body, layout)
            yield _moved(raw, first_line, piece.file, layout)
        first_line += count_lines(body)


def _moved(raw: _Raw, by: int, file: LogFile, layout: Layout) -> _Raw:
    """Count lines from the start of the file; they are the users of sessions and matrices."""

    def places(rows: IntArray) -> tuple[IntArray, pa.Array]:
        lines, texts = raw.places(rows)
        return lines + by, texts

    def bounds(lines: IntArray) -> pa.Array:
        return raw.bounds(lines - by)

    table = raw.table
    if layout.kind in {"sessions", "matrix"}:
        user = pc.add(table[layout.columns.user], by)
        if sum(each.origin == Origin.LOG for each in layout.files) > 1:
            name = file.name.rsplit("/", 1)[-1]
            user = pc.binary_join_element_wise(name, user.cast(pa.string()), ":")
        table = table.set_column(0, layout.columns.user, user)
    return raw._replace(table=table, places=places, bounds=bounds, malformed_M=raw.malformed_M + by)


def _lines(text: bytes) -> tuple[IntArray, Callable[[IntArray], pa.Array]]:
    """Return which lines are not empty, and what gives the text of lines."""
    starts, ends = line_bounds(text)

    def taken(lines: IntArray) -> pa.Array:
        if 2 * len(lines) > len(starts):
            proper = text.decode("utf-8", "replace").replace("\r\n", "\n")
            everyone = pc.list_flatten(pc.split_pattern(pa.array([proper]), "\n"))
            return everyone.take(pa.array(lines))
        cut = [text[starts[n] : ends[n]].decode("utf-8", "replace") for n in lines]
        return pa.array(cut, pa.string())

    return np.flatnonzero(ends > starts), taken


def _csv(text: bytes, layout: Layout) -> _Raw:
    for is_thorough in (False, True):
        unclosed_M = _unclosed_lines(text, layout, is_thorough=is_thorough)
        clean, separator = _one_separator(_without(text, unclosed_M), layout)
        table, numbers = _parsed_as_guessed(clean, layout, separator)
        if not layout.is_quoted or b'"' not in text:
            break
        if len(table) + len(numbers) + len(unclosed_M) == len(_lines(text)[0]):
            break
    else:
        raise pa.ArrowInvalid(
            "quotes open that no line closes (if they are no quotes: data.source.is_quoted = false)"
        )
    lines: list[Any] = []

    def known() -> list[Any]:
        """Return the lines that hold rows, those that do not, and what gives their text."""
        if not lines:
            filled, taken = _lines(text)
            filled = np.setdiff1d(filled, unclosed_M)
            short_M = np.asarray(numbers, dtype=np.int64) - 1
            malformed = np.sort(np.concatenate([filled[short_M], unclosed_M]))
            lines.extend([np.delete(filled, short_M), malformed, taken])
        return lines

    def places(rows: IntArray) -> tuple[IntArray, pa.Array]:
        found = known()[0][rows]
        return found, known()[2](found)

    is_whole = not numbers and not len(unclosed_M)
    malformed = np.zeros(0, dtype=np.int64) if is_whole else known()[1]
    return _Raw(table, places, malformed, lambda wanted: known()[2](wanted))


def _one_separator(text: bytes, layout: Layout) -> tuple[bytes, str]:
    """Replace a separator of several characters, which Arrow has no way to parse, by one."""
    if text.startswith(BOM):  # not at the start of a file; Arrow would leave it out all the same
        text = b"\n" + text
    if len(layout.separator) == 1:
        return text, layout.separator
    return text.replace(layout.separator.encode(), _UNIT_SEPARATOR.encode()), _UNIT_SEPARATOR


def _unclosed_lines(text: bytes, layout: Layout, *, is_thorough: bool) -> IntArray:
    """Return the lines with a quote that they open and do not close; Arrow would read on.

    An odd number of quotes is the usual sign; thoroughly, all lines with a quote are looked at.
    """
    if not layout.is_quoted or b'"' not in text:
        return np.zeros(0, dtype=np.int64)
    starts, ends = line_bounds(text)
    is_quote = np.frombuffer(text, np.uint8) == ord('"')
    count = np.add.reduceat(is_quote, starts, dtype=np.int64)
    separator = re.escape(layout.separator.encode())
    field = rb'(?:"(?:[^"]|"")*+"(?:(?!%b).)*|(?!")(?:(?!%b).)*)' % (separator, separator)
    closed = re.compile(rb"%b(?:%b%b)*" % (field, separator, field), re.DOTALL)
    suspects = np.flatnonzero(count > 0 if is_thorough else count % 2 == 1)
    found = [n for n in suspects if not closed.fullmatch(text[starts[n] : ends[n]])]
    return np.asarray(found, dtype=np.int64)


def _without(text: bytes, lines: IntArray) -> bytes:
    """Return text without some lines."""
    if not len(lines):
        return text
    starts, _ = line_bounds(text)
    stops = np.append(starts[1:], len(text))
    is_left = np.ones(len(text), dtype=bool)
    for start, stop in zip(starts[lines], stops[lines], strict=True):
        is_left[start:stop] = False
    return np.frombuffer(text, np.uint8)[is_left].tobytes()


def _parsed_as_guessed(text: bytes, layout: Layout, separator: str) -> tuple[pa.Table, list[int]]:
    """Parse by the likeliest types that fit all rows, else as text, which always does."""
    proper = _proper(text)
    for types in [] if _HEXADECIMAL.search(text) else _guesses(layout):
        try:
            return _parsed(proper, layout, separator, types)
        except pa.ArrowInvalid:
            continue
    as_text = dict.fromkeys(layout.columns.names(), pa.string())
    return _parsed(proper, layout, separator, as_text)


def _proper(text: bytes) -> bytes:
    """Return text in UTF-8, with a mark in place of what is none."""
    if text.isascii():
        return text
    try:
        text.decode()
    except UnicodeDecodeError:
        return text.decode("utf-8", "replace").encode()
    return text


def _guesses(layout: Layout) -> list[dict[str, pa.DataType]]:
    """Return the types to parse columns as, the likeliest first."""
    columns = layout.columns
    types = {columns.user: layout.id_type, columns.item: layout.id_type}
    if columns.rating is not None:
        types[columns.rating] = pa.float32()
    if columns.time is None:
        return [types]
    kinds = [pa.string()] if layout.time_unit == "iso8601" else [pa.int64(), pa.float64()]
    return [{**types, columns.time: kind} for kind in kinds]


def _parsed(
    text: bytes, layout: Layout, separator: str, types: dict[str, pa.DataType]
) -> tuple[pa.Table, list[int]]:
    """Parse text without header; return its rows, and the numbers from 1 of lines that are none."""
    malformed: list[int] = []

    def skip(row: pacsv.InvalidRow) -> str:
        malformed.append(row.number)
        return "skip"

    table = pacsv.read_csv(
        pa.BufferReader(text),
        read_options=pacsv.ReadOptions(
            column_names=layout.header, use_threads=False, block_size=len(text) + 1
        ),
        parse_options=pacsv.ParseOptions(
            delimiter=separator,
            quote_char='"' if layout.is_quoted else False,
            invalid_row_handler=skip,
        ),
        convert_options=pacsv.ConvertOptions(
            include_columns=layout.columns.names(),
            column_types=types,
            strings_can_be_null=True,
            null_values=[""],
        ),
    )
    return table, malformed


def _json_lines(text: bytes, layout: Layout) -> _Raw:
    filled, taken = _lines(text)
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
    return _Raw(table, lambda rows: (filled[rows], taken(filled[rows])), malformed, taken)


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


def _sessions(text: bytes, layout: Layout) -> _Raw:
    filled, taken = _lines(text)
    entries = pc.split_pattern(taken(filled), layout.separator)
    line_N = filled[to_numpy(pc.list_parent_indices(entries))]
    item_N = pc.utf8_trim_whitespace(whole(pc.list_flatten(entries)))
    is_item = pc.not_equal(item_N, layout.absent)
    line_N, item_N = line_N[to_numpy(is_item)], item_N.filter(is_item)
    table = pa.table({"line": line_N, "entry": item_N})
    return _Raw(table, lambda rows: (line_N[rows], taken(line_N[rows])), filled[:0], taken)


def _matrix(text: bytes, layout: Layout) -> _Raw:
    filled, taken = _lines(text)
    cells = pc.split_pattern_regex(pc.utf8_trim_whitespace(taken(filled)), r"\s+")
    length = to_numpy(pc.list_value_length(cells))
    width = int(np.bincount(length).argmax()) if len(length) else 0  # the commonest
    is_whole = length == width
    malformed, filled = filled[~is_whole], filled[is_whole]
    value_N = whole(pc.list_flatten(cells.filter(pa.array(is_whole))))
    cell_N = np.arange(len(value_N))
    number_N = to_numpy(value_N.dictionary_encode().indices)
    absent = [
        code
        for code, word in enumerate(value_N.dictionary_encode().dictionary.to_pylist())
        if _is_number(word, float(layout.absent))
    ]
    cell_N = cell_N[~np.isin(number_N, absent)]
    line_N = filled[cell_N // max(width, 1)]
    table = pa.table(
        {"row": line_N, "column": cell_N % max(width, 1), "value": value_N.take(pa.array(cell_N))}
    )
    return _Raw(table, lambda rows: (line_N[rows], taken(line_N[rows])), malformed, taken)


def _is_number(word: str, number: float) -> bool:
    try:
        return float(word) == number
    except ValueError:
        return False


def _row_group_parts(file: LogFile) -> list[tuple[int, int | None, int]]:
    """Cut a Parquet file into runs of row groups with about a million rows each."""
    with Folder(file.url).open() as stream:
        metadata = pq.read_metadata(stream)
    sizes = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    parts: list[tuple[int, int | None, int]] = []
    start, first_row, rows = 0, 0, 0
    for number, size in enumerate(sizes):
        rows += size
        if rows >= _ROWS_AT_ONCE or number == len(sizes) - 1:
            parts.append((start, number + 1, first_row))
            start, first_row, rows = number + 1, first_row + rows, 0
    return parts or [(0, 0, 0)]


def _parquet_tables(piece: Piece, layout: Layout) -> Iterator[_Raw]:
    names, first = layout.columns.names(), piece.first_row
    with Folder(piece.file.url).open() as stream:
        file = pq.ParquetFile(stream)
        groups = list(range(piece.start, piece.stop or 0))
        for batch in file.iter_batches(_ROWS_AT_ONCE, groups, columns=names, use_threads=False):
            table = pa.Table.from_batches([batch])
            yield _Raw(table, _row_places(table, first), np.zeros(0, np.int64), _no_text)
            first += len(table)


def _row_places(table: pa.Table, first: int) -> Places:
    def places(rows: IntArray) -> tuple[IntArray, pa.Array]:
        said = [str(row) for row in table.take(pa.array(rows)).to_pylist()]
        return rows + first, pa.array(said, pa.string())

    return places


def _no_text(lines: IntArray) -> pa.Array:
    return pa.nulls(len(lines), pa.string())
