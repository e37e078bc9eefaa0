"""Signals that reach the driver, forwarded to the workers, and what the workers report back.

From SIGTERM or SIGINT to the exit code: `driving` installs the handlers, `Driver.on_signal` posts a
stop to the control actor, rank 0 polls it, all ranks agree on it, save a checkpoint and return
(`Worker`), `launch` raises `StoppedError`, and `cli` exits with code 75. A second signal ends the
process at once, with code 130. Outside `driving` (other jobs, preflight, closed-form models)
SIGTERM ends it with code 143.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import ray

from distrib.events import Interval, emit
from distrib.terminal import Bar, progress_bar
from distrib.training.records import EpochRecord
from distrib.training.workers.control import start_control

T = TypeVar("T")
_POLL_S = 0.2
_BAR_S = 1.0


class Driver:
    """The driver while workers train: one signal requests a stop, a second one ends at once.

    Args:
        on_epoch: Called with the record of each epoch.
        bar: Shows progress; None where no one would see it.
        control: Receives what the workers report; one of its own by default.
    """

    def __init__(
        self,
        on_epoch: Callable[[EpochRecord], None] | None,
        bar: Bar | None,
        control: ray.actor.ActorHandle | None = None,
    ) -> None:
        self.actor = start_control() if control is None else control
        self.num_signals = 0
        self._on_epoch = on_epoch
        self._num_reported = 0
        self._bar, self._bar_interval = bar, Interval(_BAR_S)

    def on_signal(self, number: int, _frame: object) -> None:
        """Forward a signal to the workers."""
        self.num_signals += 1
        name = signal.Signals(number).name
        emit("stopping", signal=name, next="a second signal ends at once, without a checkpoint")
        self.actor.stop.remote(name)

    def waiting(self, action: Callable[[], T]) -> T:
        """Run an action in a thread, so that signals reach this one, rather than Ray Train."""
        found: list[T] = []
        failures: list[BaseException] = []

        def act() -> None:
            try:
                found.append(action())
            except BaseException as error:  # noqa: BLE001  raised again below
                failures.append(error)

        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_S)
            if self.num_signals > 1:
                raise KeyboardInterrupt
            self._report()
            self._draw()
        self._report()
        if failures:
            raise failures[0]
        return found[0]

    def _draw(self) -> None:
        """Show how far training is."""
        if self._bar is None or not self._bar_interval.due():
            return
        found = ray.get(self.actor.progress.remote())
        if found is not None:
            self._bar(*found)

    def _report(self) -> None:
        """Report the epochs that the workers have posted."""
        if self._on_epoch is None:
            return
        for record in ray.get(self.actor.epochs.remote(self._num_reported)):
            self._num_reported += 1
            self._on_epoch(record)


@contextmanager
def driving(
    on_epoch: Callable[[EpochRecord], None] | None, control: ray.actor.ActorHandle | None = None
) -> Iterator[Driver]:
    """Forward SIGTERM and SIGINT to the workers; outside the main thread, do nothing."""
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT) if is_main else ()
    with progress_bar("training") as bar:
        driver = Driver(on_epoch, bar, control)
        before = {number: signal.signal(number, driver.on_signal) for number in numbers}
        try:
            yield driver
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if control is None:
                ray.kill(driver.actor)
