"""A first run file for a log: how the log is read, a split for the purpose, a model by its size."""

import itertools
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from distrib.config import checked
from distrib.data.config import DataConfig
from distrib.data.logs.readers import log_pieces, read_log
from distrib.data.prepare.job import read_plan
from distrib.data.schema import Status
from distrib.errors import DataError
from distrib.run_file import RunFile
from distrib.settings.guess import Guess
from distrib.settings.recipes import Counts, power_of_two, recipe, scheme_of_model
from distrib.storage import Folder
from distrib.toml_text import inline
from distrib.training.schemes.base import IterativeScheme, Scheme

Purpose = Literal["research", "nightly"]

_COUNTED_BYTES = 400 << 20
_SHARD_ROWS = 1_000_000
_SHOWN = 5
_FEW_LEVELS = 3
_HELD_OUT_SHARE = 0.1
_OF_DECAY = "  # apart from the gradient: an update takes this times the learning rate of a weight"
_NEXT: Mapping[Purpose, str] = {"research": "pipeline", "nightly": "nightly"}
_MOST_HELD_OUT = 10_000


class Size(NamedTuple):
    """How large a log is, and its first rows as they are read."""

    rows: int
    users: int
    items: int
    rejected: dict[str, int]
    """Rows that are not valid, by reason."""

    is_whole: bool
    """Whether all of the log was read; only its beginning otherwise."""

    shown: pa.Table
    """First rows: ``user``, ``item``, ``rating``, ``time``."""


def measure(found: Guess) -> Size:
    """Read a log, or its beginning if it is large.

    Args:
        found: The log.

    Returns:
        Its size.

    Raises:
        DataError: It cannot be read as guessed.
    """
    document = {"prepared": "unused", "source": found.source, "ratings": found.ratings}
    config = checked(DataConfig, {**document, "split": {"name": "none"}}, where="the guess")
    plan = read_plan(config)
    pieces = log_pieces(plan.layout)
    size = sum(Folder(file.url).size() for file in {f.url: f for f in plan.layout.files}.values())
    is_whole = size <= _COUNTED_BYTES
    reads = (part for piece in pieces for part in read_log(piece, plan.layout, plan.scale))
    tables = [part.interactions for part in (reads if is_whole else itertools.islice(reads, 1))]
    table = pa.concat_tables(tables)
    status = table["status"].to_numpy()
    kept = table.filter(pa.array(status == Status.KEPT))
    counted = table.filter(pa.array(status != Status.KEPT))
    rejected: dict[str, int] = {}
    for row in counted.select(["status", "time"]).to_pylist():
        reason = Status(row["status"]).reason
        rejected[reason] = rejected.get(reason, 0) + row["time"]
    users, items = (len(pc.unique(kept[name])) for name in ("user", "item"))
    if not len(kept):
        raise DataError(f"{found.source['path']}: no row is valid as guessed: {rejected}")
    mapped = {"rating": plan.layout.columns.rating, "time": plan.layout.columns.time}
    names = ["user", "item", *(name for name, column in mapped.items() if column)]
    return Size(len(kept), users, items, rejected, is_whole, kept.select(names)[:_SHOWN])


def run_file(
    found: Guess, size: Size, purpose: Purpose, name: str, model: str | None = None
) -> str:
    """Write a run file with comments.

    Args:
        found: The log.
        size: Of the log.
        purpose: ``research``: a part is held out to measure; ``nightly``: all of it trains.
        name: Of the run; folders are named after it.
        model: By its name; None for one that fits the log.

    Returns:
        TOML that is a valid run file.

    Raises:
        ConfigError: There is no such model.
    """
    model = model or _BY_KIND[_kind(found)]
    scheme = scheme_of_model(model)
    lines = [
        f"# Written by `distrib init`. Next: distrib {_NEXT[purpose]} --config {name}.toml",
        f"run = {inline(f'runs/{name}')}  # folder or URL of checkpoints, the model and the lists",
        "",
        "[data]",
        f"prepared = {inline(f'runs/{name}-data')}  # folder or URL of the prepared histories",
        *_split(found, size, purpose),
    ]
    shards = min(max(8, size.rows // _SHARD_ROWS), 1024)
    if shards > 8:
        lines.append(f"num_shards = {shards}")
    if scheme.reads != "users":
        lines.append("item_histories = true  # which this model trains on, too")
    lines += _cleaning(found, size, purpose)
    if found.ratings:
        lines.append(f"ratings = {inline(found.ratings)}")
    lines += ["", "[data.source]"]
    lines += [f"{key} = {inline(value)}" for key, value in found.source.items()]
    if found.events:
        column, events = found.events
        listed = ", ".join(events)
        lines.append(
            f"# where = {{ {column} = [{json.dumps(events[0])}] }}  # count only: {listed}"
        )
    lines += _model(size, purpose, model, scheme)
    lines += ["", "[score]", "k = 50  # items for each user"]
    text = "\n".join(lines) + "\n"
    _require_valid(text)
    return text


def _require_valid(text: str) -> None:
    checked(RunFile, tomllib.loads(text), where="the run file that init wrote")


def _split(found: Guess, size: Size, purpose: Purpose) -> Iterator[str]:
    if purpose == "nightly":
        yield 'split = { name = "none" }  # all of the log trains; nothing is held out to measure'
        yield "extend = true  # later runs add the new files of the log"
        return
    held_out = min(_MOST_HELD_OUT, max(1, int(size.users * _HELD_OUT_SHARE)))
    if _kind(found) == "sequences":
        yield "# the last item of each user is for testing, the one before for validation"
        yield 'split = { name = "leave_last", count = 2 }'
    elif _kind(found) == "ratings":
        yield 'split = { name = "entrywise" }  # rows: 70 % train, 15 % choose the epoch, 15 % test'
    else:
        users = f"valid_users = {held_out}, test_users = {held_out}"
        yield f'split = {{ name = "strong_generalization", {users} }}  # users held out whole'


def _kind(found: Guess) -> Literal["sequences", "ratings", "interactions"]:
    if found.is_sequence and not found.source.get("user_first"):
        return "sequences"
    is_rated = found.levels is not None and len(found.levels) >= _FEW_LEVELS
    return "ratings" if is_rated else "interactions"


def _cleaning(found: Guess, size: Size, purpose: Purpose) -> Iterator[str]:
    if "confidence" in found.ratings and purpose == "research":
        yield 'cleaning = { duplicates = "sum" }  # counts of the same user and item add up'
    elif size.rows < 3 * size.users:
        yield "# cleaning = { min_user_items = 2 }  # leave out users with a single interaction"


_BY_KIND = {"ratings": "conv4rec", "sequences": "sas_rec", "interactions": "mult_vae"}


def _model(size: Size, purpose: Purpose, model: str, scheme: Scheme) -> Iterator[str]:
    batch = power_of_two(size.users / 64, 16, 512)
    found = recipe(model, Counts(size.users, size.items, size.rows, batch))
    about = f"  # {found.about}" if found.about else ""
    yield from ("", "[model]", f"name = {inline(model)}{about}")
    yield from (f"{key} = {inline(value)}" for key, value in found.model.items())
    if found.optimizer:
        yield from ("", "[optimizer]")
        is_apart = "name" not in found.optimizer  # adamw, the default
        for key, value in found.optimizer.items():
            note = _OF_DECAY if is_apart and key == "weight_decay" else ""
            yield f"{key} = {inline(value)}{note}"
    if not isinstance(scheme, IterativeScheme):
        return
    yield from ("", "[train]")
    of_train = {"batch_users": batch, **found.train}
    yield from (f"{key} = {inline(value)}" for key, value in of_train.items())
    if purpose == "nightly":
        yield "num_epochs = 20"
    else:
        yield "num_epochs = 100"
        yield f"patience = {found.patience}  # epochs without a better validation, then it stops"


def name_of(url: str) -> str:
    """Return a name for the run of a log."""
    parts = [part for part in url.replace(":", "/").split("/") if part]
    stem = PurePosixPath(parts[-1] if parts else "log").name.split(".")[0]
    plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in stem).strip("-")
    return plain or "log"
