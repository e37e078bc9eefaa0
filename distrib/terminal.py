"""Standard error and results of a job, for people: events as sentences, no lines of Ray's core."""

import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TextIO, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.progress import TextColumn as Words
from rich.table import Column
from rich.text import Text

Bar: TypeAlias = Callable[[int, int, str], None]
"""Shows how much of how much is done, and what is being done."""

_EVENT = '{"event": '
_OF_CORE = re.compile(
    r"^\[[-0-9]+ [:,0-9]+ [A-Z] \d+ \d+\] \S+\.cc:\d+: |.*PYTHON worker processes have been started"
)
"""Lines that Ray's core writes past Python; what it reports reaches us as exceptions. It also warns
of a number of processes that a job with its own cluster means to have."""

_NOTEBOOK = "ipykernel"
"""The module that a notebook's kernel has imported."""

_UNDER_A_BAR = "step"
"""The event that the progress bar replaces."""

_DEEPEST = 2
"""Mappings in mappings that a line shows."""

_PATIENCE_S = 1.0  # child processes may keep the pipe open


@contextmanager
def standard_error() -> Iterator[None]:
    """Drop the lines of Ray's core; on a terminal, write events as people read them.

    Yields:
        Nothing.
    """
    sys.stderr.flush()
    before = sys.stderr
    with _core_dropped() as kept:
        if _is_process_wide(before):
            direct = os.fdopen(os.dup(kept), "w", buffering=1, errors="backslashreplace")
            sys.stderr = Readable(direct)
        try:
            yield
        finally:
            sys.stderr.flush()
            sys.stderr = before
            before.flush()


@contextmanager
def _core_dropped() -> Iterator[int]:
    """Drop the lines that Ray's core writes to descriptor 2; yield where the others go."""
    kept = os.dup(2)
    source, target = os.pipe()
    os.dup2(target, 2)
    os.close(target)
    pump = threading.Thread(target=_pass_on, args=(source, kept), daemon=True)
    pump.start()
    try:
        yield kept
    finally:
        os.dup2(kept, 2)
        pump.join(_PATIENCE_S)
        if not pump.is_alive():  # else a child still writes there
            os.close(kept)


@contextmanager
def readable_lines() -> Iterator[None]:
    """In a notebook, write events as people read them; in a script, do as `standard_error`.

    Yields:
        Nothing.
    """
    before = sys.stderr
    if isinstance(before, Readable):
        yield
        return
    if _NOTEBOOK not in sys.modules:
        with standard_error() if _is_process_wide(before) else nullcontext():
            yield
        return
    with _core_dropped():
        sys.stderr = Readable(before, is_read=True)
        try:
            yield
        finally:
            sys.stderr.flush()
            sys.stderr = before


def _is_process_wide(stream: TextIO) -> bool:
    """Return whether a stream writes to descriptor 2, and not to a test or a notebook."""
    try:
        return stream.fileno() == 2
    except (OSError, ValueError):
        return False


def _pass_on(source: int, target: int) -> None:
    with os.fdopen(source, "rb") as lines:
        for line in lines:
            if not _OF_CORE.match(line.decode(errors="replace")):
                os.write(target, line)


@contextmanager
def progress_bar(about: str) -> Iterator[Bar | None]:
    """Show a bar below all lines, while it is open.

    Args:
        about: What is being done, at first.

    Yields:
        Moves the bar; None where standard error is no terminal.
    """
    stream = sys.stderr
    if not isinstance(stream, Readable) or not stream.isatty():
        yield None
        return
    with Progress(
        BarColumn(20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        # What is left of the line: a narrow terminal cuts this, and no number.
        Words("{task.description}", table_column=Column(ratio=1, no_wrap=True)),
        expand=True,
        console=stream.console,
        refresh_per_second=2,
        transient=True,
        redirect_stdout=False,  # lines already go through the console
        redirect_stderr=False,
    ) as bars:
        task = bars.add_task(about, total=None)

        def move(done: int, total: int, about: str) -> None:
            bars.update(task, completed=done, total=total, description=about)

        yield move


class Readable:
    """A stream without the lines of Ray's core, maybe with events as people read them.

    Args:
        stream: Where lines go.
        is_read: Whether people read it; those of a terminal do.
    """

    def __init__(self, stream: TextIO, *, is_read: bool = False) -> None:
        self._stream, self._held = stream, ""
        self._is_read = is_read or stream.isatty()
        self.console = Console(file=stream, soft_wrap=True, highlight=False, force_jupyter=False)
        """What a bar must share with the lines above it."""

        self._lock = threading.Lock()
        self._starts = (_EVENT, "[") if self._is_read else ("[",)
        """How lines begin that must be whole to be judged."""

    def __getattr__(self, name: str) -> Any:
        """Behave as the stream otherwise."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text; the start of a line that may be changed waits for its end."""
        with self._lock:
            *lines, rest = (self._held + text).split("\n")
            for line in lines:
                self._show(line)
            begins = any(rest[: len(start)] == start[: len(rest)] for start in self._starts)
            waits = begins or (_EVENT in rest and _EVENT in self._starts)
            self._held = rest if waits else ""
            if not waits:
                self._stream.write(rest)
        return len(text)

    def flush(self) -> None:
        """Write what waits, too."""
        with self._lock:
            self._stream.write(self._held)
            self._held = ""
            self._stream.flush()

    def _show(self, line: str) -> None:
        if _OF_CORE.match(line):
            return
        event = _event(line) if self._is_read else None
        if event is None:
            self.console.out(line, highlight=False)
        elif event["event"] != _UNDER_A_BAR:
            self.console.print(_sentence(event))


def _event(line: str) -> dict[str, Any] | None:
    """Return the event of a line; before it, Ray says which process wrote it."""
    _, start, fields = line.partition(_EVENT)
    try:
        found: dict[str, Any] = json.loads(start + fields)
    except json.JSONDecodeError:
        return None
    return found


def _sentence(event: dict[str, Any]) -> Text:
    name, clock = event.pop("event"), event.pop("time", "")
    rest = f": {listed(event)}" if event else ""
    return Text.assemble((f"{clock[11:]} ", "dim"), (name.replace("_", " "), "bold"), rest)


def listed(fields: Mapping[str, Any]) -> str:
    """Return names and values in one line; what is empty is left out."""
    parts = {key.replace("_", " "): _shown(value) for key, value in fields.items()}
    return ", ".join(f"{key} {text}" for key, text in parts.items() if text)


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        inside = listed(value)
        return f"({inside})" if inside else ""
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else str(value)


def result_lines(document: Mapping[str, Any]) -> str:
    """Return a result as lines, one for each entry; a table of metrics has been shown already."""
    shown = {key: _entry(value) for key, value in document.items() if _depth(value) <= _DEEPEST}
    return "".join(f"{key.replace('_', ' ')}: {text}\n" for key, text in shown.items() if text)


def _depth(value: object) -> int:
    if isinstance(value, list | tuple):
        return max((1 + _depth(part) for part in value if isinstance(part, Mapping)), default=0)
    return 1 + max(map(_depth, value.values()), default=0) if isinstance(value, Mapping) else 0


def _entry(value: object) -> str:
    return listed(value) if isinstance(value, Mapping) else _shown(value)
