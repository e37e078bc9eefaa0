"""Models of sequences: events per second and memory beside plain loops and RecBole, in one run.

``make bench-next-item``, or ``python -m tests.benchmarks.next_item --recbole .recbole/bin/python``.
An event is a target: an interaction that is predicted from those before. SASRec has 2 blocks, width
64, and reads 50 interactions; bf16, one thread. Ours goes the whole way on ML-1M (DISTRIB_DATA):
Ray Train, DeepSpeed, ledger, watchdog, meters. Everything is measured in processes of its own.
Nothing here asserts a figure.
"""

import argparse
import itertools
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distrib.batch import Batch
from distrib.cli import connected
from distrib.data.config import ConvertConfig, DataConfig
from distrib.data.dataset import Dataset
from distrib.data.export import convert
from distrib.data.feeds.base import RankBatch
from distrib.data.history_arrays import HistoryArrays, merge
from distrib.data.logs.config import MovieLensSource
from distrib.data.prepare.job import prepare
from distrib.data.splits.rules import NoSplit
from distrib.evaluation.config import EvaluateConfig
from distrib.events import table
from distrib.models import Gru4RecConfig, SasRecConfig
from distrib.objectives import SoftmaxConfig
from distrib.objectives.base import Chunks, LossContext
from distrib.rng import CounterRng
from distrib.sequences import with_targets
from distrib.storage import Folder
from distrib.training.config import CheckpointConfig, TrainConfig, TrainingRun
from distrib.training.engines.config import EngineConfig
from distrib.training.optimizer import OptimizerConfig
from distrib.training.run_folder import HISTORY
from distrib.training.workers.launch import launch
from distrib.vocabulary import Catalog
from tests.benchmarks.recbole_settings import run_recbole
from tests.benchmarks.training import apart, watched

LENGTH, WIDTH, USERS, WARM_UP = 50, 64, 128, 2
SAMPLED, GRU_WIDTH, SESSIONS = 2048, 128, 128
SAS_REC = SasRecConfig(max_length=LENGTH, latent_width=WIDTH)
GRU4REC = Gru4RecConfig(max_length=LENGTH, latent_width=GRU_WIDTH)
FULL = SoftmaxConfig()
PART = SoftmaxConfig(against="sampled", num_sampled=SAMPLED)
MILLION = 1_000_000


def ours(prepared: str, model: Any, objective: SoftmaxConfig, epochs: int) -> dict:
    """Train some epochs by the job's own way; the first is not counted."""
    rows = train_rows(prepared)
    targets = int(np.minimum(np.diff(rows.pointer_P), LENGTH).sum())
    with tempfile.TemporaryDirectory() as run:
        launch(
            TrainingRun(
                run=run,
                prepared=prepared,
                seed=0,
                model=model,
                objective=objective,
                optimizer=OptimizerConfig(),
                engine=EngineConfig(keep_output_mb=2048),
                train=TrainConfig(
                    num_epochs=epochs + 1,
                    batch_users=USERS,
                    checkpoint=CheckpointConfig(every_epochs=0),
                ),
                evaluate=EvaluateConfig(),
            )
        )
        history = Folder(run).read_json(HISTORY)[1:]
    users_per_s = sum(entry["users_per_s"] for entry in history) / len(history)
    return {"events_per_s": users_per_s * targets / rows.num_users}


def train_rows(prepared: str) -> HistoryArrays:
    dataset = Dataset.open(prepared)
    return merge([dataset.train_and_valid(entry)[0] for entry in dataset.manifest.shards])


class PlainSasRec(nn.Module):
    """What one writes without a framework: padded histories, all scores at once."""

    def __init__(self, item_count: int) -> None:
        super().__init__()
        self.items = nn.Embedding(item_count + 1, WIDTH, padding_idx=0)
        self.places = nn.Embedding(LENGTH, WIDTH)
        nn.init.normal_(self.items.weight, std=WIDTH**-0.5)
        self.blocks = nn.ModuleList(PlainBlock() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, item_BL: Tensor) -> Tensor:
        hidden = self.items(item_BL) * WIDTH**0.5 + self.places.weight[: item_BL.shape[1]]
        hidden = F.dropout(hidden, 0.2)
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden)


class PlainBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.query, self.key_value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.mix, self.widen, self.narrow = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.norms[0](hidden)
        key, value = self.key_value(hidden).chunk(2, -1)
        heads = [part[:, None] for part in (self.query(normed), key, value)]
        read = F.scaled_dot_product_attention(*heads, is_causal=True)[:, 0]
        hidden = normed + F.dropout(self.mix(read), 0.2)
        normed = self.norms[1](hidden)
        wide = F.dropout(F.relu(self.widen(normed)), 0.2)
        return normed + F.dropout(self.narrow(wide), 0.2)


def padded(rows: HistoryArrays, users: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield input and targets, shifted by one, of shuffled users; items from 1, 0 is padding."""
    histories = np.split(rows.item_N, rows.pointer_P[1:-1])
    generator = np.random.default_rng(0)
    while True:
        order = generator.permutation(len(histories))
        for start in range(0, len(order) - users + 1, users):
            item_BL = np.zeros((users, LENGTH + 1), np.int64)
            for row, user in enumerate(order[start : start + users]):
                last = histories[user][-LENGTH - 1 :] + 1
                item_BL[row, : len(last)] = last
            whole = torch.from_numpy(item_BL)
            yield whole[:, :-1], whole[:, 1:]


def plain_loop(rows: HistoryArrays, item_count: int, batches: int, users: int, full: bool) -> dict:
    """Train in memory, in bf16, with a fused Adam; the softmax over all items or a sample."""
    torch.set_num_threads(1)
    model = PlainSasRec(item_count)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    events, started_s = 0, 0.0
    for number, (read_BL, next_BL) in enumerate(
        itertools.islice(padded(rows, users), WARM_UP + batches)
    ):
        if number == WARM_UP:
            events, started_s = 0, time.perf_counter()
        optimizer.zero_grad()
        is_there_BL = next_BL > 0
        with torch.autocast("cpu", torch.bfloat16):
            hidden_TZ, next_T = model(read_BL)[is_there_BL], next_BL[is_there_BL]
            weight_IZ = model.items.weight
            if full:
                loss = F.cross_entropy((hidden_TZ @ weight_IZ.T).float(), next_T)
            else:
                drawn_D = torch.randint(1, item_count + 1, (SAMPLED,))
                own_T1 = (hidden_TZ * model.items(next_T)).sum(1, keepdim=True)
                other_TD = hidden_TZ @ model.items(drawn_D).T + np.log(item_count / SAMPLED)
                other_TD = other_TD.masked_fill(drawn_D == next_T[:, None], -torch.inf)
                score = torch.cat([own_T1, other_TD], 1).float()
                loss = F.cross_entropy(score, torch.zeros_like(next_T))
        loss.backward()
        optimizer.step()
        events += len(next_T)
    return {"events_per_s": events / (time.perf_counter() - started_s), "peak_mb": peak_mb()}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def recbole(python: str, prepared: DataConfig, batches: int) -> dict:
    folder = f"{prepared.prepared}-inter"
    if not Path(folder).exists():
        convert(prepared, ConvertConfig(output=folder))
    (inter,) = Path(folder).glob("*.inter")
    sizes = {"batch_rows": 2048, "batches": batches}
    return {"events_per_s": run_recbole(python, inter, "sas_rec", threads=1, **sizes)}


def synthetic(users: int) -> HistoryArrays:
    """Histories of 51 items, uniform among a million."""
    items = np.random.default_rng(0).integers(0, MILLION, users * (LENGTH + 1), dtype=np.int32)
    pointer_P = np.arange(users + 1, dtype=np.int64) * (LENGTH + 1)
    ones = np.ones(len(items), np.float32)
    return HistoryArrays(np.arange(users), pointer_P, items, ones, np.zeros(len(items), np.int8))


def million(objective: SoftmaxConfig, users: int, batches: int) -> dict:
    """Train on a million items with DeepSpeed."""
    from distrib.training.engines.deepspeed import DeepSpeedEngine
    from distrib.training.schemes.next_item import NextItem

    torch.set_num_threads(1)
    catalog = Catalog(MILLION, (1.0,), np.ones((MILLION, 1), np.int64), 1)
    rows = synthetic(users)
    whole = Batch(*(torch.from_numpy(part) for part in rows[:4]))
    batch = RankBatch(
        *with_targets(whole._replace(item_N=whole.item_N.long()), LENGTH, every=True), users
    )
    config = EngineConfig()
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", f"file://{folder}/m", rank=0, world_size=1)
        step = NextItem().step(SAS_REC.build(catalog), objective.build(catalog), config)
        engine = DeepSpeedEngine(
            step, OptimizerConfig(), config, batch_users=users, device=torch.device("cpu")
        )
        started_s = 0.0
        for number in range(batches + 1):
            if number == 1:
                started_s = time.perf_counter()
            engine.train_batch(batch, CounterRng.of(0, 0), step=number)
        elapsed_s = time.perf_counter() - started_s
    events = batch.target.num_users * batches
    return {"events_per_s": events / elapsed_s, "peak_mb": peak_mb()}


def plain_million(users: int, batches: int, *, full: bool) -> dict:
    return plain_loop(synthetic(users), MILLION, batches, users, full)


def loss_memory(item_count: int, events: int, *, is_chunked: bool) -> dict:
    """Peak memory of the scores and their loss, forward and backward, beyond the inputs."""
    torch.set_num_threads(1)
    catalog = Catalog(item_count, (1.0,), np.ones((item_count, 1), np.int64), 1)
    model, objective = SAS_REC.build(catalog).bfloat16(), FULL.build(catalog)
    generator = torch.Generator().manual_seed(0)
    state_TZ = torch.randn(events, WIDTH, generator=generator).bfloat16().requires_grad_()
    item_T = torch.randint(item_count, (events,), generator=generator)
    target = Batch(item_T, torch.arange(events + 1), item_T, torch.ones(events))
    context = LossContext(CounterRng.of(0, 0), 0, Chunks(4096))
    with watched() as peak:
        if is_chunked:
            loss_T = objective(model, (state_TZ,), target, context)[0]
        else:
            score_TI = (state_TZ @ model.input_IZ.T).float()
            loss_T = F.cross_entropy(score_TI, item_T, reduction="none")
        loss_T.sum().backward()
    return {"peak_mb": peak(), "loss": float(loss_T.sum())}


class PlainGru(nn.Module):
    """The published recipe: one step of many sessions at a time, no gradient through time."""

    def __init__(self, item_count: int) -> None:
        super().__init__()
        self.items = nn.Embedding(item_count, GRU_WIDTH, sparse=True)
        self.biases = nn.Embedding(item_count, 1, sparse=True)
        nn.init.xavier_uniform_(self.items.weight)
        nn.init.zeros_(self.biases.weight)
        self.cell = nn.GRUCell(GRU_WIDTH, GRU_WIDTH)

    def forward(self, item_B: Tensor, state_BZ: Tensor, wanted_J: Tensor) -> tuple[Tensor, Tensor]:
        state_BZ = self.cell(self.items(item_B), state_BZ)
        return state_BZ @ self.items(wanted_J).T + self.biases(wanted_J)[:, 0], state_BZ


def session_parallel(rows: HistoryArrays, item_count: int, steps: int) -> dict:
    """Train GRU4Rec on sessions side by side; targets of others and a sample are negatives."""
    torch.set_num_threads(1)
    model = PlainGru(item_count)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
    count_I = np.bincount(rows.item_N, minlength=item_count)
    share_I = torch.from_numpy(count_I**0.5 / (count_I**0.5).sum())
    log_q_I = torch.log(share_I.float().clamp(min=1e-12))
    last = np.diff(rows.pointer_P).clip(max=LENGTH + 1)
    stop_S, start_S = rows.pointer_P[1:], rows.pointer_P[1:] - last
    place_B, session_B = start_S[:SESSIONS].copy(), np.arange(SESSIONS)
    state_BZ, coming, events, started_s = torch.zeros(SESSIONS, GRU_WIDTH), SESSIONS, 0, 0.0
    for number in range(WARM_UP + steps):
        if number == WARM_UP:
            events, started_s = 0, time.perf_counter()
        read_B, next_B = (torch.from_numpy(rows.item_N[place_B + n].astype(int)) for n in (0, 1))
        drawn_D = torch.multinomial(share_I, SAMPLED, replacement=True)
        wanted_J = torch.cat([next_B, drawn_D])
        score_BJ, state_BZ = model(read_B, state_BZ.detach(), wanted_J)
        loss = F.cross_entropy(score_BJ - log_q_I[wanted_J], torch.arange(SESSIONS))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        events += SESSIONS
        place_B += 1
        for slot in np.flatnonzero(place_B + 1 >= stop_S[session_B]):
            session_B[slot] = coming % rows.num_users
            place_B[slot], coming = start_S[session_B[slot]], coming + 1
            state_BZ = state_BZ.detach().clone()
            state_BZ[slot] = 0.0
    return {"events_per_s": events / (time.perf_counter() - started_s)}


def speeds(config: DataConfig, given: argparse.Namespace) -> list[list[str]]:
    prepare(config)
    rows, items = train_rows(config.prepared), len(Dataset.open(config.prepared).vocabulary)
    plain = apart(plain_loop, rows, items, given.batches, USERS, full=True, threads=1)
    found = [
        ("SASRec, all items: plain loop", plain),
        ("SASRec, all items: ours", ours(config.prepared, SAS_REC, FULL, given.epochs)),
        (
            f"GRU4Rec, {SAMPLED:,} sampled: session-parallel plain loop",
            apart(session_parallel, rows, items, 10 * given.batches, threads=1),
        ),
        (
            f"GRU4Rec, {SAMPLED:,} sampled: ours",
            ours(config.prepared, GRU4REC, PART, given.epochs),
        ),
    ]
    if given.recbole:
        peer = recbole(given.recbole, config, given.batches)
        found.insert(2, ("SASRec, all items: RecBole", peer))
    return [[f"ML-1M, {name}", f"{each['events_per_s']:,.0f}", ""] for name, each in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--recbole", help="Python of a virtual environment with RecBole")
    parser.add_argument("--folder", default="runs/bench", help="prepared logs are kept here")
    given = parser.parse_args()
    source = MovieLensSource(path=f"{os.environ['DISTRIB_DATA']}/ml-1m/ratings.rebuilt.dat.gz")
    prepared = f"{Path(given.folder).absolute()}/train-ml1m"
    config = DataConfig(prepared=prepared, source=source, split=NoSplit(), num_shards=1)
    with connected():
        rows = speeds(config, given)
        for name, task, settings in (
            ("all items, 8 users a batch: plain loop", plain_million, {"full": True, "users": 8}),
            ("all items, 8 users: ours", million, {"objective": FULL, "users": 8}),
            ("all items, 64 users: ours", million, {"objective": FULL, "users": 64}),
            (f"{SAMPLED:,} sampled: plain loop", plain_million, {"full": False, "users": USERS}),
            (f"{SAMPLED:,} sampled: ours", million, {"objective": PART, "users": USERS}),
        ):
            found = apart(task, threads=1, batches=3, **settings)
            rows.append(
                [
                    f"1,000,000 items, SASRec, {name}",
                    f"{found['events_per_s']:,.0f}",
                    f"{found['peak_mb']:,.0f}",
                ]
            )
        memory = []
        for items in (50_000, 200_000):  # with a heap that gives back, so that growth is seen
            both = [
                apart(loss_memory, items, 1000, threads=1, heap={}, is_chunked=b)
                for b in (False, True)
            ]
            sizes = [each["peak_mb"] for each in both]
            memory.append(
                [f"{items:,}", *(f"{mb:,.0f}" for mb in sizes), f"{sizes[0] / sizes[1]:.1f}"]
            )
    table("One thread, bf16", ["", "events/s", "peak MB of the process"], rows)
    columns = ["items", "naive", "by chunks", "ratio"]
    table("Softmax of 1,000 events over all items: peak MB beyond its inputs", columns, memory)
    json.dump({"speed": rows, "memory": memory}, sys.stdout)


if __name__ == "__main__":
    main()
