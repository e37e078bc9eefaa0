"""Bulk scoring from Parquet to Parquet, compared with other libraries in memory.

``make bench-scoring``, or ``python -m tests.benchmarks.scoring --recbole .recbole/bin/python``.
Mult-VAE 600-200-600 with untrained weights, top 100 without seen items, on a log with the items and
interactions per user of ML-20M. Ours runs the full path: Ray Data, digests, Parquet in and out, one
actor with one thread on each core. The bare loop, RecBole's full-sort evaluation and implicit's
batch recommend have their data in memory and use all threads. Each measurement runs in its own
process. Nothing here asserts a result.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
import torch.nn.functional as F

from distrib.checkpoint.bundle import BUNDLE, BundleFacts, write_bundle
from distrib.cli import connected
from distrib.data.config import ConvertConfig, DataConfig
from distrib.data.dataset import Dataset
from distrib.data.export import convert
from distrib.data.feeds.collate import gather
from distrib.data.history_arrays import HistoryArrays, history_arrays, merge
from distrib.data.logs.config import SyntheticLog
from distrib.data.prepare.job import prepare
from distrib.data.splits.rules import NoSplit
from distrib.events import table
from distrib.models import Conv4RecConfig, ElsaConfig, MultVaeConfig
from distrib.scoring.bulk.job import score
from distrib.scoring.policy import ScoreConfig
from distrib.storage import Folder

K, BATCH_USERS = 100, 512


def data_config(folder: str, users: int) -> DataConfig:
    log = SyntheticLog(num_users=users, num_items=27_000, num_interactions=users * 145)
    shards = max(2, users // 10_000)
    prepared = f"{folder}/score-{users}"
    return DataConfig(prepared=prepared, source=log, split=NoSplit(), num_shards=shards)


def write_run(run: str, prepared: str, config: Any) -> None:
    """Write the bundle of a model that no one trained."""
    torch.manual_seed(0)
    vocabulary = Dataset.open(prepared).vocabulary
    weights = config.build(vocabulary.catalog).state_dict()
    facts = BundleFacts(data=Dataset.open(prepared).manifest.hash)
    write_bundle(Folder(run) / BUNDLE, weights, config, vocabulary, facts)


class Memory:
    """The largest sum of proportional set sizes of this process and all below it."""

    def __enter__(self) -> "Memory":
        self.peak_mb, self._is_over = 0.0, False
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over:
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            self.peak_mb = max(self.peak_mb, total / 2**20)
            time.sleep(5.0)  # reading the sizes of thirty processes costs a core for a while


def ours(run: str, prepared: str, **more: Any) -> dict[str, float]:
    """Score everyone by the job's own way; the start of actors is in it."""
    output = f"{run}/lists"
    Folder(output).remove()
    config = ScoreConfig(**{"k": K, "output": output, "batch_users": BATCH_USERS} | more)
    with Memory() as memory:
        started_s = time.perf_counter()
        counts = score(run, prepared, config).counts
        elapsed_s = time.perf_counter() - started_s
    return {"users_per_s": counts.users / elapsed_s, "peak_mb": memory.peak_mb}


def all_rows(prepared: str) -> HistoryArrays:
    dataset = Dataset.open(prepared)
    return merge([history_arrays(dataset.table(shard)) for shard in dataset.manifest.shards])


@ray.remote(max_calls=1)
def bare(run: str, prepared: str, threads: int, batches: int) -> float:
    """The same lists by the shortest program: products, a mask, torch.topk."""
    torch.set_num_threads(threads)
    rows = all_rows(prepared)
    torch.manual_seed(0)
    model = MultVaeConfig().build(Dataset.open(prepared).vocabulary.catalog)
    weight_IH, bias_I = model.item_tables()
    size = BATCH_USERS
    parts = [
        gather(rows, np.arange(n * size, (n + 1) * size) % rows.num_users)[0]
        for n in range(batches + 1)
    ]
    with torch.inference_mode():
        for number, batch in enumerate(parts):
            if number == 1:
                started_s = time.perf_counter()
            scale_N = batch.length_B.float().rsqrt()[batch.row_N]
            bag_BH = F.embedding_bag(
                batch.item_N,
                model.input_IH,
                batch.pointer_P,
                mode="sum",
                per_sample_weights=scale_N,
                include_last_offset=True,
            )
            mean_BZ = model.to_code(torch.tanh(bag_BH + model.input_bias_H)).chunk(2, -1)[0]
            score_BI = torch.addmm(bias_I, torch.tanh(model.from_code(mean_BZ)), weight_IH.T)
            score_BI[batch.row_N, batch.item_N] = -torch.inf
            torch.topk(score_BI, K)
    return batches * size / (time.perf_counter() - started_s)


@ray.remote(max_calls=1)
def implicit_recommend(prepared: str, threads: int, batches: int) -> float:
    """implicit's batch recommend at the width of the last layer."""
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix

    rows = all_rows(prepared)
    count = len(Dataset.open(prepared).vocabulary)
    shape = (rows.num_users, count)
    user_items = csr_matrix((rows.value_N, rows.item_N, rows.pointer_P), shape=shape)
    rng = np.random.default_rng(0)
    model = AlternatingLeastSquares(factors=600, num_threads=threads)
    model.user_factors = rng.standard_normal((rows.num_users, 600), dtype=np.float32)
    model.item_factors = rng.standard_normal((count, 600), dtype=np.float32)
    size = BATCH_USERS
    for number in range(batches + 1):
        if number == 1:
            started_s = time.perf_counter()
        users = np.arange(number * size, (number + 1) * size) % rows.num_users
        model.recommend(users, user_items[users], N=K, filter_already_liked_items=True)
    return batches * size / (time.perf_counter() - started_s)


def recbole(python: str, folder: str, prepared: DataConfig, batches: int) -> float:
    """RecBole's full-sort evaluation, in its own environment."""
    place = f"{folder}/{Path(prepared.prepared).name}-inter"
    if not Folder(place).exists("part-00000.inter"):
        one = prepared.model_copy(update={"prepared": f"{prepared.prepared}-one", "num_shards": 1})
        prepare(one)
        convert(one, ConvertConfig(output=place))
    script = Path(__file__).with_name("recbole_scoring.py")
    command = [python, str(script), f"{place}/part-00000.inter", "--batches", str(batches)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["users_per_s"])


def write_histories(folder: Path, users: int) -> str:
    """Write short histories of many users, in files of half a million."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, size = np.random.default_rng(0), 500_000
    for part, low in enumerate(range(0, users, size)):
        count = min(size, users - low)
        items = pa.array(rng.integers(0, 1000, count * 10))
        pointer = pa.array(np.arange(count + 1, dtype=np.int32) * 10)
        ratings = pa.array(np.full(count * 10, 4.0))
        columns = {
            "user": pa.array(np.arange(low, low + count)),
            "items": pa.ListArray.from_arrays(pointer, items),
            "ratings": pa.ListArray.from_arrays(pointer, ratings),
        }
        pq.write_table(pa.table(columns), folder / f"{part:03d}.parquet", row_group_size=50_000)
    return str(folder)


def flat_memory(folder: str, sizes: list[int]) -> list[list[str]]:
    """Score more and more users with a small model; what grows should be the time alone."""
    log = SyntheticLog(num_users=2000, num_items=1000, num_interactions=60_000)
    data = DataConfig(prepared=f"{folder}/flat", source=log, split=NoSplit(), num_shards=2)
    prepare(data)
    write_run(f"{folder}/flat-run", data.prepared, ElsaConfig(latent_width=64))
    lines = []
    for size in sizes:
        histories = write_histories(Path(folder) / f"flat-{size}", size)
        more = {"histories": histories, "k": 20, "outputs": ("score",)}
        found = ours(f"{folder}/flat-run", data.prepared, **more)
        rate, peak = found["users_per_s"], found["peak_mb"]
        lines.append([f"{size:,} users, 1,000 items, top 20", f"{rate:,.0f}", f"{peak:,.0f}"])
    return lines


def beside(run: str, data: DataConfig, given: argparse.Namespace) -> list[list[str]]:
    """Measure what others do with the same data in memory."""
    cores = os.cpu_count() or 1
    fresh = {"num_cpus": cores}
    others = {
        "bare loop, in memory": bare.options(**fresh).remote(
            run, data.prepared, cores, given.batches
        )
    }
    if importlib.util.find_spec("implicit"):
        others["implicit, batch recommend"] = implicit_recommend.options(**fresh).remote(
            data.prepared, cores, given.batches
        )
    lines = [[name, f"{ray.get(task):,.0f}", ""] for name, task in others.items()]
    if given.recbole:
        rate = recbole(given.recbole, given.folder, data, given.batches)
        lines.append(["RecBole, full-sort evaluation", f"{rate:,.0f}", ""])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="runs/bench", help="logs are kept here")
    parser.add_argument("--users", type=int, default=138_000)
    parser.add_argument("--batches", type=int, default=20, help="of 512 users, for the others")
    parser.add_argument("--recbole", help="Python of an environment with RecBole")
    parser.add_argument("--flat", type=int, nargs="*", default=[100_000, 1_000_000])
    given = parser.parse_args()
    given.folder = str(Path(given.folder).absolute())
    lines = []
    with connected():
        data = data_config(given.folder, given.users)
        prepare(data)
        run = f"{given.folder}/score-run"
        for config in (MultVaeConfig(), Conv4RecConfig(), ElsaConfig()):
            write_run(run, data.prepared, config)
            found = ours(run, data.prepared)
            rate, peak = found["users_per_s"], found["peak_mb"]
            lines.append([f"ours, {config.name}", f"{rate:,.0f}", f"{peak:,.0f}"])
            if config.name == "mult_vae":
                found = ours(run, data.prepared, precision="bf16")
                rate, peak = found["users_per_s"], found["peak_mb"]
                lines.append([f"ours, {config.name}, bf16", f"{rate:,.0f}", f"{peak:,.0f}"])
        lines += beside(run, data, given)
        lines += flat_memory(given.folder, given.flat)
    title = f"{os.cpu_count()} cores, {given.users:,} users, 27,000 items, top {K}"
    table(title, ["", "users/s", "peak MB"], lines)
    print(json.dumps(lines))


if __name__ == "__main__":
    main()
