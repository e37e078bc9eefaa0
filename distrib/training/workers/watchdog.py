"""Reports which ranks are missing when one waits for too long, and ends the process."""

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ray.train.torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from distrib.events import emit
from distrib.training.workers.collectives import broadcast_object

_PULSES = 5  # checks per time limit


class Watchdog:
    """Watches the progress of one rank, and publishes it to the others.

    A collective that one rank does not enter hangs without an error. Each rank counts the stages it
    has done, and a thread writes the count to a store of all ranks; a rank that has waited for too
    long reads there which ranks are behind or no longer write.
    """

    def __init__(
        self,
        store: TCPStore,
        rank: int,
        world_size: int,
        *,
        limit_s: float,
        on_hang: Callable[[list[int], str], None],
    ) -> None:
        self.limit_s = limit_s
        self._store, self._rank, self._world_size = store, rank, world_size
        self._on_hang = on_hang
        self._done, self._doing, self._since_s = 0, "starting", time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def progress(self, doing: str) -> None:
        """Record that a stage is done and which comes next; all ranks call at the same points."""
        self._done += 1
        self._doing, self._since_s = doing, time.monotonic()

    def touch(self) -> None:
        """Record that this rank is working on a stage that may be shorter on other ranks."""
        self._since_s = time.monotonic()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        pulse = 0
        before: list[Heartbeat] = []
        while not self._closed.wait(self.limit_s / _PULSES):
            pulse += 1
            idle_s = time.monotonic() - self._since_s if self._done else 0.0
            try:
                heartbeat = Heartbeat(pulse, self._done, idle_s)
                self._store.set(f"rank{self._rank}", json.dumps(heartbeat))
                now = [self._heartbeat(rank) for rank in range(self._world_size)]
            except RuntimeError:  # the rank that holds the store is gone
                now = []
            if idle_s > self.limit_s and not _is_anyone_at_work(before, now, self.limit_s):
                self._on_hang(missing_ranks(before, now), self._doing)
                return
            before = now

    def _heartbeat(self, rank: int) -> "Heartbeat":
        if not self._store.check([f"rank{rank}"]):
            return Heartbeat(0, -1, 0.0)
        return Heartbeat(*json.loads(self._store.get(f"rank{rank}")))


class Heartbeat(NamedTuple):
    """What a rank reports about itself."""

    pulse: int
    """Checks so far; stops when the process does."""

    done: int
    idle_s: float


def missing_ranks(before: Sequence[Heartbeat], now: Sequence[Heartbeat]) -> list[int]:
    """Return the ranks that hold up the others.

    Args:
        before: What each rank reported at the last check.
        now: What each reports at this one; empty when the store does not answer.

    Returns:
        Those that are behind the furthest, or no longer report; rank 0, which holds the store,
        when the store does not answer.
    """
    if not now:
        return [0]
    furthest = max(heartbeat.done for heartbeat in now)
    behind = {rank for rank, heartbeat in enumerate(now) if heartbeat.done < furthest}
    return sorted(_silent(before, now) | behind)


def _silent(before: Sequence[Heartbeat], now: Sequence[Heartbeat]) -> set[int]:
    pairs = enumerate(zip(before, now, strict=False))
    return {rank for rank, (old, new) in pairs if old.pulse == new.pulse}


def _is_anyone_at_work(
    before: Sequence[Heartbeat], now: Sequence[Heartbeat], limit_s: float
) -> bool:
    """Return whether a rank that still reports has progressed lately: then it is only slow."""
    silent = _silent(before, now)
    return any(
        heartbeat.idle_s < limit_s for rank, heartbeat in enumerate(now) if rank not in silent
    )


def start_watchdog(rank: int, world_size: int, limit_s: float) -> Watchdog:
    """Start the watchdog of this rank, with a store on rank 0 that all ranks reach."""
    host, port, store = ray.util.get_node_ip_address(), 0, None
    if rank == 0:
        store = _tcp_store(host, 0, world_size, is_master=True)
        port = store.port
    host, port = broadcast_object((host, port))
    store = store or _tcp_store(host, port, world_size, is_master=False)

    def on_hang(missing: list[int], doing: str) -> None:
        emit("hung", rank=rank, missing_ranks=missing, doing=doing, waited_s=limit_s)
        os._exit(1)  # the collective never returns; the driver restarts the workers

    return Watchdog(store, rank, world_size, limit_s=limit_s, on_hang=on_hang)


def _tcp_store(host: str, port: int, world_size: int, *, is_master: bool) -> Any:
    return TCPStore(host, port, world_size, is_master=is_master, wait_for_workers=False)
