"""Job output: structured lines, or progress bars and tables on a terminal."""

import io
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from rich.console import Console
from rich.table import Table

from distrib.redaction import redacted

_ANY_WIDTH = 10_000
"""Columns of a file or pipe; a table takes what it needs."""


def emit(event: str, **fields: Any) -> None:
    """Write one event as a JSON line to standard error.

    Args:
        event: Constant name.
        **fields: Numbers, strings, and lists and mappings of these.
    """
    line = {"event": event, "time": time.strftime("%Y-%m-%dT%H:%M:%S"), **fields}
    sys.stderr.write(redacted(json.dumps(line, default=str)) + "\n")
    sys.stderr.flush()


def rounded(values: Mapping[str, float], digits: int = 5) -> dict[str, float]:
    """Round for display; files keep all digits."""
    return {name: float(f"{value:.{digits}g}") for name, value in values.items()}


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table to standard error, fitted to the width of a terminal if it is one."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = _ANY_WIDTH
    console.print(title, style="table.title", markup=False, highlight=False)
    console.print(_drawn(columns, rows))


def table_text(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table as plain text."""
    text = io.StringIO()
    plain = Console(file=text, width=_ANY_WIDTH, force_jupyter=False, force_terminal=False)
    plain.print(_drawn(columns, rows))
    return text.getvalue().rstrip()


def _drawn(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    drawn = Table()
    for position, column in enumerate(columns):
        drawn.add_column(column, justify="left" if position == 0 else "right")
    for row in rows:
        drawn.add_row(*[str(cell) for cell in row])
    return drawn


@contextmanager
def own_standard_output() -> Iterator[None]:
    """Keep what libraries and workers print apart from the result: send it to standard error."""
    sys.stdout.flush()
    with pointed(1, at=2), redirect_stdout(sys.stderr):
        yield


@contextmanager
def pointed(number: int, at: int) -> Iterator[None]:
    """Let a file descriptor of this process, and of those it starts, lead where another does.

    Args:
        number: The descriptor.
        at: The other one.

    Yields:
        Nothing.
    """
    kept = os.dup(number)
    os.dup2(at, number)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, number)
        os.close(kept)


def is_terminal() -> bool:
    """Return whether standard error is a terminal."""
    return sys.stderr.isatty()


class Interval:
    """Limits the rate of progress lines."""

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self._last_s = time.monotonic()

    def due(self) -> bool:
        """Return True at most once in ``every_s`` seconds."""
        now_s = time.monotonic()
        if now_s - self._last_s < self.every_s:
            return False
        self._last_s = now_s
        return True
