"""Where a rank of a run is, and what it exchanges with its driver."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from distrib.training.records import EpochRecord, Progress


class Place(NamedTuple):
    """One rank among the others, and its way to the driver."""

    rank: int
    world_size: int
    node: int
    """Number of its node; several may share a machine's folder."""

    local_rank: int
    """Rank on its node."""

    device: torch.device
    stop_reason: Callable[[], str]
    """Returns why to stop, on rank 0; empty to continue."""

    preemption: Callable[[], str]
    """Returns which ranks lose their nodes, the same on all ranks; empty where none does."""

    post_epoch: Callable[[EpochRecord], None]
    post_progress: Callable[[Progress], None] | None
    """None where no one would see it."""

    close: Callable[[], None]
