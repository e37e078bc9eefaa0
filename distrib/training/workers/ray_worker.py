"""What Ray Train runs on every worker."""

from typing import NamedTuple

import ray
import ray.train
import ray.train.torch

from distrib.checkpoint.bundle import BundleFacts
from distrib.data.feeds.loader import TrainingData
from distrib.training.config import TrainingRun
from distrib.training.records import Outcome
from distrib.training.workers.control import Listener
from distrib.training.workers.place import Place
from distrib.training.workers.worker import Inputs, train_rank


class FromDriver(NamedTuple):
    """What the driver passes to every worker."""

    run: str
    """`TrainingRun` as JSON."""

    data: TrainingData
    vocabulary: ray.ObjectRef
    facts: BundleFacts
    token: str
    control: ray.actor.ActorHandle
    shows_bar: bool


def train_worker(settings: dict[str, FromDriver]) -> Outcome:
    """Train as one rank among others; see `train_rank`.

    Args:
        settings: ``{"found": FromDriver}``.

    Returns:
        How training ended.
    """
    found = settings["found"]
    vocabulary = ray.get(found.vocabulary)
    run = TrainingRun.model_validate_json(found.run)
    inputs = Inputs(run, found.data, vocabulary, found.facts, found.token)
    return train_rank(inputs, _place(found.control, shows_bar=found.shows_bar))


def _place(control: ray.actor.ActorHandle, *, shows_bar: bool) -> Place:
    context = ray.train.get_context()
    rank = context.get_world_rank()
    listener = Listener(control) if rank == 0 else None
    return Place(
        rank,
        context.get_world_size(),
        context.get_node_rank(),
        context.get_local_rank(),
        ray.train.torch.get_device(),
        stop_reason=lambda: "" if listener is None else listener.reason,
        preemption=_preempted,
        post_epoch=control.post_epoch.remote,
        post_progress=control.post_progress.remote if shows_bar else None,
        close=lambda: None if listener is None else listener.close(),
    )


def _preempted() -> str:
    notice = ray.train.get_preemption_info()  # waits for all ranks
    return "" if notice is None else f"preemption of ranks {notice.preempted_ranks}"
