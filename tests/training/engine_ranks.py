"""Run engines on gloo ranks, a process each; see test_engine.py."""

import functools
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
from distrib.data.feeds.sequences import split_off_targets
from distrib.models import (
    AutoRecConfig,
    BiasedMfConfig,
    Conv4RecConfig,
    DeepFmConfig,
    ElsaConfig,
    GmfConfig,
    Gru4RecConfig,
    MultVaeConfig,
    NeuMfConfig,
    RecVaeConfig,
    SasRecConfig,
    VaeBmfConfig,
    YoutubeDnnConfig,
)
from distrib.models.sequential.config import SequenceConfig
from distrib.objectives import (
    BprMaxConfig,
    CosineConfig,
    GbceConfig,
    InverseDualConfig,
    InverseDualRowsConfig,
    InverseGradientConfig,
    InverseGradientRowsConfig,
    MultinomialConfig,
    PositiveUnlabeledConfig,
    RatingClassesConfig,
    SoftmaxConfig,
    SquaredErrorConfig,
    TruncatedConfig,
)
from distrib.rng import CounterRng
from distrib.training import build
from distrib.training.engines.base import Update
from distrib.training.engines.config import EngineConfig
from distrib.training.engines.deepspeed import DeepSpeedEngine
from distrib.training.engines.item_parallel import ItemEngine
from distrib.training.engines.row_sums import RowSums
from distrib.training.optimizer import OptimizerConfig, ScheduleConfig
from distrib.training.schemes import iterative_scheme_of
from distrib.training.schemes.look_ahead import NAMES
from distrib.training.step import TrainStep
from tests.conftest import Small
from tests.in_process import feed_of, run_of, step_of, vocabulary_of

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
        MultVaeConfig(hidden_width=16, latent_width=8, input="ratings"),
        SquaredErrorConfig(kl_weight=0.1),
    ),
    "rec_vae": (
        RecVaeConfig(hidden_width=16, latent_width=8),
        MultinomialConfig(kl_weight=1.0, anneal_steps=0),
    ),
    "elsa": (ElsaConfig(latent_width=8), CosineConfig()),
    "biased_mf": (BiasedMfConfig(latent_width=8), SquaredErrorConfig()),
    "autorec": (AutoRecConfig(side="users", hidden_width=16), SquaredErrorConfig()),
    "vae_bmf": (
        VaeBmfConfig(latent_width=8, branch_width=8, hidden_width=8),
        SquaredErrorConfig(kl_weight=1.0),
    ),
    "gmf-inverse_dual": (GmfConfig(latent_width=8), InverseDualConfig()),
    "gmf-truncated": (GmfConfig(latent_width=8), TruncatedConfig(drop_share=0.3, gradual_steps=1)),
    "gmf-unlabeled": (GmfConfig(latent_width=8), PositiveUnlabeledConfig()),
    "gmf-gradient": (
        GmfConfig(latent_width=8),
        InverseGradientConfig(
            hold_out=0.3, form="sketched", sketch_size=512, dead_zone=0.0, alternate="epochs"
        ),
    ),
    "gmf-exact_gradient": (
        GmfConfig(latent_width=8),
        InverseGradientConfig(hold_out=0.3, look_ahead="sign", alternate="epochs"),
    ),
    "neumf-exact_gradient": (
        NeuMfConfig(gmf_width=4, mlp_width=8, hidden_widths=(8, 4)),
        InverseGradientConfig(hold_out=0.3, look_ahead_rate=0.1, alternate="epochs"),
    ),
    "sas_rec": (
        SasRecConfig(max_length=9, latent_width=8, block="gated", tied=False),
        SoftmaxConfig(),
    ),
    "sas_rec-in_batch": (
        SasRecConfig(max_length=9, latent_width=8, targets="last"),
        SoftmaxConfig(against="batch"),
    ),
    "gru4rec": (
        Gru4RecConfig(max_length=9, latent_width=8, dropout=0.2, input_dropout=0.2),
        BprMaxConfig(num_sampled=20),
    ),
    "youtube_dnn": (
        YoutubeDnnConfig(max_length=9, latent_width=8, hidden_widths=(16,)),
        GbceConfig(),
    ),
    "deep_fm": (
        DeepFmConfig(max_length=9, latent_width=8, targets="every", hidden_widths=(16,)),
        GbceConfig(num_sampled=7, shared=True, calibration=0.5),
    ),
    "mult_vae-inverse_dual": (
        MultVaeConfig(hidden_width=16, latent_width=8),
        InverseDualRowsConfig(base=MultinomialConfig(anneal_steps=10), warmup_steps=1),
    ),
    "conv4rec-gradient": (
        Conv4RecConfig(latent_width=8, rating_width=4),
        InverseGradientRowsConfig(
            base=RatingClassesConfig(), warmup_steps=1, hold_out=0.3, ratio=1.0
        ),
    ),
    "mult_vae-gradient": (
        MultVaeConfig(hidden_width=16, latent_width=8),
        InverseGradientRowsConfig(
            base=MultinomialConfig(anneal_steps=10),
            form="first_order",
            warmup_steps=1,
            hold_out=0.3,
            ratio=1.0,
        ),
    ),
}
DECISIONS = tuple(f"share {name}" for name in NAMES.values())


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
    return step_of(run_of(*CASES[case], batch_users=BATCH_USERS), Small())


def fresh_engine(job: Job) -> object:
    special = {"sgd": {"momentum": 0.5}, "adagrad": {"weight_decay": 0.0}}.get(job.optimizer, {})
    optimizer = OPTIMIZER.model_copy(update={"name": job.optimizer} | special)
    config = EngineConfig(**job.engine)
    if config.parallel == "rows":
        build.RowSums = functools.partial(RowSums, many_rows=9, few_numbers=100)
        run = run_of(*CASES[job.case], batch_users=BATCH_USERS)
        engine = config.model_copy(update={"block_items": 17})
        seed = run.seed + torch.distributed.get_rank()  # all start as the first does
        run = run.model_copy(update={"optimizer": optimizer, "engine": engine, "seed": seed})
        return build.build_engine(run, vocabulary_of(Small()), torch.device("cpu"))
    make = ItemEngine if config.parallel == "items" else DeepSpeedEngine
    step = make_step(job.case)
    with torch.no_grad():
        for parameter in step.parameters():
            parameter.add_(torch.distributed.get_rank())  # all start as the first does
    return make(step, optimizer, config, batch_users=BATCH_USERS, device=torch.device("cpu"))


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
    model, _ = CASES[case]
    for step in range(first, last):
        if model.spec.scheme == "pairs":
            batch = pairs_of(case, small, step, rank, world_size)
        elif case == "vae_bmf":
            feed = small.tile_feed(BATCH_USERS, rank, world_size, items=13)
            batch = next(feed.batches(0, first_step=step))
        else:
            size = BATCH_USERS if step < NUM_STEPS - 1 else 1
            chosen = [(step * BATCH_USERS + place) % 37 for place in range(size)]
            mine = np.array_split(np.array(chosen), world_size)[rank].tolist()
            users = small.users(mine) if mine else Batch.from_lists([])
            read = users.keep(users.item_N % 3 > 0) if case == "mult_vae-denoised" else users
            batch = RankBatch(read, users, size)
            if isinstance(model, SequenceConfig):
                batch = split_off_targets(batch, model.max_length, every=model.every)
        engine.begin_epoch(step)
        update = engine.train_batch(batch, CounterRng.of(1, 0), step=step)
        summed = torch.stack([update.terms[name].double() for name in sorted(update.terms)])
        if world_size > 1:
            torch.distributed.all_reduce(summed)
        found.append((summed / batch.size).tolist() + decision_of(update, world_size))
        engine.end_epoch(step)
    return found


def pairs_of(case: str, small: Small, step: int, rank: int, world_size: int) -> RankBatch:
    """A batch of pairs; odd steps are of the last phase, whose last batch is the smallest."""
    run = run_of(*CASES[case], batch_users=BATCH_USERS)
    feed = feed_of(iterative_scheme_of(run), run, small, rank, world_size)
    place = step if step % 2 == 0 else feed.num_steps(0) - NUM_STEPS + step
    return next(feed.batches(0, first_step=place))


def decision_of(update: Update, world_size: int) -> list[float]:
    """What was decided, over all ranks; no numbers where nothing is."""
    if not any(name in update.recorded for name in DECISIONS):
        return [0.0] * len(DECISIONS)
    sums = torch.stack([update.recorded[name] for name in DECISIONS])
    if world_size > 1:
        torch.distributed.all_reduce(sums)
    return (sums[:, 0] / sums[:, 1]).tolist()


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
