"""Every model returns the same answers in process, in bulk and over HTTP."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from starlette.testclient import TestClient

from distrib.batch import Batch
from distrib.checkpoint.bundle import BUNDLE, BundleFacts, write_bundle
from distrib.models import SasRecConfig
from distrib.scoring.bulk.fragments import FragmentScorer, InputFile, fragments_of
from distrib.scoring.commit import Publication
from distrib.scoring.policy import ScoreConfig
from distrib.scoring.scorer import Scorer
from distrib.scoring.tables import SINGULAR
from distrib.serve.arrow_stream import stream_of, table_of
from distrib.storage import Folder
from distrib.vocabulary import LogFacts, Vocabulary
from tests.in_process import filled
from tests.models.test_contract import every_model
from tests.serve.conftest import IDS, history, served

K = 7
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}  # batch sizes differ, so does summation order


def bulk_lists(run, table, output):
    """Parquet to Parquet, as an actor does it."""
    histories = output / "in"
    histories.mkdir(parents=True)
    pq.write_table(table, histories / "a.parquet", row_group_size=10)
    scorer = Scorer.from_bundle(Folder(run) / BUNDLE)
    config = ScoreConfig(k=K, batch_users=6, fragment_users=20)
    publication = Publication(Folder(str(output)), {})
    writer = FragmentScorer(scorer, Folder(str(histories)), None, publication, config)
    fragments = fragments_of(Folder(str(histories)), [InputFile("a.parquet")], 20)
    receipts = [writer.write(fragment) for fragment in fragments]
    parts = [publication.work.read_parquet(receipt.name) for receipt in receipts]
    return pa.concat_tables(parts).to_pylist()


def assert_same(bulk, found, direct, row):
    assert [entry["item"] for entry in found] == bulk["items"]
    items = [1000 - item for item in direct.item_BK[row].tolist()]
    assert bulk["items"] == items
    np.testing.assert_allclose(bulk["scores"], direct.score_BK[row], **TOLERANCE)
    for column, name in SINGULAR.items():
        if column in bulk and name != "item":
            reported = [entry[name] for entry in found]
            np.testing.assert_allclose(reported, bulk[column], **TOLERANCE, err_msg=name)
    if direct.prediction is not None:
        np.testing.assert_allclose(bulk["ratings"], direct.prediction.rating_BI[row], **TOLERANCE)


def test_a_live_sequence_counts_in_its_order_or_by_its_times(small, tmp_path):
    config = SasRecConfig(max_length=9, latent_width=8)
    counts, levels = small.catalog.train_count_IL, small.catalog.levels
    vocabulary = Vocabulary(IDS, levels, counts, 37, 37)
    run, facts = str(tmp_path / "run"), BundleFacts(data="none")
    weights = filled(config, small).state_dict()
    write_bundle(Folder(run) / BUNDLE, weights, config, vocabulary, facts)
    items, ratings = [1000, 990, 980, 970], [5.0, 4.0, 3.0, 2.0]
    with TestClient(served({"m": run}).app) as client:

        def scores(**history):
            answer = client.post("/v1/models/m/recommendations", json={"history": history})
            return [(found["item"], found["score"]) for found in answer.json()["items"]]

        plain = scores(items=items, ratings=ratings)
        turned = scores(items=items[::-1], ratings=ratings[::-1])
        timed = scores(items=items[::-1], ratings=ratings[::-1], times=[4, 3, 2.5, 1])
        uneven = client.post(
            "/v1/models/m/recommendations",
            json={"history": {"items": items, "ratings": ratings, "times": [1]}},
        )
        columns = {"user": ["p", "t"], "items": [items, items[::-1]]}
        columns |= {"ratings": [ratings, ratings[::-1]], "times": [[1, 2, 3, 4], [4, 3, 2.5, 1]]}
        table = pa.table(columns)
        streamed = client.post(
            f"/v1/models/m/recommendations.arrow?k={K}", content=stream_of(table)
        )
    assert timed == plain != turned
    bulk = bulk_lists(run, table, tmp_path / "out")
    for found in (bulk, table_of(streamed.content).to_pylist()):
        assert [row["items"] for row in found] == [[item for item, _ in plain[:K]]] * 2
    assert uneven.status_code == 422
    assert "4 items but 1 times" in uneven.text


@every_model
def test_direct_bulk_and_served_answers_are_equal(config, small, tmp_path):
    counts, levels = small.catalog.train_count_IL, small.catalog.levels
    vocabulary = Vocabulary(IDS, levels, counts, 37, 37, LogFacts(small.catalog.feedback))
    model, run = filled(config, small), str(tmp_path / "run")
    write_bundle(
        Folder(run) / BUNDLE, model.state_dict(), config, vocabulary, BundleFacts(data="none")
    )
    rows = [{"user": user, **history(small, user)} for user in range(37)]
    table = pa.Table.from_pylist(rows)
    bulk = bulk_lists(run, table, tmp_path / "out")
    strangers = small.batch._replace(user_B=torch.full((37,), -1))
    direct = Scorer(model, vocabulary).recommend(strangers, strangers, K)
    with TestClient(served({"m": run}).app) as client:
        path = "/v1/models/m/recommendations"
        for user in range(0, 37, 6):
            body = {"history": history(small, user), "options": {"k": K}}
            found = client.post(path, json=body).json()["items"]
            assert_same(bulk[user], found, direct, user)
        streamed = client.post(f"{path}.arrow?k={K}", content=stream_of(table))
        for row, wanted in zip(table_of(streamed.content).to_pylist(), bulk, strict=True):
            assert row["items"] == wanted["items"]
        reported = {"history": history(small, 5), "targets": [1000, 981, 951]}
        answer = client.post("/v1/models/m/ratings", json=reported)
    wanted = Scorer(model, vocabulary).predict(
        strangers.slice(5, 6), Batch.from_lists([[0, 19, 49]])
    )
    if wanted is None:
        assert answer.status_code == 422
    else:
        ratings = [entry["rating"] for entry in answer.json()["ratings"]]
        np.testing.assert_allclose(ratings, wanted.rating_N, **TOLERANCE)
