"""The driver's word to the workers of a run."""

import threading

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distrib.train.records import EpochRecord

_ASK_S = 1.0


class Control:
    """Holds what the driver wants, and what it should know; lives on its node."""

    def __init__(self) -> None:
        self._reason = ""
        self._epochs: list[EpochRecord] = []

    def stop(self, reason: str) -> None:
        """Ask the workers to keep their place and leave."""
        self._reason = reason

    def post_epoch(self, record: EpochRecord) -> None:
        """Take note of an epoch."""
        self._epochs.append(record)

    def epochs(self, first: int) -> list[EpochRecord]:
        """Return the epochs that were posted, from the place ``first`` on."""
        return self._epochs[first:]

    def reason(self) -> str:
        """Return why to leave; empty to stay."""
        return self._reason


def start_control() -> ray.actor.ActorHandle:
    """Start the actor beside the driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(Control).options(num_cpus=0, scheduling_strategy=here).remote()


class Listener:
    """Asks the driver now and then, in a thread, so that training does not wait for the answer."""

    def __init__(self, control: ray.actor.ActorHandle) -> None:
        self.reason = ""
        self._control = control
        self._closed = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """Listen no longer."""
        self._closed.set()

    def _listen(self) -> None:
        while not self._closed.wait(_ASK_S):
            try:
                self.reason = ray.get(self._control.reason.remote(), timeout=30)
            except ray.exceptions.RayError:  # the driver is gone; so will this process be
                continue
