"""A server beside hostile clients: answers by status, latency of honest clients, memory.

``python -m tests.benchmarks.soak --minutes 10 --requests 10000``. Honest clients alone come first,
for a tenth of the time; then the same beside hostile requests from a seeded generator, connections
that never end their headers or bodies, and Arrow streams that grow when they are read. Nothing here
asserts a result.
"""

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import pyarrow as pa
from pydantic import SecretStr
from ray import serve

from distrib.cli import connected
from distrib.data.config import DataConfig
from distrib.data.logs.config import SyntheticLog
from distrib.data.prepare.job import prepare
from distrib.data.splits.rules import NoSplit
from distrib.events import table
from distrib.models import MultVaeConfig
from distrib.serve.arrow_stream import ARROW, stream_of
from distrib.serve.config import ServeConfig
from distrib.serve.deployment import ServePlan, start
from tests.benchmarks.scoring import write_run

PORT, ITEMS, TOKEN = 8124, 5000, "of the soak"
LISTS = "/v1/models/default/recommendations"
PER_S = 20.0
DIFFERENT = 500
"""Hostile requests that are made beforehand, and sent in turn."""

SLOW = 60
"""Connections that are open at a time without an end."""

PROCESSES = ("proxy", "front", "scorer")


def honest_bodies() -> list[bytes]:
    rng = np.random.default_rng(0)
    histories = [rng.choice(ITEMS, n, replace=False).tolist() for n in rng.integers(20, 270, 64)]
    return [
        json.dumps({"history": {"items": h, "ratings": [4.0] * len(h)}}).encode() for h in histories
    ]


def hostile_json(rng: random.Random) -> bytes:
    """A body that is wrong in one of many ways."""
    many = rng.choice([10, 1000, 100_000])
    return rng.choice(
        [
            lambda: rng.randbytes(rng.choice([1, 100, 100_000])),
            lambda: b"[" * many,
            lambda: b'{"history":' * 500 + b"1" + b"}" * 500,
            lambda: json.dumps({"history": {"items": [{}] * many}}).encode(),
            lambda: json.dumps({"history": {"items": [None, True, 1.5] * many}}).encode(),
            lambda: json.dumps({"history": {"items": ["x" * many]}}).encode(),
            lambda: json.dumps({"history": {"items": [1, 2], "ratings": [1e308] * many}}).encode(),
            lambda: b'{"history": {"items": [' + b"9" * many + b"]}}",
            lambda: b'{"history": {"items": [1], "ratings": [NaN]}}',
            lambda: b'{"history": {"items": ["\\ud800"]}, "options": {"k": 1e400}}',
            lambda: json.dumps({"history": {"items": [1]}, "options": {"k": 10**18}}).encode(),
            lambda: json.dumps({"history": {"items": [1]}, "candidates": [0] * many}).encode(),
            lambda: json.dumps({"history": {"items": [1] * (2 * many)}}).encode(),
            lambda: json.dumps({f"key{n}": n for n in range(many)}).encode(),
        ]
    )()


def hostile_arrow(rng: random.Random) -> bytes:
    """A stream that is damaged, or far larger once it is read."""
    size = 60_000_000
    nulls = pa.ListArray.from_arrays(pa.array([0, size], pa.int32()), pa.nulls(size))
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([size], pa.int32()), pa.array([7]))
    good = stream_of(pa.table({"user": [1], "items": [[1, 2]], "ratings": [[1.0, 2.0]]}))
    cut = rng.randrange(len(good))
    return rng.choice(
        [
            lambda: good[:cut],
            lambda: good[:cut] + rng.randbytes(8) + good[cut + 8 :],
            lambda: stream_of(pa.table({"user": [1], "items": [[1]], "candidates": nulls})),
            lambda: stream_of(pa.table({"user": [1], "items": nulls})),
            lambda: stream_of(pa.table({"user": runs, "items": runs})),
            lambda: stream_of(pa.table({"user": pa.nulls(100_000), "items": [[1]] * 100_000})),
            lambda: stream_of(
                pa.table({"user": ["x" * 10**6] * 20, "items": [["y" * 10**6]] * 20})
            ),
        ]
    )()


def hostile(number: int) -> dict[str, Any]:
    """Arguments of a request."""
    rng = random.Random(number)
    token = {} if rng.random() < 0.2 else {"authorization": f"Bearer {TOKEN}"}
    path = rng.choice([LISTS, LISTS, f"{LISTS}.arrow", "/v1/models/default/ratings"])
    if rng.random() < 0.1:
        path = rng.choice(
            ["/healthz", "/../../etc/passwd", "/v1/models/%00/card", f"/v1/models/{'x' * 5000}"]
        )
    is_arrow = path.endswith(".arrow")
    kind = {"content-type": ARROW if is_arrow else "application/json"}
    body = hostile_arrow(rng) if is_arrow else hostile_json(rng)
    method = rng.choice(["POST"] * 8 + ["GET", "DELETE"])
    return {"method": method, "path": path, "headers": token | kind, "data": body}


async def slow_client(rng: random.Random, until_s: float) -> None:
    """Hold a connection: headers that do not end, or a body that does not."""
    while time.perf_counter() < until_s:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", PORT)
            head = f"POST {rng.choice([LISTS, '/healthz'])} HTTP/1.1\r\nhost: x\r\n"
            if rng.random() < 0.5:
                head += f"authorization: Bearer {TOKEN}\r\n"
            if rng.random() < 0.7:
                head += "content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
            writer.write(head.encode())
            for _ in range(rng.randrange(1, 15)):
                await asyncio.sleep(rng.random() * 4)
                writer.write(b"1\r\n[\r\n")
                await writer.drain()
            writer.close()
        except OSError:
            await asyncio.sleep(0.2)


class Load:
    """Requests that were answered."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.seconds: list[float] = []

    async def ask(self, session: aiohttp.ClientSession, **given: Any) -> None:
        method, path = given.pop("method"), given.pop("path")
        started_s = time.perf_counter()
        try:
            async with session.request(method, f"http://127.0.0.1:{PORT}{path}", **given) as answer:
                await answer.read()
                self.statuses[str(answer.status)] += 1
        except (aiohttp.ClientError, TimeoutError) as error:
            self.statuses[type(error).__name__] += 1
        self.seconds.append(time.perf_counter() - started_s)

    def p99_ms(self) -> float:
        return float(np.quantile(self.seconds, 0.99) * 1000)


async def at_rate(per_s: float, until_s: float) -> AsyncIterator[int]:
    """Yield at a rate, however long the answers take."""
    started_s, number = time.perf_counter(), 0
    while time.perf_counter() < until_s:
        yield number
        number += 1
        await asyncio.sleep(max(0.0, started_s + number / per_s - time.perf_counter()))


async def honest(load: Load, until_s: float, bodies: list[bytes]) -> None:
    headers = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        async for number in at_rate(PER_S, until_s):
            body = bodies[number % len(bodies)]
            given = {"method": "POST", "path": LISTS, "data": body, "headers": headers}
            tasks.create_task(load.ask(session, **given))


async def attack(
    load: Load, until_s: float, requests: int, seconds: float, made: list[dict[str, Any]]
) -> None:
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        for number in range(SLOW):
            tasks.create_task(slow_client(random.Random(number), until_s))
        async for number in at_rate(requests / seconds, until_s):
            if number < requests:
                tasks.create_task(load.ask(session, **made[number % len(made)]))


def memory_mb() -> dict[str, float]:
    """Memory of the server's processes, by kind."""
    found = dict.fromkeys(PROCESSES, 0.0)
    for process in psutil.process_iter(["name", "cmdline", "memory_info"]):
        text = " ".join(process.info["cmdline"] or []).lower()
        kind = next((k for k in PROCESSES if k in text and "ray::" in text), None)
        if kind is not None and process.info["memory_info"] is not None:
            found[kind] += process.info["memory_info"].rss / 2**20
    return found


async def watched(seen: list[dict[str, float]], until_s: float) -> None:
    while time.perf_counter() < until_s:
        seen.append(memory_mb())
        await asyncio.sleep(2.0)


def apart(seconds: float) -> Load:
    """Run honest clients in a process of their own, which hostile ones do not slow down."""
    load = Load()
    asyncio.run(honest(load, time.perf_counter() + seconds, honest_bodies()))
    return load


async def soaked(minutes: float, requests: int) -> list[list[Any]]:
    made = [hostile(number) for number in range(min(requests, DIFFERENT))]
    enemies, loop = Load(), asyncio.get_running_loop()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        await loop.run_in_executor(pool, apart, 5.0)  # warm-up
        alone = await loop.run_in_executor(pool, apart, minutes * 6)
        before, seen = memory_mb(), list[dict[str, float]]()
        until_s = time.perf_counter() + minutes * 60
        beside, *_ = await asyncio.gather(
            loop.run_in_executor(pool, apart, minutes * 60),
            attack(enemies, until_s, requests, minutes * 60, made),
            watched(seen, until_s),
        )
    await asyncio.sleep(30)
    after = memory_mb()
    lines = [
        ["honest, alone", dict(alone.statuses), f"{alone.p99_ms():.0f} ms"],
        ["honest, beside", dict(beside.statuses), f"{beside.p99_ms():.0f} ms"],
        ["hostile", dict(sorted(enemies.statuses.items())), f"{enemies.p99_ms():.0f} ms"],
    ]
    for kind in PROCESSES:
        most = max(sample[kind] for sample in seen)
        text = f"{before[kind]:.0f} MB before, {most:.0f} at most, {after[kind]:.0f} after 30 s"
        lines.append([f"memory of the {kind}", text, ""])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="runs/bench", help="logs are kept here")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--requests", type=int, default=10_000)
    given = parser.parse_args()
    prepared = f"{Path(given.folder).absolute()}/soak"
    log = SyntheticLog(num_users=2000, num_items=ITEMS, num_interactions=100_000)
    data = DataConfig(prepared=prepared, source=log, split=NoSplit(), num_shards=2)
    with connected():
        prepare(data)
        write_run(f"{prepared}-run", prepared, MultVaeConfig())
        start(
            ServePlan.of(
                f"{prepared}-run", prepared, ServeConfig(port=PORT, token=SecretStr(TOKEN))
            )
        )
        try:
            lines = asyncio.run(soaked(given.minutes, given.requests))
        finally:
            serve.shutdown()
    table("Soak", ["", "answers", "p99"], lines)
    print(json.dumps(lines))


if __name__ == "__main__":
    main()
