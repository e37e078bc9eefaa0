"""The convert job: write a log or prepared histories to files for other tools and jobs."""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import ray.data

from distrib import __version__
from distrib.config import JsonObject, Record, read_record, sealed
from distrib.data.arrow import to_numpy
from distrib.data.config import ConvertConfig, DataConfig, LogFormat
from distrib.data.dataset import Dataset
from distrib.data.prepare.cleaning import rejected_counts
from distrib.data.prepare.histories import interactions_of
from distrib.data.prepare.job import read_plan, recipe
from distrib.data.prepare.stages import kept_rows, readings
from distrib.data.schema import Origin, Status
from distrib.errors import ConfigError, DataError
from distrib.events import emit
from distrib.fence import require_ours, take_over
from distrib.storage import Folder

RESULT = "_manifest.json"
"""Written last; readers of folders skip names that start with ``_``."""

_BEGUN = "_begun.json"
_PART = re.compile(r"part-\d{5}\.(inter|csv|parquet)")
_TYPES = {"user_id": "token", "item_id": "token", "rating": "float", "timestamp": "float"}


def preflight(data: DataConfig, config: ConvertConfig) -> None:
    """Check everything that can be checked before any task starts.

    Args:
        data: The input.
        config: The output.

    Raises:
        ConfigError: The output folder is not set.
        DataError: The input is missing, or the output folder is not empty or not writable.
    """
    _preflight(data, config)


def _preflight(data: DataConfig, config: ConvertConfig) -> tuple[JsonObject, "_Converted | None"]:
    """Also return what the files depend on, and an earlier conversion of the same."""
    if config.output is None:
        raise ConfigError("convert.output is not set; set it to a new folder")
    target = Folder(config.output)
    others = [name for name in target.files() if not name.startswith(".")]
    wanted = _recipe(data, config)
    done = _written(target, wanted)
    if others and not target.exists(_BEGUN) and done is None:
        raise DataError(f"{target}: already holds files; set convert.output to a new folder")
    target.require_writable()
    return wanted, done


def _recipe(data: DataConfig, config: ConvertConfig) -> JsonObject:
    """Return what the files depend on."""
    about: JsonObject = {"of": config.of, "format": config.format}
    if config.of == "prepared":
        return {**about, "data": Dataset.open(data.prepared).hash}
    return {**about, "log": recipe(data, read_plan(data))}


def _written(target: Folder, wanted: JsonObject) -> "_Converted | None":
    if not target.exists(RESULT):
        return None
    found = read_record(_Converted, target.read_json(RESULT), target / RESULT)
    return found if found.recipe == wanted else None


class _Converted(Record):
    """What a finished conversion wrote last."""

    recipe: JsonObject | None = None
    counts: dict[str, int | dict[str, int]]


class ConvertedFile(Record):
    """One written file."""

    name: str
    sha256: str
    bytes: int
    rows: int
    rejected: dict[str, int]
    """Rejected rows, by reason."""


class ConvertResult(Record):
    """Result of `convert`."""

    output: str
    counts: dict[str, int | dict[str, int]]
    """Rows: read = written + rejected by reason."""


def convert(data: DataConfig, config: ConvertConfig) -> ConvertResult:
    """Write the files, then a manifest; done at once where that is there.

    Args:
        data: The input.
        config: The output.

    Returns:
        The output folder and the row counts.

    Raises:
        TakenOverError: A later start writes there.
    """
    made_from, done = _preflight(data, config)
    target = Folder(str(config.output))
    if done is not None:
        target.remove(_BEGUN)
        emit("already_converted", folder=str(target))
        return ConvertResult(output=str(target), counts=done.counts)
    token = take_over(target, _BEGUN)
    for name in target.files():  # left by an unfinished conversion
        if name == RESULT or _PART.fullmatch(name):
            target.remove(name)
    is_prepared = config.of == "prepared"
    numbers, table_of = _prepared_tables(data) if is_prepared else _source_tables(data)

    def write(batch: pa.Table) -> Iterator[pa.Table]:
        for number in batch["number"].to_pylist():
            table, rejected = table_of(number)
            name = f"part-{number:05d}.{config.format}"
            content = encoded(table, config.format, f"{target / name}")
            target.write(name, content)
            entry = ConvertedFile(
                name=name,
                sha256=hashlib.sha256(content).hexdigest(),
                bytes=len(content),
                rows=len(table),
                rejected=rejected,
            )
            yield pa.table({"entry": [entry.model_dump_json()]})

    items = [{"number": number} for number in numbers]
    written = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        write, batch_size=1, batch_format="pyarrow"
    )
    entries = [ConvertedFile.model_validate_json(row["entry"]) for row in written.take_all()]
    entries.sort(key=lambda entry: entry.name)
    rejected = sum((Counter(entry.rejected) for entry in entries), Counter())
    rows = sum(entry.rows for entry in entries)
    counts = {"read": rows + rejected.total(), "written": rows, "rejected": dict(rejected)}
    files = [entry.model_dump(exclude={"rejected"}) for entry in entries]
    about = {"distrib": __version__, "files": files, "counts": counts, "of": config.of}
    require_ours(target, token, _BEGUN)
    target.write_json(RESULT, sealed({**about, "recipe": made_from}))
    target.remove(_BEGUN)
    emit("converted", folder=str(target), counts=counts)
    return ConvertResult(output=str(target), counts=counts)


def encoded(table: pa.Table, format: LogFormat, where: str) -> bytes:
    """Encode a table in the given format.

    Args:
        table: Columns of `_TYPES`.
        format: Output format.
        where: File name for error messages.

    Returns:
        The file content; equal tables give equal bytes.

    Raises:
        DataError: An id contains a character that the format cannot represent.
    """
    sink = io.BytesIO()
    if format == "parquet":
        pq.write_table(table, sink, compression="zstd")
        return sink.getvalue()
    names, separator, quoting = table.column_names, ",", "needed"
    if format == "inter":
        names, separator, quoting = [f"{n}:{_TYPES[n]}" for n in names], "\t", "none"
    sink.write((separator.join(names) + "\n").encode())
    options = pacsv.WriteOptions(include_header=False, delimiter=separator, quoting_style=quoting)
    try:
        pacsv.write_csv(table, sink, options)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{where}: an id contains a tab, quote or line break, which {format!r} cannot "
            f'represent ({error}); use format = "parquet"'
        ) from error
    return sink.getvalue()


def _source_tables(data: DataConfig) -> tuple[list[int], Callable[[int], Any]]:
    plan = read_plan(data)
    pieces = {p.number: p for p in plan.pieces if p.file.origin == Origin.LOG}

    def table_of(number: int) -> tuple[pa.Table, dict[str, int]]:
        kept, rejected = [], Counter[str]()
        for reading in readings(pieces[number], plan):
            rows = reading.interactions
            good = kept_rows(rows)
            rest = rows.slice(len(good))
            kept.append(
                columns_of(good, plan.layout.columns.rating is not None, plan.layout.has_time)
            )
            for status, count in rejected_counts(rest).items():
                rejected[Status(status).reason] += count
        return pa.concat_tables(kept), dict(rejected)

    return list(pieces), table_of


def _prepared_tables(data: DataConfig) -> tuple[list[int], Callable[[int], Any]]:
    dataset = Dataset.open(data.prepared)
    shards = {entry.shard: entry for entry in dataset.manifest.shards}
    has_time = dataset.manifest.times.last is not None
    vocabulary = dataset.vocabulary

    def table_of(number: int) -> tuple[pa.Table, dict[str, int]]:
        rows = interactions_of(dataset.table(shards[number]), vocabulary, number)
        has_rating = len(vocabulary.levels) > 1 or bool((to_numpy(rows["rating"]) != 1).any())
        return columns_of(rows, has_rating, has_time), {}

    return list(shards), table_of


def columns_of(rows: pa.Table, has_rating: bool, has_time: bool) -> pa.Table:
    """Return interactions with the columns of `encoded`."""
    found = {"user_id": rows["user"], "item_id": rows["item"]}
    if has_rating:
        found["rating"] = rows["rating"]
    if has_time:
        found["timestamp"] = rows["time"]
    return pa.table(found)
