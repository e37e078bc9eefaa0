"""Training of trials, apart from the processes in which Ray Tune holds trials."""

from typing import NamedTuple

import ray

from distrib.cluster.quiet import quiet
from distrib.errors import StoppedError, known
from distrib.training.config import TrainingRun
from distrib.training.records import EpochRecord
from distrib.training.schemes import is_iterative
from distrib.training.workers.control import start_control
from distrib.training.workers.launch import launch

_ENDED = "the search"
"""Who has stopped a trial."""

_STOP_S = 120.0


class Progress(NamedTuple):
    """What a trial has measured since it was last looked at."""

    epochs: list[EpochRecord]
    is_over: bool
    fault: str
    """Why training failed, if it did; known once it is over."""


class Trainings:
    """Trains the runs of trials in tasks of its own; an actor of the driver of the study.

    Tune ends a trial by ending its process, and a task of that process would be killed with it. Ray
    Train would then leave what its workers hold reserved in the cluster, and later trials would
    wait for it forever. So tasks belong to this actor, which lets them end by themselves.
    """

    def __init__(self) -> None:
        self._running: dict[int, tuple[ray.ObjectRef, ray.actor.ActorHandle]] = {}

    def start(self, number: int, config: TrainingRun) -> None:
        """Begin to train a trial, or to continue it from its last checkpoint."""
        control = start_control()
        task = ray.remote(max_retries=0, num_cpus=0)(_trained)
        self._running[number] = task.remote(config, control), control

    def look(self, number: int, first: int) -> Progress:
        """Return the epochs of a trial from index ``first`` on, and whether it is over."""
        task, control = self._running[number]
        is_over = bool(ray.wait([task], timeout=0)[0])
        fault = ""
        if is_over:
            try:
                ray.get(task)
            except ray.exceptions.RayError as error:
                cause = known(error)
                fault = "" if isinstance(cause, StoppedError) else str(cause or error)
        return Progress(ray.get(control.epochs.remote(first)), is_over, fault)

    def stop(self, number: int) -> None:
        """Let a trial write a checkpoint and end; nothing happens if it has ended."""
        if number in self._running:
            self._running[number][1].stop.remote(_ENDED)

    def wait(self) -> None:
        """Wait until all that was stopped has ended, but not forever."""
        tasks = [task for task, _ in self._running.values()]
        if tasks:
            ray.wait(tasks, num_returns=len(tasks), timeout=_STOP_S)


def _trained(config: TrainingRun, control: ray.actor.ActorHandle) -> None:
    quiet()
    if is_iterative(config):
        launch(config, control=control)
    else:
        launch(config, lambda record: ray.get(control.post_epoch.remote(record)))
