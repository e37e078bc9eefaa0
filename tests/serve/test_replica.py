"""The queue before a model, and the model behind it being replaced."""

import asyncio
import json
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
import torch
from starlette.testclient import TestClient

from distrib.checkpoint.bundle import BUNDLE
from distrib.checkpoint.manifest import describe
from distrib.config import sealed, unsealed
from distrib.data.dataset import Dataset
from distrib.errors import CheckpointError, ConfigError, DataError
from distrib.models import BiasedMfConfig, EaseConfig
from distrib.scoring.policy import PolicyConfig
from distrib.serve.arrow_stream import stream_of, table_of
from distrib.serve.batching import Batcher, BusyError
from distrib.serve.config import ServeConfig
from distrib.serve.model_host import ModelHost
from distrib.serve.requests import RecommendJob
from distrib.serve.schemas import History, RecommendOptions, RecommendRequest
from distrib.serve.user_store import StoredUsers
from distrib.storage import Folder
from tests.serve.conftest import LocalRouter, history, served, write_run
from tests.world import write_model


def test_what_waits_is_worked_on_together_in_order():
    sizes = []

    def work(asks):
        sizes.append(len(asks))
        time.sleep(0.02)
        return [ask * 10 for ask in asks]

    async def all_of_them():
        batcher = Batcher(work, max_batch=8, wait_s=0.0, max_queue=100)
        return await asyncio.gather(*(batcher.submit(number) for number in range(30)))

    assert asyncio.run(all_of_them()) == [number * 10 for number in range(30)]
    assert max(sizes) == 8
    assert sum(sizes) == 30
    assert len(sizes) <= 6


def test_a_bound_on_those_who_wait_and_errors_reach_those_who_asked():
    gate = threading.Event()

    def work(asks):
        gate.wait(5.0)
        if 99 in asks:
            raise ValueError("ninety-nine")
        return asks

    async def scenario():
        batcher = Batcher(work, max_batch=2, wait_s=0.0, max_queue=3)
        tasks = [asyncio.create_task(batcher.submit(99))]
        await asyncio.sleep(0.05)  # in work now
        tasks += [asyncio.create_task(batcher.submit(n)) for n in range(5)]
        await asyncio.sleep(0.05)
        gate.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert await batcher.submit(7) == 7  # it goes on
        return found

    first, *others = asyncio.run(scenario())
    assert isinstance(first, ValueError)
    assert others[:3] == [0, 1, 2]
    assert all(isinstance(other, BusyError) for other in others[3:])


def test_who_went_away_costs_no_work():
    worked = []

    def work(asks):
        worked.extend(asks)
        time.sleep(0.05)
        return asks

    async def scenario():
        batcher = Batcher(work, max_batch=1, wait_s=0.0, max_queue=10)
        tasks = [asyncio.create_task(batcher.submit(n)) for n in range(3)]
        await asyncio.sleep(0.01)
        tasks[1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(scenario())
    assert worked == [0, 2]
    assert isinstance(found[1], asyncio.CancelledError)


def test_too_many_requests_get_a_429(run, small):
    server = served({"default": run}, max_queue=2, batch_users=1)
    host = server.hosts["default"]
    plain = host.answer
    host.answer = lambda asks: time.sleep(0.15) or plain(asks)
    body = {"history": history(small, 1)}

    async def many():
        from httpx2 import ASGITransport, AsyncClient

        transport = ASGITransport(app=server.app)
        async with AsyncClient(transport=transport, base_url="http://server") as client:
            path = "/v1/models/default/recommendations"
            return await asyncio.gather(*(client.post(path, json=body) for _ in range(12)))

    found = asyncio.run(many())
    statuses = [answer.status_code for answer in found]
    assert set(statuses) == {200, 429}
    busy = next(answer for answer in found if answer.status_code == 429)
    assert busy.headers["retry-after"] == "1"


def test_a_request_that_takes_too_long_gets_a_503(run, small):
    server = served({"default": run}, request_timeout_s=0.3)
    host = server.hosts["default"]
    plain = host.answer
    host.answer = lambda asks: time.sleep(0.6) or plain(asks)
    with TestClient(server.app) as client:
        body = {"history": history(small, 1)}
        late = client.post("/v1/models/default/recommendations", json=body)
        assert late.status_code == 503
        assert late.json()["detail"] == "no answer within 0.3 s"


def test_a_request_that_breaks_the_scorer_takes_no_other_with_it(run, small, capsys):
    server = served({"default": run})
    replica, host = server.replicas["default"], server.hosts["default"]
    plain = host.answer

    def fragile(jobs):
        if any(job.options.k == 13 for job in jobs):
            raise RuntimeError("thirteen")
        return plain(jobs)

    host.answer = fragile
    asks = [RecommendJob(History(**history(small, 1)), RecommendOptions(k=k)) for k in (3, 13, 4)]
    first, second, third = replica._work(asks)
    assert [len(first.body["items"]), second.status, len(third.body["items"])] == [3, 500, 4]
    assert "RuntimeError: thirteen" in capsys.readouterr().err
    with TestClient(server.app, raise_server_exceptions=False) as client:
        body = {"history": history(small, 1), "options": {"k": 13}}
        found = client.post("/v1/models/default/recommendations", json=body)
        assert found.status_code == 500
        assert "thirteen" not in found.text


def test_streams_take_turns_with_others_and_are_not_too_many(run, small):
    server = served({"default": run}, batch_users=2, max_streams=1)
    replica, batches = server.replicas["default"], server.noted.batches
    rows = [{"user": user, **history(small, user)} for user in range(9)]
    stream = stream_of(pa.Table.from_pylist(rows))

    async def together():
        streams = [
            asyncio.create_task(replica.submit("recommend_arrow", stream, RecommendOptions(k=3)))
            for _ in range(2)
        ]
        await asyncio.sleep(0.02)
        request = RecommendRequest(history=History(**history(small, 1)))
        single = await replica.submit("recommend", request)
        return single, await asyncio.gather(*streams)

    single, (one, other) = asyncio.run(together())
    assert (single.status, one.status, other.status) == (200, 200, 429)
    table = table_of(one.body)
    assert table["user"].to_pylist() == list(range(9))
    assert json.loads(table.schema.metadata[b"interactions"])["used"] == sum(
        len(small.items[user]) for user in range(9)
    )
    assert max(batches) <= 2


def test_users_can_be_asked_for_while_models_and_data_change(world, tmp_path):
    _, data = world
    run = write_model(tmp_path / "run", data)
    host = ModelHost("m", run, data.prepared, ServeConfig())
    faults, ends = [], threading.Event()

    def asks():
        while not ends.is_set():
            try:
                assert host.stored("3", RecommendOptions()) is not None
            except Exception as error:  # noqa: BLE001  any is one too many
                faults.append(error)

    threads = [threading.Thread(target=asks) for _ in range(3)]
    for thread in threads:
        thread.start()
    for seed in range(1, 6):
        write_model(tmp_path / "run", data, seed=seed)
        assert host.refresh()
    ends.set()
    for thread in threads:
        thread.join()
    assert faults == []


def test_a_store_that_fails_for_a_while_is_tried_again(run, small, monkeypatch):
    host = ModelHost("m", run, "none", ServeConfig())
    write_run(run, small, seed=3)
    plain = host._load

    def away():
        raise DataError("the store is away")

    monkeypatch.setattr(host, "_load", away)
    assert not host.refresh()
    assert host.fault == "the store is away"
    monkeypatch.setattr(host, "_load", plain)
    assert host.refresh()
    assert host.fault is None


def test_a_newer_bundle_is_taken_and_a_bad_one_is_not(run, small):
    host = ModelHost("m", run, "none", ServeConfig())
    first = host.loaded.version
    assert not host.refresh()
    write_run(run, small, seed=5)
    assert host.refresh()
    second = host.loaded.version
    assert second != first
    assert host.card()["facts"]["seed"] == 5
    bundle = Folder(run) / BUNDLE
    manifest = bundle.read_json("manifest.json")
    bundle.remove("manifest.json")  # it is being written
    assert not host.refresh()
    assert host.fault is None
    bundle.write("model.safetensors", b"no weights")
    bundle.write_json("manifest.json", sealed({**unsealed(manifest, bundle), "epoch": 77}))
    assert not host.refresh()
    assert "content differs" in host.card()["reload_fault"]
    assert host.loaded.version == second
    reads = []
    host._load = lambda: reads.append(1)
    assert not host.refresh()  # not tried again until it changes
    assert reads == []
    del host._load
    write_run(run, small, seed=6)
    assert host.refresh()
    assert host.card()["reload_fault"] is None


def test_a_model_that_gives_no_numbers_is_not_taken(run, small):
    host = ModelHost("m", run, "none", ServeConfig())
    before = host.loaded.version
    bad = write_run(run, small, seed=1)
    from safetensors.torch import load, save

    from distrib.checkpoint.manifest import MANIFEST

    bundle = Folder(bad) / BUNDLE
    weights = load(bundle.read("model.safetensors"))
    content = save({name: torch.full_like(w, torch.nan) for name, w in weights.items()})
    unsealed_manifest = unsealed(bundle.read_json(MANIFEST), bundle)
    unsealed_manifest["files"]["model.safetensors"] = describe(content).to_json()
    bundle.write("model.safetensors", content)
    bundle.write_json(MANIFEST, sealed(unsealed_manifest))
    assert not host.refresh()
    assert "its scores are not finite numbers" in host.fault
    assert host.loaded.version == before


def test_what_cannot_be_served_is_refused_at_the_start(tmp_path, small):
    with pytest.raises(CheckpointError, match=r"no manifest.json"):
        ModelHost("m", str(tmp_path), "none", ServeConfig())
    run = write_run(tmp_path / "ease", small, EaseConfig(), levels=(1.0,))
    with pytest.raises(ConfigError, match="Ease has none"):
        ModelHost("m", run, "none", ServeConfig(policy=PolicyConfig(diversity=0.5)))
    with pytest.raises(ValueError, match="with min <= max"):
        ServeConfig(replicas=[3, 2])


def test_stored_users_are_found_by_their_id_with_what_training_knew(world, tmp_path):
    """A model with a row for each user must be asked by number, or it would fold the user in."""
    _, data = world
    run = write_model(tmp_path / "mf", data, config=BiasedMfConfig(latent_width=4))
    users = StoredUsers(data.prepared, cached_shards=1)
    assert users.find("no") is users.find("100000") is users.find(str(2**80)) is None
    host = ModelHost("m", run, data.prepared, ServeConfig())
    with TestClient(served({"m": run}, data.prepared).app) as client:
        for name in ("no one", "auth%2F7", "https:%2F%2Fa.example%2Fb"):
            found = client.get(f"/v1/models/m/users/{name}/recommendations")
            assert (found.status_code, name.replace("%2F", "/") in found.text) == (404, True)
        for user in (3, 77):
            found, number = users.find(str(user))
            assert number >= 0
            listed = client.get(f"/v1/models/m/users/{user}/recommendations?k=5").json()["items"]
            vocabulary = Dataset.open(data.prepared).vocabulary
            model = host.loaded.scorer.model
            score = model.user_UZ[number] @ model.item_IZ.T + model.item_bias_I
            score = (score + model.user_bias_U[number]).detach().numpy()
            score[
                vocabulary.positions(vocabulary.ids.filter(np.isin(vocabulary.ids, found.items)))
            ] = -np.inf
            wanted = vocabulary.ids.to_numpy()[np.argsort(-score, kind="stable")[:5]]
            assert [entry["item"] for entry in listed] == wanted.tolist()


def test_the_history_of_a_stored_user_is_what_the_prepared_data_hold(world, tmp_path):
    run, data = world
    found, _ = StoredUsers(data.prepared, 1).find("3")
    titles = tmp_path / "titles.csv"
    titles.write_text(f"item,title\n{found.items[0]},First\n")
    with TestClient(served({"m": run}, data.prepared, titles=str(titles)).app) as client:
        answer = client.get("/v1/models/m/users/3/history").json()
        assert client.get("/v1/models/m/users/no%2Fone/history").status_code == 404
        posted = {"items": found.items, "ratings": found.ratings}
        of_history = client.post("/v1/models/m/recommendations", json={"history": posted}).json()
        stored = client.get("/v1/models/m/users/3/recommendations").json()
    assert [entry["item"] for entry in answer["items"]] == found.items
    assert [entry["rating"] for entry in answer["items"]] == found.ratings
    assert [entry["title"] for entry in answer["items"]] == ["First"] + [None] * (
        len(found.items) - 1
    )
    vocabulary = Dataset.open(data.prepared).vocabulary
    count_I = vocabulary.train_count_IL.sum(1)
    counts = count_I[vocabulary.positions(pa.array(found.items))]
    assert [entry["interactions"] for entry in answer["items"]] == counts.tolist()
    assert of_history["items"] == stored["items"]


def test_wishes_reach_stored_users(world):
    run, data = world
    server = served({"m": run}, data.prepared)
    with TestClient(server.app) as client:
        path = "/v1/models/m/users/3/recommendations"
        seen = client.get(path, params={"k": 60, "exclude_seen": "false"}).json()["items"]
        unseen = client.get(path, params={"k": 60}).json()["items"]
    found, _ = StoredUsers(data.prepared, 1).find("3")
    assert {e["item"] for e in seen} - {e["item"] for e in unseen} == set(found.items)
    assert isinstance(LocalRouter({}).names, tuple)
    assert json.dumps(server.config.model_dump(mode="json"))
