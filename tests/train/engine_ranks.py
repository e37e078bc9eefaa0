"""Run engines on gloo ranks, a process each; see test_engine.py."""

import gc
import json
import os
from pathlib import Path
from typing import NamedTuple

import deepspeed.accelerator
import numpy as np
import torch
import torch.distributed

from distrib.batch import Batch
from distrib.checkpoint.state import SavedState, write_pieces
from distrib.data.feeds.base import RankBatch
from distrib.models import (
    AutoRecConfig,
    BiasedMfConfig,
    Conv4RecConfig,
    ElsaConfig,
    MultVaeConfig,
    RecVaeConfig,
    VaeBmfConfig,
)
from distrib.objectives import (
    CosineConfig,
    MultinomialConfig,
    RatingClassesConfig,
    SquaredErrorConfig,
)
from distrib.rng import CounterRng
from distrib.train.engines.config import EngineConfig
from distrib.train.engines.deepspeed import DeepSpeedEngine
from distrib.train.engines.item_parallel import ItemEngine
from distrib.train.optimizer import OptimizerConfig, ScheduleConfig
from distrib.train.step import TrainStep
from tests.conftest import Small
from tests.training import network_of, run_of

OPTIMIZER = OptimizerConfig(
    learning_rate=0.01,
    weight_decay=0.1,
    gradient_clipping=5.0,
    schedule=ScheduleConfig(name="cosine", warmup_steps=2, decay_steps=8, final_share=0.1),
)
BATCH_USERS, NUM_STEPS = 11, 6
CASES = {
    "conv4rec": (
        Conv4RecConfig(latent_width=8, rating_width=4),
        RatingClassesConfig(rating_weight=3.0),
    ),
    "conv4rec-mlp": (
        Conv4RecConfig(latent_width=8, decoder="mlp"),
        RatingClassesConfig(),
    ),
    "mult_vae": (
        MultVaeConfig(hidden_width=16, latent_width=8),
        MultinomialConfig(anneal_steps=10),
    ),
    "mult_vae-denoised": (  # decodes more than it reads
        MultVaeConfig(hidden_width=16, latent_width=8),
        MultinomialConfig(anneal_steps=10),
    ),
    "mult_vae-sampled": (
        MultVaeConfig(hidden_width=16, latent_width=8),
        MultinomialConfig(anneal_steps=10, num_sampled=20),
    ),
    "mult_vae-ratings": (
        MultVaeConfig(hidden_width=16, latent_width=8, reads="ratings"),
        SquaredErrorConfig(divergence_cap=0.1),
    ),
    "rec_vae": (
        RecVaeConfig(hidden_width=16, latent_width=8),
        MultinomialConfig(divergence_cap=1.0, anneal_steps=0),
    ),
    "elsa": (ElsaConfig(latent_width=8), CosineConfig()),
    "biased_mf": (BiasedMfConfig(latent_width=8), SquaredErrorConfig()),
    "autorec": (AutoRecConfig(side="users", hidden_width=16), SquaredErrorConfig()),
    "vae_bmf": (
        VaeBmfConfig(latent_width=8, branch_width=8, hidden_width=8),
        SquaredErrorConfig(divergence_cap=1.0),
    ),
}


class Job(NamedTuple):
    """Some updates by one engine."""

    case: str
    engine: dict
    begin: str | None = None
    """Folder of the state to go on from."""

    first: int = 0
    last: int = NUM_STEPS
    save: str | None = None
    optimizer: str = "adamw"


def make_step(case: str) -> TrainStep:
    small = Small()
    model, objective = CASES[case]
    network = network_of(run_of(model), small)
    return TrainStep(network, objective.build(small.catalog), block_items=17)


def fresh_engine(job: Job) -> object:
    special = {"sgd": {"momentum": 0.5}, "adagrad": {"weight_decay": 0.0}}.get(job.optimizer, {})
    optimizer = OPTIMIZER.model_copy(update={"name": job.optimizer} | special)
    config = EngineConfig(**job.engine)
    make = ItemEngine if config.parallel == "items" else DeepSpeedEngine
    return make(
        make_step(job.case), optimizer, config, batch_users=BATCH_USERS, device=torch.device("cpu")
    )


def losses(
    case: str,
    engine: object,
    rank: int,
    world_size: int,
    first: int = 0,
    last: int = NUM_STEPS,
) -> list[list[float]]:
    """Mean losses of some steps; the last batch has fewer users than there are ranks.

    Each step is an epoch to the model, so that those trained in turns take them.
    """
    small, found = Small(), []
    for step in range(first, last):
        if case == "vae_bmf":
            feed = small.tile_feed(BATCH_USERS, rank, world_size, items=13)
            batch = next(feed.batches(0, first_step=step))
        else:
            size = BATCH_USERS if step < NUM_STEPS - 1 else 1
            chosen = [(step * BATCH_USERS + place) % 37 for place in range(size)]
            mine = np.array_split(np.array(chosen), world_size)[rank].tolist()
            users = small.users(mine) if mine else Batch.from_lists([])
            read = users.keep(users.item_N % 3 > 0) if case == "mult_vae-denoised" else users
            batch = RankBatch(read, users, size)
        engine.begin_epoch(step)
        update = engine.train_batch(batch, CounterRng.of(1, 0), step=step)
        summed = torch.stack([update.terms[name].double() for name in sorted(update.terms)])
        if world_size > 1:
            torch.distributed.all_reduce(summed)
        found.append((summed / batch.size).tolist())
        engine.end_epoch(step)
    return found


def done(job: Job, rank: int, world_size: int) -> dict:
    """Do a job on all ranks; every rank returns what it saw."""
    engine = fresh_engine(job)
    if job.begin:
        facts = json.loads((Path(job.begin) / "facts.json").read_text())
        engine.restore(SavedState(Path(job.begin)), facts)
    found = {"losses": losses(job.case, engine, rank, world_size, job.first, job.last)}
    if job.save:
        folder = Path(job.save)
        folder.mkdir(parents=True, exist_ok=True)
        write_pieces(folder / f"state-{rank}.safetensors", engine.pieces())
        (folder / "facts.json").write_text(json.dumps(engine.facts()))
    weights = engine.weights()
    found["digest"] = float(sum(value.double().abs().sum() for value in weights.values()))
    torch.distributed.barrier()
    return found


def run_rank(rank: int, world_size: int, folder: Path) -> None:
    """Do the jobs of a folder; what this process prints is kept there, too."""
    with (folder / f"log{rank}").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank)}
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=world_size)
    # DeepSpeed takes most CPUs to be unfit for fp16; slow is all that they are.
    deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True
    jobs = json.loads((folder / "jobs.json").read_text())
    result = []
    for job in jobs:
        result.append(done(Job(*job), rank, world_size))
        # DeepSpeed collects garbage several times per engine, each time among all that is left.
        gc.collect()
        gc.freeze()
    (folder / f"result{rank}.json").write_text(json.dumps(result))
