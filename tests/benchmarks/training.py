"""Training speed against a bare loop and RecBole, and memory of the chunked loss, in one run.

``make bench-training``, or ``python -m tests.benchmarks.training --recbole .recbole/bin/python``.
Mult-VAE 600-200-600, 500 users a batch, bf16. Ours goes the whole way: Ray Train, DeepSpeed,
ledger, watchdog, meters. ML-1M is measured where DISTRIB_DATA is set; the other log has the items
and interactions per user of ML-20M, and fewer users, so that epochs take seconds. Everything is
measured in processes of its own. Nothing here asserts a figure.
"""

import argparse
import itertools
import json
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
import torch.nn.functional as F
from torch import nn

from distrib.batch import Batch
from distrib.cli import connected
from distrib.cluster.resources import ON_CPU
from distrib.data.config import ConvertConfig, DataConfig
from distrib.data.dataset import Dataset
from distrib.data.export import convert
from distrib.data.feeds.base import BatchSharding, RankBatch
from distrib.data.feeds.loader import TrainingData, load_training_data
from distrib.data.logs.config import MovieLensSource, SyntheticLog
from distrib.data.prepare.job import prepare
from distrib.data.splits.rules import NoSplit
from distrib.evaluation.config import EvaluateConfig
from distrib.events import table
from distrib.models import MultVaeConfig
from distrib.objectives import MultinomialConfig
from distrib.objectives.base import Chunks, LossContext
from distrib.rng import CounterRng
from distrib.storage import Folder
from distrib.training.config import CheckpointConfig, TrainConfig, TrainingRun
from distrib.training.engines.config import EngineConfig
from distrib.training.optimizer import OptimizerConfig
from distrib.training.run_folder import HISTORY
from distrib.training.workers.launch import launch
from distrib.vocabulary import Catalog
from tests.benchmarks.recbole_settings import run_recbole

BATCH_USERS, WARM_UP = 500, 2


def data_configs(folder: str) -> dict[str, DataConfig]:
    found = {}
    split = NoSplit()
    if "DISTRIB_DATA" in os.environ:
        path = f"{os.environ['DISTRIB_DATA']}/ml-1m/ratings.rebuilt.dat.gz"
        found["ML-1M"] = DataConfig(
            prepared=f"{folder}/train-ml1m",
            source=MovieLensSource(path=path),
            split=split,
            num_shards=1,
        )
    large = SyntheticLog(num_users=20_000, num_items=27_000, num_interactions=2_880_000)
    found["ML-20M's items"] = DataConfig(
        prepared=f"{folder}/train-ml20m", source=large, split=split, num_shards=1
    )
    return found


def ours(prepared: str, epochs: int, *, workers: int, threads: int, parallel: str) -> dict:
    """Train some epochs by the job's own way; the first is not counted."""
    with tempfile.TemporaryDirectory() as run:
        launch(
            TrainingRun(
                run=run,
                prepared=prepared,
                seed=0,
                model=MultVaeConfig(),
                objective=MultinomialConfig(),
                optimizer=OptimizerConfig(),
                engine=EngineConfig(parallel=parallel),
                train=TrainConfig(
                    num_epochs=epochs + 1,
                    batch_users=BATCH_USERS,
                    num_workers=workers,
                    cpus_per_worker=threads,
                    checkpoint=CheckpointConfig(every_epochs=0),
                ),
                evaluate=EvaluateConfig(),
            )
        )
        history = Folder(run).read_json(HISTORY)[1:]
    return {
        key: sum(entry[key] for entry in history) / len(history)
        for key in ("users_per_s", "data_share", "communication_share")
    }


class BareMultVae(nn.Module):
    """What one writes without a framework; the first layer is sparse."""

    def __init__(self, item_count: int, hidden: int = 600, latent: int = 200) -> None:
        super().__init__()
        self.table_IH = nn.Parameter(torch.randn(item_count, hidden) * 0.01)
        self.bias_H = nn.Parameter(torch.zeros(hidden))
        self.encoder, self.decoder = nn.Linear(hidden, 2 * latent), nn.Linear(latent, hidden)
        self.output = nn.Linear(hidden, item_count)

    def forward(self, batch: Batch) -> torch.Tensor:
        device = batch.item_N.device
        read = batch.keep(torch.rand(len(batch.item_N), device=device) < 0.5)
        weight_N = 2.0 * batch.length_B.float().rsqrt()[read.row_N]
        bag_BH = F.embedding_bag(
            read.item_N,
            self.table_IH,
            read.pointer_P,
            mode="sum",
            per_sample_weights=weight_N,
            include_last_offset=True,
        )
        mean_BZ, spread_BZ = self.encoder(torch.tanh(bag_BH + self.bias_H)).chunk(2, -1)
        latent_BZ = mean_BZ + torch.exp(0.5 * spread_BZ) * torch.randn_like(mean_BZ)
        score_BI = self.output(torch.tanh(self.decoder(latent_BZ)))
        normaliser_B = torch.logsumexp(score_BI.float(), 1)
        wanted = score_BI[batch.row_N, batch.item_N].float().sum()
        mean_BZ, spread_BZ = mean_BZ.float(), spread_BZ.float()
        divergence = (spread_BZ.exp() + mean_BZ**2 - 1 - spread_BZ).sum()
        return (batch.length_B * normaliser_B).sum() - wanted + 0.1 * divergence


def bare_loop(source: TrainingData, item_count: int, threads: int, batches: int) -> dict:
    """Train in memory, in bf16, with a fused AdamW."""
    torch.set_num_threads(threads)
    model = BareMultVae(item_count)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    feed = source.open_rows(BatchSharding(BATCH_USERS, 0, 0, 1), window_users=0)
    whole = itertools.chain.from_iterable(feed.batches(epoch) for epoch in itertools.count())
    started_s, num_users = 0.0, 0
    for number, (batch, _, size) in enumerate(itertools.islice(whole, WARM_UP + batches)):
        if number == WARM_UP:
            started_s, num_users = time.perf_counter(), 0
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch) / size
        loss.backward()
        optimizer.step()
        num_users += size
    return {"users_per_s": num_users / (time.perf_counter() - started_s)}


def recbole(python: str, prepared: DataConfig, batches: int) -> dict:
    folder = f"{prepared.prepared}-inter"
    if not Path(folder).exists():
        convert(prepared, ConvertConfig(output=folder))
    (inter,) = Path(folder).glob("*.inter")
    threads = os.cpu_count() or 1
    sizes = {"batch_rows": BATCH_USERS, "batches": batches}
    return {"users_per_s": run_recbole(python, inter, "mult_vae", threads=threads, **sizes)}


def loss_memory(item_count: int, *, is_chunked: bool) -> dict:
    """Peak memory of the last layer and its loss, forward and backward, beyond its inputs."""
    torch.set_num_threads(os.cpu_count() or 1)
    catalog = Catalog(item_count, (1.0,), torch.ones(item_count, 1).numpy(), 1)
    model = MultVaeConfig(hidden_width=200, latent_width=50).build(catalog).bfloat16()
    objective = MultinomialConfig().build(catalog)
    generator = torch.Generator().manual_seed(0)
    items = torch.randint(item_count, (BATCH_USERS, 100), generator=generator)
    batch = Batch.from_lists([sorted(set(row)) for row in items.tolist()])
    with torch.no_grad():
        state = model.encode(batch)
    state = tuple(tensor.detach().requires_grad_() for tensor in state)
    context = LossContext(CounterRng.of(0, 0), 0, Chunks(4096))
    with watched() as peak:
        if is_chunked:
            loss_B = objective(model, state, batch, context)[0]
        else:
            score_BI = F.log_softmax(model.decode(state, slice(None)).float(), dim=-1)
            loss_B = -score_BI[batch.row_N, batch.item_N]
        loss_B.sum().backward()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    return {"peak_mb": peak(), "gradients_mb": gradients / 2**20}


class watched:
    """Highest resident memory of this process while inside, above where it began, MiB."""

    def __enter__(self) -> Any:
        self._process, self._going = psutil.Process(), True
        self._first = self._most = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return lambda: (self._most - self._first) / 2**20

    def _watch(self) -> None:
        while self._going:
            self._most = max(self._most, self._process.memory_info().rss)
            time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        self._going = False
        self._thread.join()


def million_items(batches: int) -> dict:
    """Train on a million items: whole softmax by chunks, 256 users, on this machine."""
    catalog = Catalog(1_000_000, (1.0,), torch.ones(1_000_000, 1).numpy(), 1)
    from distrib.training.engines.deepspeed import DeepSpeedEngine
    from distrib.training.step import TrainStep

    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", f"file://{folder}/m", rank=0, world_size=1)
        model = MultVaeConfig(hidden_width=128, latent_width=64).build(catalog)
        step = TrainStep(model, MultinomialConfig().build(catalog), block_items=4096)
        engine = DeepSpeedEngine(
            step, OptimizerConfig(), EngineConfig(), batch_users=256, device=torch.device("cpu")
        )
        rows = torch.randint(1_000_000, (256, 100), generator=torch.Generator().manual_seed(0))
        batch = Batch.from_lists([sorted(set(row)) for row in rows.tolist()])
        for number in range(batches + 1):
            if number == 1:
                started_s = time.perf_counter()
            part = RankBatch(batch, batch, 256)
            update = engine.train_batch(part, CounterRng.of(0, 0), step=number)
            loss = float(update.terms["reconstruction"]) / 256
        elapsed_s = time.perf_counter() - started_s
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"users_per_s": 256 * batches / elapsed_s, "peak_mb": peak_mb, "loss": loss}


def apart(
    task: Any, *arguments: Any, threads: int | None = None, heap: dict | None = None, **options: Any
) -> dict:
    """Run a measurement in a process of its own."""
    cores = threads or os.cpu_count() or 1
    variables = {
        **(ON_CPU if heap is None else heap),
        "LOCAL_RANK": "0",
        "RANK": "0",
        "OMP_NUM_THREADS": str(cores),
    }
    remote = ray.remote(num_cpus=cores, max_calls=1, runtime_env={"env_vars": variables})(task)
    return ray.get(remote.remote(*arguments, **options))


def speed(log: str, config: DataConfig, given: argparse.Namespace) -> list[list[str]]:
    prepare(config)
    source = load_training_data(config.prepared, "resident")
    items = len(Dataset.open(config.prepared).vocabulary)
    cores = os.cpu_count() or 1
    url, epochs = config.prepared, given.epochs
    batches = given.batches if items > 10_000 else 5 * given.batches
    if items < 10_000:
        epochs *= 5  # short ones
    rows = [("bare loop, 2 threads", apart(bare_loop, source, items, cores, batches))]
    whole = {"workers": 1, "threads": cores, "parallel": "data"}
    rows.append(("ours, 1 worker, 2 threads", ours(url, epochs, **whole)))
    if given.recbole:
        rows.append(("RecBole, 2 threads", recbole(given.recbole, config, batches)))
    one = apart(bare_loop, source, items, 1, batches, threads=1)
    rows.append(("bare loop, 1 thread", one))
    for workers, parallel in ((1, "data"), (2, "data"), (2, "rows"), (1, "items"), (2, "items")):
        found = ours(url, epochs, workers=workers, threads=1, parallel=parallel)
        rows.append((f"ours, {workers} x 1 thread, parallel = {parallel}", found))
    return [
        [
            f"{log}: {name}",
            f"{found['users_per_s']:.0f}",
            f"{found['data_share']:.1%}" if "data_share" in found else "",
            f"{found['communication_share']:.0%}" if "communication_share" in found else "",
        ]
        for name, found in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--recbole", help="Python of a virtual environment with RecBole")
    parser.add_argument("--folder", default="runs/bench", help="prepared logs are kept here")
    given = parser.parse_args()
    with connected():
        rows = []
        for log, config in data_configs(str(Path(given.folder).absolute())).items():
            rows += speed(log, config, given)
        memory = [
            [
                f"{items:,} items",  # with a heap that gives back, so that growth is seen
                *(apart(loss_memory, items, heap={}, is_chunked=b) for b in (False, True)),
            ]
            for items in (50_000, 200_000)
        ]
        million = apart(million_items, 3)
    cores, memory_gb = os.cpu_count(), psutil.virtual_memory().total / 2**30
    title = f"Mult-VAE 600-200-600, {BATCH_USERS} users, bf16; {cores} cores, {memory_gb:.0f} GB"
    table(title, ["", "users/s", "waiting for data", "communication"], rows)
    table(
        f"Last layer and loss, {BATCH_USERS} users: peak MB (of it gradients)",
        ["", "plain", "chunked"],
        [[n, *(f"{m['peak_mb']:.0f} ({m['gradients_mb']:.0f})" for m in ms)] for n, *ms in memory],
    )
    print(json.dumps({"speed": rows, "memory": memory, "million_items": million}), file=sys.stdout)


if __name__ == "__main__":
    main()
