"""Run engines on gloo ranks; started as a process per rank by test_engine.py."""

import json
import os
import sys

import deepspeed.accelerator
import numpy as np
import torch
import torch.distributed

from distrib.batch import Batch
from distrib.models.conv4rec import Conv4RecConfig
from distrib.models.mult_vae import MultVaeConfig
from distrib.noise import Noise
from distrib.objectives import MultinomialConfig, RatingClassesConfig
from distrib.train.deepspeed_engine import DeepSpeedEngine
from distrib.train.engine import EngineConfig, OptimizerConfig
from distrib.train.step import TrainStep
from tests.conftest import Small

OPTIMIZER = OptimizerConfig(learning_rate=0.01, weight_decay=0.1, gradient_clipping=5.0)
BATCH_USERS, NUM_STEPS = 11, 6
PRECISIONS = [("fp32", s) for s in range(4)]
PRECISIONS += [(half, s) for half in ("bf16", "fp16") for s in range(1, 4)]
CASES = {
    "conv4rec": (Conv4RecConfig(latent_width=8), RatingClassesConfig(rating_weight=3.0)),
    "conv4rec-mlp": (Conv4RecConfig(latent_width=8, decoder="mlp"), RatingClassesConfig()),
    "mult_vae": (
        MultVaeConfig(hidden_width=16, latent_width=8),
        MultinomialConfig(anneal_steps=10),
    ),
}


def make_step(case: str) -> TrainStep:
    small = Small()
    model, objective = CASES[case]
    torch.manual_seed(0)
    built = model.build(small.catalogue)
    return TrainStep(built, objective.build(small.catalogue.levels), block_items=17)


def fresh_engine(case: str, config: EngineConfig) -> DeepSpeedEngine:
    device = torch.device("cpu")
    return DeepSpeedEngine(
        make_step(case), OPTIMIZER, config, batch_users=BATCH_USERS, device=device
    )


def losses(engine: object, rank: int, world_size: int, first: int = 0) -> list[list[float]]:
    """Mean losses of some steps; the last batch has fewer users than there are ranks."""
    small, found = Small(), []
    for step in range(first, NUM_STEPS):
        size = BATCH_USERS if step < NUM_STEPS - 1 else 1
        users = [(step * BATCH_USERS + place) % 37 for place in range(size)]
        mine = np.array_split(np.array(users), world_size)[rank].tolist()
        batch = small.users(mine) if mine else Batch.from_lists([])
        terms = engine.train_batch(batch, batch, Noise.of(1, 0), step=step, num_users=size)
        summed = torch.stack([terms[name].double() for name in sorted(terms)])
        if world_size > 1:
            torch.distributed.all_reduce(summed)
        found.append((summed / size).tolist())
    return found


def main(rank: int, world_size: int, address: str, folder: str) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{address}", rank=rank, world_size=world_size
    )
    # DeepSpeed takes most CPUs to be unfit for fp16; slow is all that they are.
    deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True
    result = {}
    for case in CASES:
        for precision, stage in PRECISIONS:
            config = EngineConfig(precision=precision, zero_stage=stage)
            engine = fresh_engine(case, config)
            key = f"{case}/{precision}/{stage}"
            result[key] = losses(engine, rank, world_size)
            place = f"{folder}/{case}-{precision}-{stage}"
            engine.save(place)
            weights = engine.weights()
            torch.distributed.barrier()
            again = fresh_engine(case, config)
            again.load(place)
            result[key + "/restored"] = all(
                torch.equal(weights[name], value) for name, value in again.weights().items()
            )
            result[key + "/digest"] = float(sum(value.double().sum() for value in weights.values()))
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
