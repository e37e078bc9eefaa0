"""On Ray Serve: the same answers over the network, whatever happens to models and replicas."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import aiohttp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distrib.checkpoint.bundle import BUNDLE
from distrib.data.dataset import Dataset
from distrib.errors import ConfigError, DataError
from distrib.scoring.bulk.job import score
from distrib.scoring.policy import ScoreConfig
from distrib.scoring.scorer import Scorer
from distrib.scoring.tables import recommend_table
from distrib.serve.arrow_stream import stream_of, table_of
from distrib.serve.config import ServeConfig
from distrib.serve.deployment import APP, ServePlan, _require_room, preflight, start
from distrib.storage import Folder
from tests.world import write_model

TOKEN = "t0ken"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def served(world, tmp_path_factory):
    """Two replicas of a model of its own run folder, which tests may write to."""
    from ray import serve

    _, data = world
    run = tmp_path_factory.mktemp("served") / "run"
    write_model(run, data, seed=0)
    config = ServeConfig(
        port=free_port(), replicas=2, token=TOKEN, reload_s=0.3, cpus_per_replica=1
    )
    yield start(ServePlan.of(str(run), data.prepared, config)), run, data
    serve.shutdown()


def session():
    return aiohttp.ClientSession(headers={"authorization": f"Bearer {TOKEN}"})


def ask(url, *, method="POST", **more):
    async def asked():
        async with session() as client, client.request(method, url, **more) as answer:
            return answer.status, await answer.read()

    return asyncio.run(asked())


def histories(data):
    table = pq.read_table(f"{data.prepared}/histories")
    ids = Dataset.open(data.prepared).vocabulary.ids
    rows = table.select(["user", "items", "ratings"]).to_pylist()
    return [{**row, "items": ids.take(pa.array(row["items"])).to_pylist()} for row in rows]


def test_direct_bulk_and_served_lists_are_equal(served, tmp_path):
    url, run, data = served
    rows = histories(data)[:40]
    result = score(str(run), data.prepared, ScoreConfig(k=6, output=str(tmp_path / "out")))
    bulk = {row["user"]: row for row in pq.read_table(result.output).to_pylist()}
    scorer = Scorer.from_bundle(Folder(str(run)) / BUNDLE)
    direct, _ = recommend_table(scorer, pa.Table.from_pylist(rows), None, ScoreConfig(k=6))
    direct = {row["user"]: row for row in direct.to_pylist()}

    async def served_lists():
        async with session() as client:

            async def one(row):
                body = {
                    "history": {"items": row["items"], "ratings": row["ratings"]},
                    "options": {"k": 6},
                }
                path = f"{url}/v1/models/default/recommendations"
                async with client.post(path, json=body) as answer:
                    posted = await answer.json()
                path = f"{url}/v1/models/default/users/{row['user']}/recommendations?k=6"
                async with client.get(path) as answer:
                    stored = await answer.json()
                return row["user"], posted, stored

            return await asyncio.gather(*(one(row) for row in rows))

    for user, posted, stored in asyncio.run(served_lists()):
        for found in (posted, stored):
            assert [entry["item"] for entry in found["items"]] == bulk[user]["items"]
            assert bulk[user]["items"] == direct[user]["items"]
            for name, column in (("score", "scores"), ("rating", "ratings")):
                reported = [entry[name] for entry in found["items"]]
                np.testing.assert_allclose(reported, bulk[user][column], rtol=1e-5, atol=1e-5)
                np.testing.assert_allclose(direct[user][column], bulk[user][column], rtol=1e-5)
    table = pa.Table.from_pylist(rows)
    path = f"{url}/v1/models/default/recommendations.arrow?k=6"
    status, content = ask(path, data=stream_of(table))
    assert status == 200
    for row in table_of(content).to_pylist():
        assert row["items"] == bulk[row["user"]]["items"]


def test_the_server_describes_itself(served):
    url, _, _ = served
    status, content = ask(f"{url}/healthz", method="GET")
    assert (status, json.loads(content)["status"]) == (200, "ok")
    assert ask(f"{url}/", method="GET")[0] == 200
    paths = json.loads(ask(f"{url}/openapi.json", method="GET")[1])["paths"]
    assert "/v1/models/{model}/recommendations" in paths


class Load:
    """Asks without a pause from some clients, and counts what comes back."""

    def __init__(self, url, rows, num_clients=6, *, may_end=False):
        self.left_after, self._last, self._may_end = set(), {}, may_end
        self.statuses, self.versions = Counter(), Counter()
        self._url, self._rows, self._num_clients = url, rows, num_clients
        self._ends = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()))

    async def _all(self):
        async with session() as client:
            await asyncio.gather(*(self._client(client, n) for n in range(self._num_clients)))

    async def _client(self, client, number):
        self._last[number] = None
        if not self._may_end:
            await self._context(client, number)
            return
        with contextlib.suppress(aiohttp.ClientError):
            await self._context(client, number)
        if not self._ends.is_set():
            self.left_after.add(self._last[number])

    async def _context(self, client, first):
        number = first
        while not self._ends.is_set():
            number += 1
            row = self._rows[number % len(self._rows)]
            body = {"history": {"items": row["items"], "ratings": row["ratings"]}}
            path = f"{self._url}/v1/models/default/recommendations"
            async with client.post(path, json=body) as answer:
                self.statuses[answer.status] += 1
                self._last[first] = answer.status
                content = await answer.read()
                if answer.status == 200:
                    self.versions[json.loads(content)["version"]] += 1

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ends.set()
        self._thread.join()


def version_of(url):
    status, content = ask(f"{url}/v1/models/default", method="GET")
    return json.loads(content)["version"] if status == 200 else None


def eventually(is_so, limit_s=90.0):
    started_s = time.monotonic()
    while not is_so():
        assert time.monotonic() - started_s < limit_s, "not in time"
        time.sleep(0.1)


def test_a_newer_bundle_is_taken_under_load_and_a_bad_one_is_not(served):
    url, run, data = served
    before = version_of(url)
    with Load(url, histories(data)) as load:
        eventually(lambda: load.versions[before] > 20)
        write_model(run, data, seed=1)
        eventually(lambda: len(load.versions) == 2)
        after = next(version for version in load.versions if version != before)
        at_swap = load.versions[after]
        eventually(lambda: load.versions[after] > at_swap + 40)
        # What comes next does not load: half of its weights are missing.
        weights = run / BUNDLE / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
        manifest = json.loads((run / BUNDLE / "manifest.json").read_text())
        (run / BUNDLE / "manifest.json").write_text(json.dumps({**manifest, "epoch": 9}))
        eventually(
            lambda: (
                "content differs"
                in (
                    json.loads(ask(f"{url}/v1/models/default", method="GET")[1])["reload_fault"]
                    or ""
                )
            )
        )
        time.sleep(0.5)
    assert set(load.statuses) == {200}
    assert set(load.versions) == {before, after}
    write_model(run, data, seed=2)
    eventually(lambda: version_of(url) not in {before, after})


def test_no_accepted_request_is_lost_when_a_replica_is_killed(served):
    from ray import serve

    url, _, data = served

    killed, other = _replica_pids()
    with Load(url, histories(data), num_clients=12) as load:
        eventually(lambda: load.statuses[200] > 50)
        os.kill(killed, signal.SIGKILL)
        reached = load.statuses[200]
        eventually(lambda: load.statuses[200] > reached + 200)
    assert set(load.statuses) == {200}
    eventually(lambda: len({*_replica_pids()} - {killed, other}) == 1)
    eventually(lambda: serve.status().applications[APP].status == "RUNNING")


def _replica_pids():
    import psutil

    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if f"ray::ServeReplica:{APP}:scorer-default" in " ".join(process.info["cmdline"] or [])
    ]


def test_a_port_that_is_taken_is_refused(served):
    url, run, data = served
    config = ServeConfig(port=int(url.rsplit(":")[-1]))
    with pytest.raises(ConfigError, match=r"serve.port = \d+ on 127.0.0.1: cannot bind"):
        preflight(str(run), data.prepared, config)
    config = ServeConfig(port=free_port(), users=str(run))
    with pytest.raises(DataError, match="nothing complete is prepared there"):
        preflight(str(run), data.prepared, config)


def test_what_one_machine_cannot_hold_is_refused(served):
    _, run, data = served
    config = ServeConfig(port=free_port(), replicas=[9, 12], cpus_per_replica=0.5)
    with pytest.raises(ConfigError, match="Ray Serve runs on this cluster already"):
        start(ServePlan.of(str(run), data.prepared, config))
    with pytest.raises(ConfigError, match=r"9 replica\(s\) and 1 HTTP worker\(s\) take 4.6 CPU"):
        _require_room(ServePlan.of(str(run), data.prepared, config))


@pytest.mark.slow
def test_a_server_that_is_told_to_stop_ends_what_it_began(world, tmp_path):
    """The job is a process with a Ray of its own; SIGTERM comes under load."""
    run, data = world
    port = free_port()
    (tmp_path / "run.toml").write_text(
        f'run = "{run}"\n[data]\nprepared = "{data.prepared}"\nsplit = {{ name = "none" }}\n'
        f'[model]\nname = "conv4rec"\n[serve]\nport = {port}\ntoken = "{TOKEN}"\n'
    )
    process = subprocess.Popen(
        [sys.executable, "jobs/serve.py", "--config", str(tmp_path / "run.toml")],
        cwd=Path(__file__).parent.parent.parent,
        stderr=subprocess.PIPE,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    while "serving" not in process.stderr.readline():
        pass
    with process, Load(url, histories(data), num_clients=4, may_end=True) as load:
        eventually(lambda: load.statuses[200] > 30)
        process.terminate()
        _, reported = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "terminated" in reported
    # Answers under way came; what was asked after the application went was reported so, 404 or 503,
    # and only then did connections end.
    assert set(load.statuses) <= {200, 404, 503}
    assert load.left_after <= {404, 503}
