"""Data-parallel inverse gradient in float64 on gloo ranks; see test_inverse_gradient.py."""

import json
import os
from pathlib import Path

import torch
import torch.distributed

from distrib.batch import Batch
from distrib.data.feeds.base import RankBatch
from distrib.models import GmfConfig, MultVaeConfig
from distrib.objectives import (
    InverseGradientConfig,
    InverseGradientRowsConfig,
    MultinomialConfig,
)
from distrib.rng import CounterRng
from distrib.training.schemes import iterative_scheme_of
from distrib.training.schemes.look_ahead import NAMES
from distrib.training.step import total
from tests.conftest import Small
from tests.in_process import feed_of, run_of, step_of

NUM_STEPS, RATE = 50, 0.1
ROWS = {"base": MultinomialConfig(anneal_steps=10), "warmup_steps": 0, "hold_out": 0.3}
CASES = {
    "exact": (GmfConfig(latent_width=8), InverseGradientConfig(hold_out=0.4)),
    "signs": (
        GmfConfig(latent_width=8),
        InverseGradientConfig(hold_out=0.4, look_ahead="sign", look_ahead_rate=1e-3),
    ),
    "first_order": (
        GmfConfig(latent_width=8),
        InverseGradientConfig(hold_out=0.4, form="first_order", ratio=1.0),
    ),
    "sketched": (
        GmfConfig(latent_width=8),
        InverseGradientConfig(hold_out=0.4, form="sketched", sketch_size=256, ratio=1.0),
    ),
    "rows": (
        MultVaeConfig(hidden_width=8, latent_width=4),
        InverseGradientRowsConfig(**ROWS, form="first_order", ratio=1.0),
    ),
}
BATCH = 3
"""So few that some of four ranks have no row at all."""


def batches_of(case: str, rank: int, world_size: int) -> list[RankBatch]:
    """The first batches of a rank; those of pairs are of both phases in turn."""
    run, small = run_of(*CASES[case], batch_users=BATCH), Small()
    feed = feed_of(iterative_scheme_of(run), run, small, rank, world_size)
    if case != "rows":
        found = list(feed.batches(0))
        return [batch for pair in zip(found, reversed(found), strict=True) for batch in pair]
    return [batch for epoch in range(5) for batch in feed.batches(epoch)]


def trained(case: str, rank: int, world_size: int) -> dict:
    """Plain gradient descent by the mean over all ranks; decisions and parameters at the end."""
    step = step_of(run_of(*CASES[case]), Small()).double()
    with torch.no_grad():  # far enough from the start for decisions of every kind
        for held in step.parameters():
            held.add_(0.1 * torch.randn(held.shape, generator=torch.Generator().manual_seed(1)))
    choices, counts = [], []
    for number, batch in enumerate(batches_of(case, rank, world_size)[:NUM_STEPS]):
        counts.append(batch.target.num_users)
        inputs, target = batch.inputs, _double(batch.target)
        if isinstance(inputs, Batch):
            inputs = target
        step.zero_grad()
        (total(step(inputs, target, CounterRng.of(0, 0), number)) / batch.size).backward()
        for held in step.parameters():
            if world_size > 1:
                torch.distributed.all_reduce(held.grad)
            held.data.sub_(RATE * held.grad)
        sums = step.recorder.sums
        choices.append(
            [float(sums[f"share {n}"][0]) for n in NAMES.values() if f"share {n}" in sums]
        )
    weights = torch.cat([held.detach().reshape(-1) for held in step.parameters()])
    return {"choices": choices, "weights": weights.tolist(), "counts": counts}


def _double(batch: Batch) -> Batch:
    return batch._replace(value_N=batch.value_N.double())


def run_rank(rank: int, world_size: int, folder: Path) -> None:
    """Train every case on all ranks."""
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank)}
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting{world_size}"
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=world_size)
    found = {case: trained(case, rank, world_size) for case in CASES}
    (folder / f"{world_size}-{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
