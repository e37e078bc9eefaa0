"""What updates of a few shapes cost on a CPU, which cannot record them.

``python -m tests.benchmarks.graphs``: Mult-VAE and Conv4Rec on histories as long as MovieLens-1M's,
in one run with updates of any shape; what a GPU gains by graphs, ``make gpu-check`` measures.
"""

import math
import os

import torch

from distrib.events import table
from tests.gpu.speed import training, world_of

_ROUNDS = 5
_USERS = 500


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    world = world_of(6040, 3416, mean_length=135, is_small=False)
    found = [
        one
        for _ in range(_ROUNDS)
        for one in training(world, torch.device("cpu"), [_USERS], math.inf)
    ]
    rows = []
    for model in world.models:
        best_ms = {
            graphs: min(one.step_ms for one in found if (one.model, one.graphs) == (model, graphs))
            for graphs in (False, True)
        }
        ratio = best_ms[True] / best_ms[False]
        rows.append([model, *(f"{best_ms[graphs]:.1f}" for graphs in best_ms), f"{ratio:.3f}"])
    table(f"An update of {_USERS} users, ms", ["model", "any shape", "few shapes", "ratio"], rows)


if __name__ == "__main__":
    main()
