"""The commands ``distrib init`` and ``distrib config``."""

import argparse
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console

from distrib.cli import read_run_file, run_and_report
from distrib.config import JsonObject
from distrib.errors import ConfigError
from distrib.events import table
from distrib.renamed import Change
from distrib.settings.guess import ROLES, Guess, guess
from distrib.settings.migrate import migrated
from distrib.settings.reference import reference as page
from distrib.settings.reference import schema as json_schema
from distrib.settings.show import shown
from distrib.settings.starter import Purpose, Size, measure, name_of, run_file


def init(about: str, arguments: list[str]) -> int:
    """Look at a log, and write a run file for it.

    Args:
        about: For ``--help``.
        arguments: Of the command line.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="distrib init", description=about)
    parser.add_argument("log", help="path or URL of a file, folder, pattern or table")
    parser.add_argument(
        "--for",
        dest="purpose",
        choices=get_args(Purpose),
        default="research",
        help="research: hold a part out to measure (default); nightly: train on all of it",
    )
    parser.add_argument(
        "--columns",
        default="",
        metavar="user=A,item=B",
        help="names of your columns of user, item, rating and time, where they are not found",
    )
    parser.add_argument("--model", metavar="NAME", help="instead of one that fits the log")
    parser.add_argument("--output", metavar="FILE", help="run file to write; NAME.toml by default")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    given = parser.parse_args(arguments)

    def work() -> JsonObject:
        name = name_of(given.log) if given.output is None else name_of(given.output)
        target = Path(given.output or f"{name}.toml")
        if target.exists() and not given.force:
            raise ConfigError(
                f"{target}: exists; choose another --output, or replace it by --force"
            )
        found = guess(given.log, _columns(given.columns))
        size = measure(found)
        text = run_file(found, size, given.purpose, name, given.model)
        target.write_text(text, encoding="utf-8")
        _explain(found, size)
        return {
            "run_file": str(target),
            "users": size.users,
            "items": size.items,
            "rows": size.rows,
            "is_whole_log": size.is_whole,
            "check": list(found.doubts),
        }

    return run_and_report(work)


def _columns(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part]
    unknown = [key for key, _, value in pairs if key not in ROLES or not value]
    if unknown:
        raise ConfigError(f"--columns: {unknown} is not name=column, with a name of {list(ROLES)}")
    return {key: value for key, _, value in pairs}


def _explain(found: Guess, size: Size) -> None:
    """Show on standard error what was found."""
    names = size.shown.column_names
    rows = [[_cell(name, value) for name, value in row.items()] for row in size.shown.to_pylist()]
    title = f"{found.source['path']}, read as {found.source['format']}: the first rows"
    table(title, names, rows)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    whole = "" if size.is_whole else " in the first part of the log"
    console.print(f"{size.rows:,} rows, {size.users:,} users, {size.items:,} items{whole}")
    for reason, count in size.rejected.items():
        console.print(f"not valid: {count:,} rows, {reason}", markup=False)
    for doubt in found.doubts:
        console.print(f"check: {doubt}", markup=False)
    if not found.doubts and not size.rejected:
        console.print("format, columns and ids are plain from the log")


def _cell(name: str, value: object) -> str:
    if name == "time" and isinstance(value, int):
        try:
            return datetime.datetime.fromtimestamp(value, datetime.UTC).isoformat(" ")
        except (ValueError, OverflowError, OSError):
            return str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def show(path: str, overrides: Sequence[str]) -> int:
    """Print all settings of a run file; return the exit code."""

    def work() -> str:
        file = read_run_file(path, overrides)
        return shown(file, Path(path).read_text(encoding="utf-8"), overrides)

    return run_and_report(work)


def migrate(paths: Sequence[str]) -> int:
    """Rewrite run files with the present names; return the exit code."""

    def work() -> JsonObject:
        absent = [path for path in paths if not Path(path).is_file()]
        if absent:
            raise ConfigError(f"run file(s) {absent} do not exist; nothing was rewritten")
        texts = {path: Path(path).read_text(encoding="utf-8") for path in paths}
        found = {path: _migrated(path, text) for path, text in texts.items()}
        for path, (text, changes) in found.items():
            if changes:
                Path(path).write_text(text, encoding="utf-8")
        return {
            path: {"renamed": [change.sentence for change in changes], "faults": _faults(path)}
            for path, (_, changes) in found.items()
        }

    return run_and_report(work)


def _faults(path: str) -> list[str]:
    """Return what is still wrong with a run file, such as settings that are gone."""
    try:
        read_run_file(path)
    except ConfigError as error:
        return str(error).split("\n")[1:]
    return []


def _migrated(path: str, text: str) -> tuple[str, list[Change]]:
    try:
        return migrated(text)
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def reference() -> int:
    """Print the page of all settings; return the exit code."""
    return run_and_report(page)


def schema() -> int:
    """Print the JSON Schema of run files; return the exit code."""
    return run_and_report(lambda: json.dumps(json_schema(), indent=1) + "\n")
