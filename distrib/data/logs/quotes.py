"""Quoted fields of delimited text that lines do not close.

A line inside an open quote is part of a record, never a row of its own. A quote opens at the start
of a field, and closes before a separator or the end of a line; inside, quotes are doubled. A quote
that nothing closes so is a stray one, and costs its own line.
"""

import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from distrib.data.logs.layout import IntArray, Layout
from distrib.data.logs.text import LONGEST_LINE, line_bounds

_USUAL_RECORD = 1 << 18


class _Grammar(NamedTuple):
    closed: re.Pattern[bytes]
    """A line that closes what it opens."""

    record: re.Pattern[bytes]
    """A record over several lines."""

    unfinished: re.Pattern[bytes]
    """A record whose last field is open at the end of the text."""

    closing: re.Pattern[bytes]
    """Text up to a first quote that closes, and the rest of its line."""


@lru_cache
def _grammar(separator: bytes, escape: bytes) -> _Grammar:
    apart, end = re.escape(separator), rb"(?=\r?\n|\r?\Z)"
    content = rb'(?:[^"]|"")*+'
    if escape:
        mark = re.escape(escape)
        content = rb'(?:[^"%b]|%b.|"")*+' % (mark, mark)
    lenient = rb'(?:"%b"(?:(?!%b).)*|(?!")(?:(?!%b).)*)' % (content, apart, apart)
    strict = rb'(?:"%b"(?=%b|\r?\n|\r?\Z)|(?!")(?:(?!%b)[^\n])*)' % (content, apart, apart)
    return _Grammar(
        re.compile(rb"%b(?:%b%b)*" % (lenient, apart, lenient), re.DOTALL),
        re.compile(rb"%b(?:%b%b)*%b" % (strict, apart, strict, end), re.DOTALL),
        re.compile(rb'(?:%b%b)*"%b\Z' % (strict, apart, content), re.DOTALL),
        re.compile(rb'[^"]*[^"\n]"(?:%b[^"\n]*)?\r?(?:\n|\Z)' % apart, re.DOTALL),
    )


def _of(layout: Layout) -> _Grammar:
    return _grammar(layout.separator.encode(), layout.dialect.escape.encode())


def is_quoted(text: bytes, layout: Layout) -> bool:
    """Return whether quotes matter in some text."""
    return layout.is_quoted and b'"' in text


def broken_lines(text: bytes, layout: Layout, *, is_thorough: bool) -> IntArray:
    """Return the lines of records that take several, and lines with a stray quote.

    Args:
        text: Whole lines.
        layout: Of the log.
        is_thorough: Whether to look at all lines with a quote, not only at an odd number.

    Returns:
        Numbers from 0; empty lines are none.
    """
    found = [np.arange(low, high) for low, high in _breaks(text, layout, is_thorough=is_thorough)]
    if not found:
        return np.zeros(0, dtype=np.int64)
    starts, ends = line_bounds(text)
    return np.intersect1d(np.concatenate(found), np.flatnonzero(ends > starts))


def joined_records(text: bytes, layout: Layout) -> bytes:
    """Return text of the same length with blanks for the line breaks inside records."""
    if not is_quoted(text, layout):
        return text
    starts, ends = line_bounds(text)
    whole = bytearray(text)
    for low, high in _breaks(text, layout, is_thorough=False):
        if high - low > 1:
            span = slice(starts[low], ends[high - 1])
            whole[span] = text[span].replace(b"\n", b" ").replace(b"\r", b" ")
    return bytes(whole)


def _breaks(text: bytes, layout: Layout, *, is_thorough: bool) -> list[tuple[int, int]]:
    """Return ranges of lines: whole records that take several, and single lines that are none."""
    if not is_quoted(text, layout):
        return []
    grammar = _of(layout)
    starts, ends = line_bounds(text)
    is_quote = np.frombuffer(text, np.uint8) == ord('"')
    count = np.add.reduceat(is_quote, starts, dtype=np.int64)
    found: list[tuple[int, int]] = []
    reached = 0
    for line in np.flatnonzero(count > 0 if is_thorough else count % 2 == 1).tolist():
        if line < reached or grammar.closed.fullmatch(text, starts[line], ends[line]):
            continue
        limit = min(starts[line] + LONGEST_LINE, len(text))
        record = grammar.record.match(text, starts[line], limit)
        reached = line + 1
        if record and (record.end() < limit or limit == len(text)):
            reached = int(np.searchsorted(starts, record.end(), side="right"))
        reached = max(reached, line + 1)
        found.append((line, reached))
    return found


def open_tail(text: bytes, layout: Layout, *, is_end: bool) -> int:
    """Return where a record begins that is still open at the end of the text.

    Args:
        text: Whole lines.
        layout: Of the log.
        is_end: Whether the file ends here. Then lines that fit the header are taken as rows behind
            a stray quote.

    Returns:
        A position in bytes; the length of the text if there is none.
    """
    if not is_quoted(text, layout):
        return len(text)
    grammar = _of(layout)
    low = text.rfind(b"\n", 0, max(len(text) - _USUAL_RECORD, 0)) + 1
    place = text.find(b'"', low)
    if low and (place < 0 or grammar.closing.match(text, low)):  # something may be open from before
        low = text.rfind(b"\n", 0, max(len(text) - LONGEST_LINE, 0)) + 1
    starts, _ = line_bounds(text[low:])
    for first, after in _breaks(text[low:], layout, is_thorough=False):
        place = low + int(starts[first])
        is_open = after - first == 1 and grammar.unfinished.match(text, place) is not None
        if is_open and not (is_end and _are_rows(text[place:].split(b"\n")[1:], layout)):
            return place
    return len(text)


def closed_head(text: bytes, layout: Layout) -> int:
    """Return the length of the lines that close what was open before the text.

    Args:
        text: Whole lines, not from the start of the file.
        layout: Of the log.

    Returns:
        Bytes; 0 if nothing was open.
    """
    if not is_quoted(text, layout):
        return 0
    found = _of(layout).closing.match(text, 0, LONGEST_LINE)
    if not found:
        return 0
    last = text[text.rfind(b"\n", 0, found.end() - 1) + 1 : found.end()]
    return 0 if _are_rows([last], layout) else found.end()


def _are_rows(lines: list[bytes], layout: Layout) -> bool:
    """Return whether all lines have as many fields as the header, quotes aside."""
    wanted = len(layout.header or ()) - 1
    apart = layout.separator.encode()
    return all(line.count(apart) == wanted for line in lines if line.strip())
