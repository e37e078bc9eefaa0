"""Training in this process, for runs that would take longer to start on a cluster than to train."""

from collections.abc import Callable

import torch
import torch.distributed
from torch.distributed import HashStore  # type: ignore[attr-defined]

from distrib.checkpoint.bundle import BundleFacts
from distrib.cluster.resources import ON_CPU
from distrib.data.dataset import Dataset
from distrib.data.feeds.loader import read_training_data
from distrib.training.config import TrainingRun
from distrib.training.records import EpochRecord, Outcome
from distrib.training.schemes import scheme_of
from distrib.training.workers.place import Place
from distrib.training.workers.worker import Inputs, train_rank

ENVIRONMENT = {**ON_CPU, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
"""Environment of a process that trains so; DeepSpeed reads it."""


def train_alone(
    run: TrainingRun,
    dataset: Dataset,
    token: str,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> Outcome:
    """Train as the only rank, on the CPU, in this process.

    Args:
        run: The run, with its feed chosen.
        dataset: The prepared data.
        token: See `distrib.fence`.
        on_epoch: Called with the record of each epoch.

    Returns:
        How training ended.
    """
    if not torch.distributed.is_initialized():  # it stays up: a process trains many runs
        torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    torch.set_num_threads(run.train.cpus_per_worker)
    assert run.train.feed != "auto"  # the caller has chosen
    data = read_training_data(run.prepared, run.train.feed, scheme_of(run).reads)
    facts = BundleFacts(data=dataset.hash, seed=run.seed)
    inputs = Inputs(run.absolute(), data, dataset.vocabulary, facts, token)
    return train_rank(inputs, _place(on_epoch or _ignored))


def _ignored(_record: EpochRecord) -> None:
    return None


def _place(post_epoch: Callable[[EpochRecord], None]) -> Place:
    return Place(
        rank=0,
        world_size=1,
        node=0,
        local_rank=0,
        device=torch.device("cpu"),
        stop_reason=lambda: "",
        preemption=lambda: "",
        post_epoch=post_epoch,
        post_progress=None,
        close=lambda: None,
    )
