"""A training step of every model at the size of ML-20M, beside its plain form: speed and memory.

``make bench-models``, or ``python -m tests.benchmarks.models --steps 5``. Histories are drawn here:
144 interactions of each user among 27,000 items (for I-AutoRec 740 of each item among 138,000
users), popular items more often. The plain form is what a textbook writes: multi-hot rows times
dense layers, the output of all items at once, the loss by autograd. Each figure comes from a
process of its own, in float32, all cores. Nothing here asserts a figure.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distrib.batch import Batch, level_index
from distrib.data.feeds.base import RankBatch
from distrib.events import table
from distrib.models import (
    AutoRecConfig,
    BiasedMfConfig,
    Conv4RecConfig,
    EaseConfig,
    ElsaConfig,
    ItemKnnConfig,
    MultDaeConfig,
    MultVaeConfig,
    RecVaeConfig,
)
from distrib.models.autoencoders import autorec, conv4rec, elsa, mult_vae, rec_vae
from distrib.rng import CounterRng
from distrib.training.engines.local import LocalEngine
from distrib.training.optimizer import OptimizerConfig
from distrib.training.step import TrainStep
from distrib.vocabulary import Catalog

LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0)
BATCH_ROWS, USERS, ITEMS, FIT_ITEMS, FIT_USERS = 256, 138_000, 27_000, 6_000, 20_000
MODELS: dict[str, Any] = {
    "conv4rec": Conv4RecConfig(),
    "conv4rec linear": Conv4RecConfig(latent_width=300, decoder="linear"),
    "mult_vae": MultVaeConfig(),
    "mult_dae": MultDaeConfig(),
    "vae_cf": MultVaeConfig(input="ratings"),
    "dae_cf": MultDaeConfig(input="ratings"),
    "rec_vae encoder": RecVaeConfig(),
    "rec_vae decoder": RecVaeConfig(),
    "elsa": ElsaConfig(latent_width=800),
    "u_autorec": AutoRecConfig(side="users"),
    "i_autorec": AutoRecConfig(side="items"),
    "biased_mf": BiasedMfConfig(),
}
FITTED: dict[str, Any] = {
    "ease": EaseConfig(),
    "ease 200 neighbors": EaseConfig(num_neighbors=200),
    "item_knn": ItemKnnConfig(),
}


def histories(num_rows: int, columns: int, length: int, seed: int) -> Batch:
    """Rows of one length; a column is the likelier the lower."""
    rng = np.random.default_rng(seed)
    drawn = (columns * rng.random((num_rows, 2 * length)) ** 2.5).astype(np.int64)
    item_N = np.concatenate([rng.permutation(np.unique(row))[:length] for row in drawn])
    lengths = [min(length, len(np.unique(row))) for row in drawn]
    pointer_P = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
    values_N = torch.from_numpy(rng.integers(1, 6, len(item_N)).astype(np.float32))
    return Batch(torch.arange(num_rows), pointer_P, torch.from_numpy(item_N), values_N)


def dense_sum(table: Tensor, index_N: Tensor, weight_N: Tensor, pointer_P: Tensor) -> Tensor:
    """The first layer as a multi-hot product."""
    rows = torch.arange(len(pointer_P) - 1).repeat_interleave(pointer_P.diff())
    x = torch.zeros(len(pointer_P) - 1, table.shape[0])
    x = x.index_put((rows, index_N), weight_N.to(x.dtype), accumulate=True)
    return x @ table


def plain_loss(model: Any, name: str, batch: Batch, noise: CounterRng) -> Tensor:
    """All items at once, and the textbook's loss."""
    state = model.encode(batch, noise)
    output = model.decode(state, slice(None))
    place = batch.row_N, batch.item_N
    extra = 0.0
    if name == "cosine":
        x = torch.zeros_like(output).index_put(place, torch.ones(()))
        return (1.0 - F.cosine_similarity(output - x, x)).sum()
    if name == "rating_classes":
        outcome = torch.zeros(output.shape[:2], dtype=torch.int64)
        outcome[place] = level_index(batch.value_N, LEVELS) + 1
        return F.cross_entropy(output.permute(0, 2, 1), outcome, reduction="sum")
    divergence = model.divergence(state)
    if divergence is not None:
        extra = divergence.sum()
    if name == "squared_error":
        rating = torch.zeros_like(output).index_put(place, batch.value_N)
        return torch.where(rating > 0, (output - rating).square(), 0.0).sum() + extra
    x = torch.zeros_like(output).index_put(place, torch.ones(()))
    return -(x * F.log_softmax(output, dim=1)).sum() + extra


def step_figures(name: str, form: str, steps: int) -> dict[str, float]:
    """Time updates in this process."""
    config = MODELS[name]
    is_by_item = config.spec.scheme == "item_rows"
    columns, length = (USERS, 740) if is_by_item else (ITEMS, 144)
    count = np.ones((columns, len(LEVELS)), dtype=np.int64)
    catalog = Catalog(columns, LEVELS, count, USERS, USERS)
    model = config.network(catalog, catalog) if is_by_item else config.build(catalog)
    objective = config.spec.objective
    batches = [histories(BATCH_ROWS, columns, length, seed) for seed in range(steps + 1)]
    step = TrainStep(model, objective.build(catalog), block_items=4096, keep_output_mb=256)
    engine = LocalEngine(step, OptimizerConfig())
    engine.begin_epoch(3 if name.endswith("decoder") else 0)
    if form == "plain":
        for module in (autorec, conv4rec, elsa, mult_vae, rec_vae):
            module.history_sum = dense_sum
    started_s = 0.0
    for number, batch in enumerate(batches):
        if number == 1:
            started_s = time.perf_counter()
        if form == "fast":
            noise = CounterRng.of(0, 0)
            engine.train_batch(RankBatch(batch, batch, BATCH_ROWS), noise, step=number)
        else:
            engine.optimizer.zero_grad()
            loss = plain_loss(model, objective.name, batch, CounterRng.of(0, 0)) / BATCH_ROWS
            loss.backward()
            engine.optimizer.step()
    return {"per_s": steps * BATCH_ROWS / (time.perf_counter() - started_s)}


def fit_figures(name: str, form: str, steps: int) -> dict[str, float]:
    """Time the Gram matrix and the solution in this process."""
    del steps
    from distrib.data.history_arrays import HistoryArrays
    from distrib.training.schemes.gram import partial_gram

    batch = histories(FIT_USERS, FIT_ITEMS, 144, 0)
    flat = batch.user_B, batch.pointer_P, batch.item_N, batch.value_N, batch.item_N
    started_s = time.perf_counter()
    if form == "fast":
        FITTED[name].solve(partial_gram(HistoryArrays(*(part.numpy() for part in flat)), FIT_ITEMS))
    else:
        x = torch.zeros(FIT_USERS, FIT_ITEMS, dtype=torch.float64)
        x[batch.row_N, batch.item_N] = 1.0
        gram = x.T @ x
        if name != "item_knn":
            inverse = torch.linalg.inv(gram + 500.0 * torch.eye(FIT_ITEMS, dtype=torch.float64))
            inverse /= -inverse.diagonal().clone()
        else:
            root = gram.diagonal().sqrt()
            (gram / (root[:, None] * root + 10.0)).fill_diagonal_(0.0).topk(100)
    return {"per_s": FIT_USERS / (time.perf_counter() - started_s)}


def apart(module: str, one: tuple[str, str], steps: int) -> dict[str, float] | None:
    """Measure one of a module's figures in a fresh process; None where memory ran out."""
    command = [sys.executable, "-m", module, "--one", *one]
    done = subprocess.run(
        [*command, "--steps", str(steps)], capture_output=True, text=True, check=False
    )
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if done.returncode == 0 and lines else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "FORM"))
    given = parser.parse_args()
    if given.one:
        name, form = given.one
        figures = (step_figures if name in MODELS else fit_figures)(name, form, given.steps)
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({**figures, "peak_mb": peak_mb}))
        return
    rows = []
    for name in [*MODELS, *FITTED]:
        module = "tests.benchmarks.models"
        found = [apart(module, (name, form), given.steps) for form in ("fast", "plain")]
        reported = [
            text
            for part in found
            for text in ([f"{part['per_s']:.0f}", f"{part['peak_mb']:.0f}"] if part else ["-", "-"])
        ]
        ratio = f"{found[0]['per_s'] / found[1]['per_s']:.1f}x" if all(found) else "-"
        rows.append([name, *reported, ratio])
        print(json.dumps(rows[-1]), flush=True)
    title = f"{os.cpu_count()} cores, batch {BATCH_ROWS}, {ITEMS} items, float32"
    table(title, ["", "rows/s", "peak MB", "plain rows/s", "plain peak MB", "gain"], rows)


if __name__ == "__main__":
    main()
