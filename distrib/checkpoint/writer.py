"""Writes checkpoints in the background of training."""

import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from distrib.checkpoint.state import StatePiece, write_pieces
from distrib.checkpoint.store import CheckpointStore
from distrib.events import emit
from distrib.retries import with_retries


class Rank(NamedTuple):
    """The writing rank."""

    rank: int
    world_size: int


class CheckpointWriter:
    """Writes one rank's part of each checkpoint in a thread, one checkpoint at a time.

    A failure is not raised but kept in `fault`, so that all ranks can agree on it and stop
    together.
    """

    def __init__(
        self, store: CheckpointStore, who: Rank, *, retry_s: float, in_background: bool
    ) -> None:
        self.store = store
        self.who = who
        self.retry_s = retry_s
        self.in_background = in_background
        self.on_wait: Callable[[], None] = lambda: None
        """Called each second while waiting."""

        self.fault = ""
        """Description of a failure; empty if there was none."""

        self._thread: threading.Thread | None = None

    def start(
        self,
        name: str,
        pieces: Iterable[StatePiece],
        texts: Mapping[str, str],
        before: Callable[[], None] | None = None,
    ) -> None:
        """Wait for the previous write, copy the state, and start writing it.

        Args:
            name: Name of the checkpoint.
            pieces: The engine's state; may be views.
            texts: Further files by name.
            before: Called in the thread before anything is written.
        """
        self.wait()
        held = [piece.copied() if self.in_background else piece for piece in pieces]
        task = (name, held, dict(texts), before)
        if not self.in_background:
            self._write(*task)
            return
        self._thread = threading.Thread(target=self._write, args=task, daemon=True)
        self._thread.start()

    def run(self, task: Callable[[], None], what: str) -> None:
        """Write something else, with retries; a failure is kept in `fault`, too.

        Args:
            task: Writes it.
            what: Its name, for the fault.
        """
        try:
            with_retries(task, timeout_s=self.retry_s)
        except Exception as error:  # noqa: BLE001  as in the thread
            self.fault = f"{what} could not be written: {error}"

    @property
    def is_busy(self) -> bool:
        """Whether a write is in progress."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Wait until no write is in progress."""
        while self._thread is not None:
            self._thread.join(timeout=1.0)
            self.on_wait()
            if not self._thread.is_alive():
                self._thread = None

    def _write(
        self,
        name: str,
        pieces: list[StatePiece],
        texts: dict[str, str],
        before: Callable[[], None] | None,
    ) -> None:
        rank, world_size = self.who

        def put() -> None:
            if before is not None:
                before()
            self.store.write(name, files, rank=rank, world_size=world_size)

        def on_retry(failure: str) -> None:
            emit("store_retry", rank=rank, checkpoint=name, failure=failure)

        try:
            with tempfile.TemporaryDirectory() as folder:
                files = [Path(folder, f"state-{rank:05d}.safetensors")]
                write_pieces(files[0], pieces)
                for file, text in texts.items():
                    files.append(Path(folder, file))
                    files[-1].write_text(text, encoding="utf-8")
                with_retries(put, timeout_s=self.retry_s, on_retry=on_retry)
        except Exception as error:  # noqa: BLE001  a thread would swallow it
            self.fault = f"checkpoint {name} could not be written: {error}"
