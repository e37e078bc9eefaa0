"""Messages between the driver and the workers of a run."""

import threading

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distrib.training.records import EpochRecord, Progress

_ASK_S = 1.0


class Control:
    """Holds the driver's stop request and the workers' epoch records, on the driver's node."""

    def __init__(self) -> None:
        self._reason = ""
        self._epochs: list[EpochRecord] = []
        self._progress: Progress | None = None

    def stop(self, reason: str) -> None:
        """Request that the workers write a checkpoint and exit."""
        self._reason = reason

    def post_epoch(self, record: EpochRecord) -> None:
        """Store the record of an epoch."""
        self._epochs.append(record)

    def epochs(self, first: int) -> list[EpochRecord]:
        """Return the posted epochs from index ``first`` on."""
        return self._epochs[first:]

    def post_progress(self, progress: Progress) -> None:
        """Store how far training is."""
        self._progress = progress

    def progress(self) -> Progress | None:
        """Return what was posted last."""
        return self._progress

    def reason(self) -> str:
        """Return why to stop; empty to continue."""
        return self._reason


def start_control() -> ray.actor.ActorHandle:
    """Start the actor on the driver's node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(Control).options(num_cpus=0, scheduling_strategy=here).remote()


class Listener:
    """Polls for a stop request in a thread, so that training does not wait for the answer."""

    def __init__(self, control: ray.actor.ActorHandle) -> None:
        self.reason = ""
        self._control = control
        self._closed = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """Stop polling."""
        self._closed.set()

    def _listen(self) -> None:
        while not self._closed.wait(_ASK_S):
            try:
                self.reason = ray.get(self._control.reason.remote(), timeout=30)
            except ray.exceptions.RayError:  # the driver is gone; this process will end, too
                continue
