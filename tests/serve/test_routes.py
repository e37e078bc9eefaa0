"""HTTP requests and responses; no request body causes a 5xx."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from distrib.batch import Batch
from distrib.models import EaseConfig, MultVaeConfig
from distrib.scoring.policy import PolicyConfig, ScoreConfig
from distrib.scoring.rules import Rules
from distrib.scoring.tables import recommend_table
from distrib.serve.arrow_stream import ARROW, stream_of, table_of
from distrib.serve.requests import RecommendJob
from distrib.serve.schemas import RecommendRequest
from tests.serve.conftest import IDS, history, served, write_run

LISTS = "/v1/models/default/recommendations"


def post(client, path, body, **more):
    return client.post(f"/v1/models/default/{path}", json=body, **more)


def test_a_list_is_the_scorers(client, server, small):
    asked = {"history": history(small, 3), "options": {"k": 7}}
    found = post(client, "recommendations", asked)
    assert found.status_code == 200
    body = found.json()
    scorer = server.hosts["default"].loaded.scorer
    direct = scorer.recommend(small.users([3]), small.users([3]), 7)
    assert [e["item"] for e in body["items"]] == [1000 - i for i in direct.item_BK[0].tolist()]
    for name, value in (
        ("score", direct.score_BK),
        ("probability", direct.prediction.probability_BI),
        ("rating", direct.prediction.rating_BI),
    ):
        reported = [entry[name] for entry in body["items"]]
        np.testing.assert_allclose(reported, value[0], rtol=1e-5, atol=1e-5)
    assert body["read"] == {
        "used": len(small.items[3]),
        "unknown_items": 0,
        "duplicates": 0,
        "ratings_off_scale": 0,
        "unknown_candidates": 0,
    }
    assert body["version"] == client.get("/v1/models/default").json()["version"]


def test_wishes_of_one_request_do_not_touch_another(client, server, small):
    """Batched or alone, each gets the list that a policy of its own would give."""
    host = server.hosts["default"]
    scorer = host.loaded.scorer
    wishes = [
        {},
        {"deny": [1000, 999, 998, 5]},
        {"candidates": [997, 996, 995, 4]},
        {"candidates": []},
        {"popularity_damping": 0.7},
        {"diversity": 0.5},
        {"exclude_seen": False, "min_score": -5.0},
        {"k": 3},
    ]
    asks = []
    for wish in wishes:
        for user in (2, 9):
            body = {"history": history(small, user), "options": {"k": 6} | wish}
            request = RecommendRequest.model_validate_json(json.dumps(body))
            asks.append(RecommendJob(request.history, request.options))
    together = host.answer(asks)
    for place, answer in enumerate(together):
        wish, user = wishes[place // 2], (2, 9)[place % 2]
        policy = PolicyConfig(
            deny=tuple(wish["deny"]) if "deny" in wish else None,
            allow=tuple(wish["candidates"]) if wish.get("candidates") else None,
            popularity_damping=wish.get("popularity_damping", 0.0),
            diversity=wish.get("diversity", 0.0),
            min_score=wish.get("min_score"),
        )
        rules = Rules.of(policy, scorer.model, scorer.vocabulary)
        batch = small.users([user])
        seen = batch if wish.get("exclude_seen", True) else None
        direct = scorer.recommend(batch, seen, wish.get("k", 6), rules=rules)
        wanted = [1000 - item for item in direct.item_BK[0].tolist() if item >= 0]
        if wish.get("candidates") == []:
            wanted = []
        assert [entry["item"] for entry in answer.body["items"]] == wanted, wish


def test_arrow_streams_carry_what_bulk_scoring_writes(client, server, small):
    table = pa.table(
        {
            "user": ["a", "b", None, "d"],
            "items": [history(small, n)["items"] for n in range(4)],
            "ratings": [history(small, n)["ratings"] for n in range(4)],
        }
    )
    found = client.post(f"{LISTS}.arrow?k=4", content=stream_of(table))
    assert found.status_code == 200
    assert found.headers["content-type"] == ARROW
    lists = table_of(found.content)
    scorer = server.hosts["default"].loaded.scorer
    direct, _ = recommend_table(scorer, table, None, ScoreConfig(k=4))
    assert lists.to_pydict() == direct.to_pydict()
    assert json.loads(lists.schema.metadata[b"rejected"]) == {"no user id": 1}
    for content, message in (
        (b"junk", "not a valid Arrow stream"),
        (stream_of(table.drop(["items"])), "lack column"),
    ):
        bad = client.post(f"{LISTS}.arrow", content=content)
        assert bad.status_code == 422
        assert message in bad.json()["detail"]


def test_streams_that_could_fill_the_memory_are_refused(run, small):
    table = pa.table({"user": [1], "items": [[1000] * 5000], "ratings": [[5.0] * 5000]})
    compressed = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(compressed, table.schema, options=options) as writer:
        writer.write_table(table)
    coded = pa.table({"user": pa.array(["a"]).dictionary_encode(), "items": [[1000]]})
    many = pa.table({"user": list(range(9)), "items": [[1000]] * 9, "ratings": [[5.0]] * 9})
    odd = pa.table({"user": [{"a": 1}], "items": [[1000]], "ratings": [[5.0]]})
    twice = pa.table([[1], [1], [[1000]]], ["user", "user", "items"])
    with TestClient(served({"default": run}, max_history=50, max_users=8).app) as client:
        for content, status, message in (
            (bytes(compressed.getvalue()), 422, "compressed Arrow stream"),
            (stream_of(coded), 422, "dictionary-encoded columns"),
            (stream_of(table), 422, "at most 50"),
            (stream_of(many), 413, "9 users, but 8 are allowed"),
            (stream_of(odd), 422, "column 'user' is struct"),
            (stream_of(twice), 422, r"column(s) ['user'] more than once"),
            (stream_of(many)[:300], 422, "not a valid Arrow stream"),
        ):
            found = client.post(f"{LISTS}.arrow", content=content)
            assert found.status_code == status, message
            assert message in found.json()["detail"]


def test_ratings_of_known_and_unknown_items(client, server, small):
    body = {"history": history(small, 3), "targets": [1000, 5, 990]}
    found = post(client, "ratings", body).json()["ratings"]
    scorer = server.hosts["default"].loaded.scorer
    wanted = scorer.predict(small.users([3]), Batch.from_lists([[0, 10]])).rating_N
    assert [entry["item"] for entry in found] == [1000, 5, 990]
    assert found[1]["rating"] is None
    np.testing.assert_allclose([found[0]["rating"], found[2]["rating"]], wanted, rtol=1e-5)


def test_reasons_are_the_interactions_that_moved_the_score_most(client, server, small):
    body = {"history": history(small, 3), "options": {"k": 2}, "max_reasons": 3}
    found = post(client, "explanations", body).json()["items"]
    scorer = server.hosts["default"].loaded.scorer
    items = torch.tensor([1000 - entry["recommended"]["item"] for entry in found])
    influence_NK = scorer.explain(small.users([3]), items)
    for column, entry in enumerate(found):
        order = influence_NK[:, column].abs().argsort(descending=True)[:3]
        wanted = [1000 - small.items[3][place] for place in order.tolist()]
        assert [reason["item"] for reason in entry["reasons"]] == wanted
        reported = [reason["influence"] for reason in entry["reasons"]]
        np.testing.assert_allclose(reported, influence_NK[order, column], rtol=1e-4, atol=1e-5)


def test_the_map_shows_every_item_once(client, small):
    body = {"history": history(small, 3), "max_items": 20}
    points = post(client, "map", body).json()["items"]
    assert [point["item"] for point in points] == [1000 - n for n in range(0, 50, 3)]
    assert {point["item"] for point in points if point["seen"]} == {
        1000 - item for item in small.items[3] if item % 3 == 0
    }


def test_items_are_found_by_id_and_title(small, run, tmp_path):
    lines = "\n".join(f'{1000 - n},"Film {n}"' for n in range(50))
    (tmp_path / "titles.csv").write_text(f"item,title\n{lines}\n")
    with TestClient(served({"m": run}, titles=str(tmp_path / "titles.csv")).app) as client:
        found = client.get("/v1/models/m/items", params={"query": "FILM 1", "limit": 20}).json()
        assert {entry["title"] for entry in found["items"]} == {
            f"Film {n}" for n in range(50) if str(n).startswith("1")
        }
        counts = [entry["interactions"] for entry in found["items"]]
        assert counts == sorted(counts, reverse=True)
        body = {"history": history(small, 1), "options": {"k": 2}}
        listed = client.post("/v1/models/m/recommendations", json=body).json()["items"]
        assert listed[0]["title"] == f"Film {1000 - listed[0]['item']}"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "history: is required"),
        ({"history": {"items": [1000], "ratings": [5.0, 1.0]}}, "1 items but 2 ratings"),
        ({"history": {"items": [1000]}}, "history.ratings: required, on the scale"),
        ({"history": {"items": ["x"], "ratings": [5.0]}}, "found str; the ids are integers"),
        ({"history": {"items": [1.5], "ratings": [5.0]}}, "history.items.0"),
        ({"history": {"items": [2**70], "ratings": [5.0]}}, "history.items.0"),
        ({"history": {"items": [], "ratings": []}, "options": {"k": 0}}, "options.k"),
        ({"history": {"items": [], "ratings": []}, "options": {"k": 10**6}}, "at most 1000"),
        ({"history": {"items": [], "ratings": []}, "options": {"kk": 1}}, "options.kk"),
        ({"history": {"items": [], "ratings": []}, "options": {"max_per_group": 1}}, "item groups"),
        (
            {"history": {"items": [], "ratings": []}, "options": {"outputs": ["deviation"]}},
            "but not deviation",
        ),
    ],
)
def test_requests_that_make_no_sense_get_one_clear_answer(client, body, message):
    found = post(client, "recommendations", body)
    assert found.status_code == 422
    assert message in found.json()["detail"]
    assert found.json()["request_id"] == found.headers["x-request-id"]


def test_faults_of_requests_are_in_the_words_of_run_files(client):
    nothing = {"items": [], "ratings": []}
    for path, body, message in (
        ("recommendations", {"history": {"itms": [1]}}, "history.itms: unknown key; did you mean"),
        ("recommendations", {"history": nothing, "option": {}}, "option: unknown key; did you"),
        ("recommendations", {"history": 3}, "history: must be an object"),
        ("recommendations", [], "body: must be an object"),
        ("recommendations", {"history": nothing, "options": {"k": 1.5}}, "k: must be a whole num"),
        ("recommendations", {"history": nothing, "options": {"k": 0}}, "k: must be greater than"),
        ("ratings", {"history": nothing, "targets": []}, "targets: must have at least 1 item"),
        (
            "ratings",
            {"history": {"items": "x"}, "targets": [1]},
            "history.items: must be a list",
        ),
    ):
        detail = post(client, path, body).json()["detail"]
        assert message in detail
        assert "should" not in detail
    found = client.post(LISTS, content=b"{", headers={"content-type": "application/json"})
    assert "body: not valid JSON (" in found.json()["detail"]


def test_a_parameter_that_there_is_not_is_refused(client):
    for path, message in (
        ("/users/1/recommendations?n=5", "unknown query parameter 'n'; there are k, exclude_seen"),
        ("/users/1/recommendations?exclude_sen=1", "did you mean 'exclude_seen'?"),
        ("/items?query=a&limits=3", "unknown query parameter 'limits'; did you mean 'limit'?"),
        ("?k=5", "unknown query parameter 'k'; there are none"),
    ):
        found = client.get(f"/v1/models/default{path}")
        assert found.status_code == 422
        assert message in found.json()["detail"]


def test_candidates_that_the_model_does_not_know_are_counted(client, small):
    body = {"history": history(small, 3), "options": {"candidates": [1000, 999, 5, 6, 5]}}
    found = post(client, "recommendations", body).json()
    assert found["read"]["unknown_candidates"] == 2
    table = pa.table({"user": ["a"], "items": [[1000]], "ratings": [[5.0]], "candidates": [[5]]})
    lists = table_of(client.post(f"{LISTS}.arrow", content=stream_of(table)).content)
    assert lists.schema.metadata[b"unknown_candidates"] == b"1"
    assert lists["items"].to_pylist() == [[]]


def test_whatever_is_not_json_gets_a_4xx(client):
    for content in (
        b"",
        b"{",
        b'{"history": {"items": [1], "ratings": [NaN]}}',
        b"\xff\xfe",
        b'{"history": {"items": ["\\ud800"], "ratings": [1]}}',
        b"[" * 5000,
    ):
        found = client.post(LISTS, content=content, headers={"content-type": "application/json"})
        assert found.status_code in {400, 422}, content[:40]
        found.json()


ids = st.one_of(
    st.integers(940, 1010),
    st.integers(),
    st.text(max_size=5),
    st.floats(),
    st.none(),
    st.booleans(),
)
values = st.one_of(st.integers(1, 5), st.floats(), st.integers(), st.none(), st.text(max_size=3))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    items=st.lists(ids, max_size=30),
    ratings=st.one_of(st.none(), st.lists(values, max_size=30)),
    wishes=st.dictionaries(
        st.sampled_from(["k", "deny", "candidates", "min_score", "diversity", "outputs", "what"]),
        st.one_of(st.integers(), st.floats(), st.lists(ids, max_size=4), st.text(max_size=4)),
        max_size=3,
    ),
)
def test_any_history_gets_an_answer_or_a_clear_4xx(client, items, ratings, wishes):
    body = json.dumps({"history": {"items": items, "ratings": ratings}, "options": wishes})
    for path in ("recommendations", "explanations"):
        found = client.post(
            f"/v1/models/default/{path}", content=body, headers={"content-type": "application/json"}
        )
        assert found.status_code in {200, 422}
        assert found.json().get("items") is not None or found.json()["detail"]


def test_a_hundred_thousand_items_get_an_answer_and_more_a_422(client):
    history = {"items": list(range(100_000)), "ratings": [3.0] * 100_000}
    found = post(client, "recommendations", {"history": history})
    assert found.status_code == 200
    assert found.json()["read"]["unknown_items"] == 100_000 - 50  # 951 to 1000 are known
    history = {"items": list(range(100_001)), "ratings": [3.0] * 100_001}
    found = post(client, "recommendations", {"history": history})
    assert found.status_code == 422
    assert "100001 items, at most 100000" in found.json()["detail"]


def test_duplicates_count_once_the_last_rating_wins(client, small):
    once = {"history": {"items": [990, 1000], "ratings": [2.0, 5.0]}}
    twice = {"history": {"items": [1000, 990, 1000], "ratings": [1.0, 2.0, 5.0]}}
    one, other = (post(client, "recommendations", body).json() for body in (once, twice))
    assert one["items"] == other["items"]
    assert other["read"]["duplicates"] == 1


def test_large_bodies_are_refused_by_header_and_by_count(small, run):
    with TestClient(served({"default": run}, max_body_mb=0.01).app) as client:
        found = client.post(LISTS, content=b"x" * 20_000)
        assert found.status_code == 413
        assert "larger than" in found.json()["detail"]

        def pieces():
            for _ in range(30):
                yield b"x" * 1000

        assert client.post(LISTS, content=pieces()).status_code == 413
        assert client.get("/healthz").status_code == 200


def test_only_bearers_of_the_token_get_in(run, capsys):
    server = served({"default": run}, token="s3cret-token")
    with TestClient(server.app) as client:
        body = {"history": {"items": [], "ratings": []}}
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Basic czNjcmV0"},
            {"authorization": "Bearer s3cret-tokeN"},
        ):
            for found in (
                client.post(LISTS, json=body, headers=headers),
                client.get("/v1/models", headers=headers),
            ):
                assert found.status_code == 401
                assert found.headers["www-authenticate"] == "Bearer"
                assert "s3cret" not in found.text
        good = {"authorization": "Bearer s3cret-token"}
        assert client.post(LISTS, json=body, headers=good).status_code == 200
        assert client.get("/healthz").status_code == 200  # probes send no token
        assert client.get("/").status_code == 200
    reported = capsys.readouterr()
    assert (
        "s3cret"
        not in reported.out + reported.err + repr(server.config) + server.config.model_dump_json()
    )


def test_unknown_models_and_paths_get_a_404(client):
    assert "available: default" in client.get("/v1/models/other").json()["detail"]
    assert client.get("/nowhere").status_code == 404
    assert client.get("/page/..%2fdesk.py").status_code == 404


def test_request_ids_are_kept_or_made(client):
    given = client.get("/healthz", headers={"x-request-id": "abc-1"})
    assert given.headers["x-request-id"] == "abc-1"
    made = client.get("/healthz", headers={"x-request-id": "a b\x7f"}).headers["x-request-id"]
    assert len(made) == 32


def test_models_stand_side_by_side(small, tmp_path):
    models = {
        "conv": write_run(tmp_path / "a", small),
        "vae": write_run(tmp_path / "b", small, MultVaeConfig(), levels=(1.0,)),
        "ease": write_run(
            tmp_path / "c",
            small,
            EaseConfig(),
            levels=(1.0,),
            ids=pa.array([f"sku-{n}" for n in range(50)]),
            scale=0.1,
        ),
    }
    with TestClient(served(models).app) as client:
        cards = {card["name"]: card for card in client.get("/v1/models").json()["models"]}
        assert list(cards) == list(models)
        assert "rating" in cards["conv"]["outputs"]
        assert cards["vae"]["outputs"] == ["score", "embedding"]
        assert not cards["vae"]["reads_ratings"]
        lists = {}
        for name, item in (("vae", 1000), ("ease", "sku-7")):
            body = {"history": {"items": [item]}, "options": {"k": 3}}
            found = client.post(f"/v1/models/{name}/recommendations", json=body)
            lists[name] = [entry["item"] for entry in found.json()["items"]]
        assert all(isinstance(item, int) for item in lists["vae"])
        assert all(item.startswith("sku-") for item in lists["ease"])
        body = {"history": {"items": ["sku-7"]}, "options": {"diversity": 0.2}}
        refused = client.post("/v1/models/ease/recommendations", json=body)
        assert "Ease has none" in refused.json()["detail"]
        vector = client.post(
            "/v1/models/vae/recommendations",
            json={"history": {"items": [1000]}, "options": {"outputs": ["embedding"]}},
        ).json()["embedding"]
        assert len(vector) == 600


def test_what_is_told_is_counted(client, server, small):
    post(client, "recommendations", {"history": {"items": [1, 2], "ratings": [1.0, 2.0]}})
    client.get("/v1/models/none")
    assert ("/v1/models/{model}/recommendations", 200) in server.noted.requests
    assert ("/v1/models/{model}", 404) in server.noted.requests
    assert server.noted.batches == [1]
    assert server.noted.unknowns == 2
    assert len(IDS) == 50


def test_ids_of_digits_stay_text_on_every_way(tmp_path, small):
    ids = pa.array([f"{n:03d}" for n in range(50)])
    (tmp_path / "titles.csv").write_text("item,title\n007,Seven\n")
    run = write_run(tmp_path / "run", small, EaseConfig(), ids=ids, levels=(1.0,))
    with TestClient(served({"default": run}, titles=str(tmp_path / "titles.csv")).app) as client:
        found = client.get("/v1/models/default/items", params={"query": "seven"}).json()["items"]
        assert [(entry["item"], entry["title"]) for entry in found] == [("007", "Seven")]
        found = post(client, "recommendations", {"history": {"items": [found[0]["item"]]}})
        assert found.status_code == 200
        assert found.json()["read"]["used"] == 1
        refused = post(client, "recommendations", {"history": {"items": [7]}})
        assert refused.status_code == 422


def test_whole_floats_are_integers(client):
    body = {"history": {"items": [1000.0, 999.0], "ratings": [5, 4]}}
    found = post(client, "recommendations", body)
    assert found.json()["read"]["used"] == 2
    body["history"]["items"][0] = 1000.5
    assert post(client, "recommendations", body).status_code == 422
