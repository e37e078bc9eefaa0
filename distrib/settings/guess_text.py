"""How a text log is written: delimited and with which separator, JSON lines, lists or a matrix."""

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from distrib.config import JsonObject
from distrib.data.logs.text import LogFile, first_lines
from distrib.errors import DataError, excerpt
from distrib.settings.guess_columns import Sample, filled, numbers_of

_SEPARATORS = ("::", "\t", ";", "|", ",", " ")
_LINES = 2000
_BLANKS = re.compile(r"\S\s{2,}\S|^\s+\S")
_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?")
_MANY = 6
_EVEN = 0.8
_FEW = 4
_EARLIEST_S = 10**8
_SMALL = 30


class Written(NamedTuple):
    """What the first lines of a text show."""

    settings: JsonObject
    """Of the source: ``format`` and how its text is written, without path and columns."""

    sample: Sample
    """Values by column; empty for lists and matrices, whose columns are known."""

    is_named: bool = True
    """Whether the names are those of a header."""

    doubts: tuple[str, ...] = ()


def written(file: LogFile) -> Written:
    """Look at the first lines of a text.

    Args:
        file: Of the log.

    Returns:
        How it is written.

    Raises:
        DataError: It is empty or damaged.
    """
    lines = first_lines(file, _LINES)
    settings: JsonObject = {}
    if any("�" in line for line in lines):
        file = file._replace(encoding="cp1252")
        settings["encoding"] = "cp1252"
        lines = first_lines(file, _LINES)
    comment = next((c for c in ("#", "%") if lines[0].startswith(c)), "")
    if comment:
        settings["comment"] = comment
        lines = first_lines(file, _LINES, comment)
    listed = _lists(lines)
    if listed is not None:
        return listed
    return _delimited(lines, settings)


def _lists(lines: Sequence[str]) -> Written | None:
    """Return sequences of items, or a matrix; None for a table."""
    for separator in ("\t", ",", " "):
        cut = r"\s+" if separator == " " else re.escape(separator)
        whole = [re.split(cut, line.strip()) for line in lines]
        lengths = {len(row) for row in whole}
        flat = [field for row in whole for field in row]
        is_user_first = _has_users_first(whole)
        if not is_user_first and max(lengths) < _MANY:
            continue
        if not all(_NUMBER.fullmatch(field) for field in flat):
            continue
        if is_user_first or len(lengths) > 1:
            settings = {"format": "sessions", "separator": separator, "user_first": is_user_first}
            about = "lines are lists" + (", the user first" if is_user_first else " of items")
            return Written({**settings, "padding": ""}, {}, doubts=(about,))
        blanks = "whitespace" if separator == " " else separator
        return _even(np.array(whole, dtype=object), separator, blanks)
    return None


def _has_users_first(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether each row begins with an id that no other one has, and a list follows."""
    first = {row[0] for row in rows}
    has_times = all(row[-1].isdigit() and int(row[-1]) >= _EARLIEST_S for row in rows)
    shortest = min(len(row) for row in rows)
    return len(first) == len(rows) >= _FEW and shortest > 2 and not has_times


def _even(field_RJ: Any, separator: str, blanks: str) -> Written:
    """Distinguish a matrix of ratings from sequences of equal length."""
    value_RJ = np.array([numbers_of(row) for row in field_RJ])
    distinct = np.unique(value_RJ)
    rest = value_RJ[:, 1:]
    is_counted = bool((value_RJ[:, 0] == (rest != 99.0).sum(1)).all())
    is_ratings = is_counted or np.abs(distinct).max() < _SMALL or bool((distinct % 1).any())
    if not is_ratings:
        padded = {"format": "sessions", "separator": separator, "padding": "0"}
        return Written(padded, {}, doubts=("lines are sequences of items, padded with 0",))
    unobserved = 99.0 if 99.0 in distinct else 0.0
    settings: JsonObject = {"format": "matrix", "separator": blanks, "unobserved": unobserved}
    if is_counted:
        settings["leading_columns"] = 1
    ratings = value_RJ[:, int(is_counted) :]
    known = [str(v) for v in ratings[ratings != unobserved][:5000]]
    about = f"lines are users and columns items; {unobserved:g} stands for no rating"
    return Written(settings, {"value": known}, doubts=(about,))


def _delimited(lines: Sequence[str], settings: JsonObject) -> Written:
    separator = _separator(lines)
    settings = {"format": "csv", **settings, "separator": separator}
    rows, has_breaks = _rows(lines, separator)
    if has_breaks:
        settings["multiline"] = True
    width, number = Counter(map(len, rows)).most_common(1)[0]
    if width < 2 or number < len(rows) * _EVEN:
        raise DataError(f"lines are no rows of fields: {excerpt(lines[0])!r}")
    rows = [row for row in rows if len(row) == width]
    is_named = _is_header(rows)
    names = rows[0] if is_named else [f"column_{n + 1}" for n in range(width)]
    body = rows[1:] if is_named and len(rows) > 1 else rows
    sample = {name: [row[n] or None for row in body] for n, name in enumerate(names)}
    if not is_named:
        settings["header"] = list(names)
    if separator not in {",", " ", "whitespace"} and _has_decimal_commas(sample):
        settings["decimal"] = ","
    return Written(settings, sample, is_named)


def _separator(lines: Sequence[str]) -> str:
    """Return the separator that cuts the most lines into as many fields, at least two."""
    best, most = ",", 0.0
    for separator in _SEPARATORS:
        counts = Counter(len(row) for row in _rows(lines, separator)[0])
        width, number = counts.most_common(1)[0]
        even = number / sum(counts.values())
        if width > 1 and even > most + 0.05:
            best, most = separator, even
    if best == " " or (most < 0.9 and any(_BLANKS.search(line) for line in lines[:20])):
        return "whitespace" if any(_BLANKS.search(line) for line in lines) else best
    return best


def _rows(lines: Sequence[str], separator: str) -> tuple[list[list[str]], bool]:
    """Return the fields of lines, and whether some hold line breaks."""
    if separator == "whitespace":
        return [line.split() for line in lines], False
    if len(separator) > 1:
        return [line.split(separator) for line in lines], False
    reader = csv.reader(io.StringIO("\n".join(lines)), delimiter=separator)
    rows = []
    with suppress(csv.Error):  # a field beyond the module's limit
        rows += [row for row in reader if row]
    has_breaks = any("\n" in field for row in rows[:-1] for field in row)
    return rows or [[line] for line in lines], has_breaks


def _is_header(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether the first row names columns: no numbers, and not like the others."""
    first, others = rows[0], rows[1:50]
    if any(_NUMBER.fullmatch(field.strip()) or not field.strip() for field in first):
        return False
    if len({*first}) < len(first):
        return False
    columns = list(zip(*others, strict=True)) if others else []
    has_numbers = any(all(_NUMBER.fullmatch(f.strip()) for f in c if f) for c in columns)
    words = re.compile(r"user|item|rating|id$|date|time|product|event", re.IGNORECASE)
    return has_numbers or any(words.search(field) for field in first)


def _has_decimal_commas(sample: Sample) -> bool:
    return any(
        known and all(_NUMBER.fullmatch(v) for v in known) and any("," in v for v in known)
        for known in (filled(values) for values in sample.values())
    )
