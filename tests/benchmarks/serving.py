"""Latency and throughput of the server on loopback, and its behavior at twice its capacity.

``make bench-serving``, or ``python -m tests.benchmarks.serving --items 27000``. Mult-VAE
600-200-600 with untrained weights, histories of 145 items on average, top 20 (JSON) and top 100
(Arrow); one HTTP worker, one scorer with one thread, and this client share the machine's cores.
Nothing here asserts a result.
"""

import argparse
import asyncio
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pyarrow as pa
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

PORT = 8123


class Client:
    """Asks for the lists of users drawn at random."""

    def __init__(self, url: str, item_count: int) -> None:
        self.path = f"{url}/v1/models/default/recommendations"
        rng = np.random.default_rng(0)
        lengths = rng.integers(20, 270, 512)
        self.histories = [rng.choice(item_count, n, replace=False).tolist() for n in lengths]
        self.bodies = [
            json.dumps({"history": {"items": h, "ratings": [4.0] * len(h)}, "options": {"k": 20}})
            for h in self.histories
        ]
        self.statuses: Counter[int] = Counter()
        self.seconds: list[float] = []

    def begin(self) -> None:
        self.statuses.clear()
        self.seconds.clear()

    async def one(self, session: aiohttp.ClientSession, number: int) -> None:
        body = self.bodies[number % len(self.bodies)]
        started_s = time.perf_counter()
        headers = {"content-type": "application/json"}
        async with session.post(self.path, data=body, headers=headers) as answer:
            await answer.read()
            self.statuses[answer.status] += 1
            self.seconds.append(time.perf_counter() - started_s)

    async def closed(self, session: aiohttp.ClientSession, clients: int, total: int) -> float:
        """Ask from so many clients, each again when it is answered; return requests a second."""
        self.begin()
        numbers = iter(range(total))

        async def client() -> None:
            for number in numbers:
                await self.one(session, number)

        started_s = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return total / (time.perf_counter() - started_s)

    async def opened(self, session: aiohttp.ClientSession, per_s: float, for_s: float) -> None:
        """Ask at a rate, whatever comes back."""
        self.begin()
        tasks = []
        started_s = time.perf_counter()
        for number in range(int(per_s * for_s)):
            await asyncio.sleep(max(0.0, started_s + number / per_s - time.perf_counter()))
            tasks.append(asyncio.create_task(self.one(session, number)))
        await asyncio.gather(*tasks)

    async def streams(self, session: aiohttp.ClientSession, users: int, requests: int) -> float:
        """Ask for many users at once, two requests under way; return users a second."""
        items = [self.histories[n % len(self.histories)] for n in range(users)]
        ratings = [[4.0] * len(row) for row in items]
        columns = {"user": list(range(users)), "items": items, "ratings": ratings}
        content = stream_of(pa.table(columns))
        numbers = iter(range(requests))

        async def client() -> None:
            for _ in numbers:
                headers = {"content-type": ARROW}
                path = f"{self.path}.arrow?k=100"
                async with session.post(path, data=content, headers=headers) as answer:
                    assert answer.status == 200, await answer.text()
                    await answer.read()

        started_s = time.perf_counter()
        await asyncio.gather(client(), client())
        return users * requests / (time.perf_counter() - started_s)

    def latency(self) -> str:
        p50, p99 = np.quantile(self.seconds, [0.5, 0.99]) * 1000
        return f"{p50:.1f} / {p99:.1f} ms"


async def measured(client: Client) -> list[list[Any]]:
    lines = []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        await client.closed(session, 4, 100)  # warm-up
        rate = await client.closed(session, 1, 300)
        lines.append(["one client, one user a request", f"{rate:.0f}", client.latency(), ""])
        capacity = await client.closed(session, 64, 2000)
        reported = dict(client.statuses)
        lines.append(["64 clients", f"{capacity:.0f}", client.latency(), str(reported)])
        await client.opened(session, 2 * capacity, 15.0)
        answered = client.statuses[200] / 15.0
        reported = dict(sorted(client.statuses.items()))
        lines.append(["twice that, for 15 s", f"{answered:.0f}", client.latency(), str(reported)])
        rate = await client.streams(session, 1000, 12)
        lines.append(["Arrow streams of 1,000 users, top 100", f"{rate:.0f}", "", ""])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="runs/bench", help="logs are kept here")
    parser.add_argument("--items", type=int, default=27_000)
    given = parser.parse_args()
    folder = str(Path(given.folder).absolute())
    log = SyntheticLog(num_users=2000, num_items=given.items, num_interactions=290_000)
    prepared = f"{folder}/serve-{given.items}"
    data = DataConfig(prepared=prepared, source=log, split=NoSplit(), num_shards=2)
    with connected():
        prepare(data)
        write_run(f"{prepared}-run", prepared, MultVaeConfig())
        url = start(
            ServePlan.of(f"{prepared}-run", prepared, ServeConfig(port=PORT, batch_users=64))
        )
        try:
            lines = asyncio.run(measured(Client(url, given.items)))
        finally:
            serve.shutdown()
    title = f"{os.cpu_count()} cores, {given.items:,} items"
    table(title, ["", "users/s", "p50 / p99", "answers"], lines)
    print(json.dumps(lines))


if __name__ == "__main__":
    main()
