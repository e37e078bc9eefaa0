"""What an unfriendly client can do to a front."""

import asyncio
import contextlib
import json

import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from distrib.cli import read_run_file
from distrib.errors import ConfigError
from distrib.serve.arrow_stream import ARROW, stream_of
from tests.serve.conftest import served
from tests.serve.test_routes import post

LISTS = "/v1/models/default/recommendations"


def call(app, path, pieces, method="POST", headers=()):
    """Send a request whose body arrives in pieces; a number is a wait, None never ends."""
    sent, left = [], list(pieces)

    async def receive():
        while left:
            piece = left.pop(0)
            if piece is None:
                await asyncio.sleep(3600)
            elif isinstance(piece, float):
                await asyncio.sleep(piece)
            else:
                return {"type": "http.request", "body": piece, "more_body": bool(left)}
        await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(),
        "headers": [(b"content-type", b"application/json"), *headers], "query_string": b"",
        "scheme": "http", "server": ("x", 80), "root_path": "",
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 5))
    body = b"".join(m.get("body", b"") for m in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), body


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_no_body_is_read_where_none_is_wanted(run, method):
    app = served({"default": run}).app
    status, _, _ = call(app, "/healthz", [b"x" * 1000, None], method)
    assert status == (200 if method == "GET" else 405)
    status, _, _ = call(app, "/v1/models/default", [None], "GET")
    assert status == 200


def test_a_body_that_does_not_arrive_is_given_up(run):
    app = served({"default": run}, body_timeout_s=0.05).app
    status, headers, body = call(app, LISTS, [b"{", None])
    assert (status, headers[b"connection"]) == (408, b"close")
    assert b"no whole body within 0.05 s" in body
    status, _, _ = call(app, LISTS, [b'{"history": ', 0.001, b'{"items": [], "ratings": []}}'])
    assert status == 200


def test_a_client_that_goes_is_no_error_of_the_server(run, capfd):
    server = served({"default": run})
    sent = []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": LISTS, "headers": [], "query_string": b""}
    asyncio.run(server.app(scope, receive, send))
    assert sent == []
    assert [status for _, status in server.noted.requests] == [499]
    assert "request_failed" not in capfd.readouterr().err


def test_all_bodies_together_are_bounded_and_given_back(run):
    server = served({"default": run}, max_body_mb=1.0, max_held_mb=1.0, body_timeout_s=1.0)
    app = server.app
    call(app, "/healthz", [], "GET")
    middleware = app.middleware_stack
    while not hasattr(middleware, "max_held"):
        middleware = middleware.app
    middleware.held = middleware.max_held
    status, headers, _ = call(app, LISTS, [b"{}"])
    assert (status, headers[b"retry-after"]) == (429, b"1")
    assert middleware.held == middleware.max_held
    middleware.held = 0
    for pieces, wanted in (([b"x" * 2**19] * 3, 413), ([b"{}"], 422)):
        assert call(app, LISTS, pieces)[0] == wanted
        assert middleware.held == 0
    declared = [(b"content-length", b"9" * 5000)]
    assert call(app, LISTS, [b"{}"], headers=declared)[0] == 422


def test_every_answer_has_security_headers(client):
    for path in ("/", "/docs", "/healthz", "/v1/models", "/nothing"):
        found = client.get(path).headers
        assert "default-src 'self'" in found["content-security-policy"]
        assert found["x-content-type-options"] == "nosniff"
        assert found["x-frame-options"] == "DENY"


def test_a_million_wrong_ids_cost_one_fault(client):
    body = json.dumps({"history": {"items": [None] * 90_000}})
    found = client.post(LISTS, content=body, headers={"content-type": "application/json"})
    assert found.status_code == 422
    assert found.json()["detail"].count("history.items") <= 2


@pytest.mark.parametrize("name", ["deny", "candidates"])
def test_ids_of_another_kind_in_options_are_refused_rather_than_ignored(client, name):
    body = {"history": {"items": [1000], "ratings": [5]}, "options": {name: ["1000"]}}
    found = post(client, "recommendations", body)
    assert found.status_code == 422
    assert f"options.{name}: found str; the ids are integers" in found.json()["detail"]


def test_equal_targets_have_equal_ratings(client):
    history = {"items": [1000, 999], "ratings": [5, 3]}
    targets = [998, 5, 997] + [998] * 200
    found = post(client, "ratings", {"history": history, "targets": targets})
    assert found.status_code == 200
    entries = found.json()["ratings"]
    assert [entry["item"] for entry in entries] == targets
    assert entries[1]["rating"] is None
    assert {entry["rating"] for entry in entries[3:]} == {entries[0]["rating"]}
    alone = post(client, "ratings", {"history": history, "targets": [997]}).json()["ratings"]
    assert entries[2] == alone[0]


@pytest.mark.parametrize("name", ["items", "ratings", "times", "candidates"])
def test_lists_of_nulls_do_not_expand_in_memory(run, name):
    """A list of nulls has a length and no bytes."""

    nulls = pa.ListArray.from_arrays([0, 60_000_000], pa.nulls(60_000_000))
    lists = {"items": pa.array([[1000]]), "ratings": pa.array([[5.0]])} | {name: nulls}
    content = stream_of(pa.table({"user": [1], **lists}))
    assert len(content) < 3000
    with TestClient(served({"default": run}).app) as client:
        path, headers = f"{LISTS}.arrow", {"content-type": ARROW}
        found = client.post(path, content=content, headers=headers)
    assert found.status_code == 422
    assert f"{name}: 60000000 entries of one user" in found.json()["detail"]


@pytest.mark.parametrize(
    ("host", "is_exposed"),
    [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("::", True)],
)
def test_a_server_that_others_reach_needs_a_token(run, tmp_path, monkeypatch, host, is_exposed):
    from distrib.serve.deployment import preflight

    path = tmp_path / "run.toml"
    path.write_text(
        f'run = "{run}"\ndata = {{ prepared = "none" }}\nmodel = {{ name = "conv4rec" }}\n'
        f'[serve]\nhost = "{host}"\nport = 0\n'
    )
    monkeypatch.delenv("DISTRIB_TOKEN", raising=False)
    given = [str(path)]
    file = read_run_file(*given)
    assert file.serve.is_exposed is is_exposed
    refusal = pytest.raises(ConfigError, match="but it has no token; set the environment")
    with refusal if is_exposed else contextlib.nullcontext():
        preflight(file.run, "none", file.serve)
    anyone = read_run_file(*given, ["serve.allow_anonymous=true"])
    preflight(file.run, "none", anyone.serve)
    monkeypatch.setenv("DISTRIB_TOKEN", "of the environment")
    file = read_run_file(*given)
    assert file.serve.token.get_secret_value() == "of the environment"
    preflight(file.run, "none", file.serve)
    monkeypatch.setenv("DISTRIB_TOKEN", "of a file\n")
    app = served({"default": run}, token=read_run_file(*given).serve.token).app
    headers = [(b"authorization", b"Bearer of a file")]
    assert call(app, "/v1/models/default", [], "GET", headers)[0] == 200
    own = read_run_file(*given, ['serve.token="own"']).serve
    assert own.token.get_secret_value() == "own"
