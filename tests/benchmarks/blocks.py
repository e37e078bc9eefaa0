"""An epoch of VAE-BMF, compared with its literal form and with a plain autoencoder.

``make bench-blocks``, or ``python -m tests.benchmarks.blocks --sizes ml-1m --steps 20``. Ratings
are sampled here, popular items more often. Each result comes from its own process, in float32, one
thread, from some tiles in the middle of an epoch; epoch time is the number of ratings over their
rate. The literal form follows the paper: dense ratings, masked latent vectors of all users and
items as input, and their matrices as parameters; ``tests/models/test_vae_bmf.py`` checks that
losses are equal. VAE-CF is Mult-VAE with squared error. Nothing here asserts a result.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from distrib.data.feeds.base import BatchSharding, RankBatch
from distrib.data.feeds.resident import ResidentFeed
from distrib.data.feeds.tiles import Ratings, TileConfig, TileFeed
from distrib.data.history_arrays import HistoryArrays, by_item
from distrib.events import table
from distrib.models import MultVaeConfig, VaeBmfConfig
from distrib.rng import CounterRng
from distrib.tiles import Tile
from distrib.training.engines.local import LocalEngine
from distrib.training.optimizer import OptimizerConfig
from distrib.training.step import TrainStep
from distrib.vocabulary import Catalog
from tests.benchmarks.models import apart

LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0)


class Size(NamedTuple):
    """Of a log."""

    users: int
    items: int
    per_user: int
    batch: int
    """Users, and items, of a block: the paper's."""


SIZES = {
    "small": Size(1_000, 500, 60, 100),
    "ml-1m": Size(6_040, 3_706, 116, 100),
    "ml-20m": Size(138_000, 27_000, 101, 1000),
}
FORMS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "vae_cf": (
        "plain",
        MultVaeConfig(hidden_width=200, latent_width=50, input="ratings"),
        {},
    ),
    "nested": ("fast", VaeBmfConfig(), {}),
    "nested, analytic": ("fast", VaeBmfConfig(likelihood="analytic"), {}),
    "nested, no attention": ("fast", VaeBmfConfig(attention="none"), {}),
    "nested, 8x the block": ("fast", VaeBmfConfig(), {"times": 8}),
    "sequential": ("fast", VaeBmfConfig(), {"order": "sequential"}),
    "gated, sequential": ("fast", VaeBmfConfig(latent="gated"), {"order": "sequential"}),
    "gated, edges, 64 read": (
        "fast",
        VaeBmfConfig(latent="gated"),
        {"order": "edges", "max_history": 64, "ratings": 50_000},
    ),
    "literal": ("literal", VaeBmfConfig(attention="none"), {}),
}


def log_of(size: Size) -> HistoryArrays:
    """Histories of one length; an item is the likelier the lower."""
    rng = np.random.default_rng(0)
    rows, lengths = [], []
    for _ in range(size.users):
        row = np.unique((size.items * rng.random(size.per_user * 2) ** 2.5).astype(np.int32))
        row = rng.permutation(row)[: size.per_user]
        rows.append(np.sort(row))
        lengths.append(len(row))
    item_N = np.concatenate(rows)
    value_N = rng.integers(1, 6, len(item_N)).astype(np.float32)
    pointer_P = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return HistoryArrays(
        np.arange(size.users), pointer_P, item_N, value_N, np.zeros(len(item_N), np.int8)
    )


class LiteralSide(nn.Module):
    """One side without attention, as written: two networks on dense inputs."""

    def __init__(self, columns: int, config: VaeBmfConfig) -> None:
        super().__init__()
        code, hidden, branch = config.latent_width, config.hidden_width, config.branch_width
        self.code_IZ = torch.randn(columns, code)
        self.nets = nn.ModuleList(
            nn.ModuleDict(
                {
                    "rating": nn.Sequential(nn.Linear(columns, hidden), nn.ReLU()),
                    "rating_next": nn.Sequential(nn.Linear(hidden, branch), nn.ReLU()),
                    "latent": nn.Sequential(nn.Linear(columns * code, hidden), nn.ReLU()),
                    "latent_next": nn.Sequential(nn.Linear(hidden, branch), nn.ReLU()),
                    "output": nn.Linear(2 * branch, code),
                }
            )
            for _ in range(2)
        )

    def forward(self, batch: Any) -> list[torch.Tensor]:
        rating = torch.zeros(batch.num_users, len(self.code_IZ))
        rating[batch.row_N, batch.item_N] = batch.value_N
        wide = ((rating > 0)[:, :, None] * self.code_IZ).flatten(1)
        return [
            net["output"](
                torch.cat(
                    [
                        net["rating_next"](net["rating"](rating)),
                        net["latent_next"](net["latent"](wide)),
                    ],
                    dim=1,
                )
            )
            for net in self.nets
        ]


def literal_step(sides: list[LiteralSide], block: Tile) -> torch.Tensor:
    """The loss of a block from dense inputs."""
    codes, loss = [], torch.zeros(())
    for side, rows in zip(sides, (block.users, block.items), strict=True):
        mean, variance = side(rows.batch)
        variance = torch.sigmoid(variance)
        loss = loss + 0.005 * (variance + mean**2 - 1 - variance.log()).sum()
        codes.append(mean + variance.sqrt() * torch.randn_like(mean))
    found = (codes[0] @ codes[1].T)[block.pairs.row_N, block.pairs.item_N]
    return loss + ((found - block.pairs.value_N) ** 2).sum()


SMALL = ("nested, no attention", "literal")
"""Where the literal form fits: at the size of ML-1M its matrices take 0.4 GB, and their updates
most of a step; at that of ML-20M 7 GB, and 28 GB with gradient and moments."""

Update = Callable[[RankBatch, int], object]


def feed_of(name: str, size: Size) -> Any:
    """Make what a form reads."""
    form, _, settings = FORMS[name]
    rows, times = log_of(size), settings.get("times", 1)
    if form == "plain":
        return ResidentFeed(rows, rows, BatchSharding(256, 0, 0, 1))
    chosen = {key: value for key, value in settings.items() if key != "times"}
    blocks = TileConfig(items=size.batch * times, **chosen)
    ratings = Ratings(rows, by_item(rows), (size.items, size.users))
    return TileFeed(ratings, rows, BatchSharding(size.batch * times, 0, 0, 1), blocks)


def update_of(name: str, size: Size) -> Update:
    """Make what updates a form's model by a batch of some number."""
    form, config, _ = FORMS[name]
    counts = np.ones((size.items, len(LEVELS)), dtype=np.int64)
    catalog = Catalog(size.items, LEVELS, counts, size.users, size.users)
    if form == "literal":
        return _literal_update(size, config)
    is_plain = form == "plain"
    model = config.build(catalog) if is_plain else config.network(catalog, catalog)
    step = TrainStep(model, config.spec.objective.build(catalog), block_items=4096)
    engine = LocalEngine(step, OptimizerConfig(name="adam"))
    noise = CounterRng.of(0, 0)
    return lambda batch, number: engine.train_batch(batch, noise, step=number)


def _literal_update(size: Size, config: VaeBmfConfig) -> Update:
    sides = [LiteralSide(columns, config) for columns in (size.items, size.users)]
    adam = torch.optim.Adam([p for side in sides for p in side.parameters()], fused=True)

    def update(batch: RankBatch, number: int) -> None:
        del number
        adam.zero_grad()
        (literal_step(sides, batch.inputs) / batch.size).backward()
        adam.step()

    return update


def figures(name: str, size: Size, steps: int) -> dict[str, float]:
    """Time updates in this process."""
    feed, update = feed_of(name, size), update_of(name, size)
    epochs = (0, 1) if FORMS[name][2].get("order") == "sequential" else (0,)
    seconds = 0.0  # of an epoch
    for epoch in epochs:
        done, started_s = 0, 0.0
        for number, batch in enumerate(feed.batches(epoch)):
            if number == 1:  # after one warm-up step
                started_s = time.perf_counter()
            update(batch, number)
            done = number
            if done == steps:
                break
        seconds += feed.num_steps(epoch) * (time.perf_counter() - started_s) / done
    return {"pass_s": seconds, "steps": sum(feed.num_steps(epoch) for epoch in epochs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--one", nargs=2, metavar=("FORM", "SIZE"))
    given = parser.parse_args()
    if given.one:
        torch.set_num_threads(1)
        name, size = given.one
        found = figures(name, SIZES[size], given.steps)
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({**found, "peak_mb": peak_mb}))
        return
    for size in given.sizes:
        rows, plain = [], 0.0
        for name in FORMS:
            if (size == "small") != (name in SMALL) and name != "vae_cf":
                continue
            part = apart("tests.benchmarks.blocks", (name, size), given.steps)
            if part is None:
                rows.append([name, "-", "-", "-", "-", "-"])
                continue
            plain = plain or part["pass_s"]
            per_step = 1000 * part["pass_s"] / part["steps"]
            rows.append(
                [
                    name,
                    f"{part['steps']:.0f}",
                    f"{per_step:.1f}",
                    f"{part['pass_s']:.1f}",
                    f"{part['pass_s'] / plain:.1f}x",
                    f"{part['peak_mb']:.0f}",
                ]
            )
            print(json.dumps([size, *rows[-1]]), flush=True)
        head = ["form", "steps of a pass", "ms a step", "s a pass", "of VAE-CF's", "peak MB"]
        table(f"A pass over {size}, one thread", head, rows)


if __name__ == "__main__":
    main()
