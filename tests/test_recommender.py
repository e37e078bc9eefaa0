"""Ids in, ids out: frames of every library, dictionaries and lists, against the scorer itself."""

import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

import distrib
from distrib.checkpoint.bundle import BUNDLE, BundleFacts, write_bundle
from distrib.errors import CheckpointError, ConfigError, DataError
from distrib.models.autoencoders.conv4rec import Conv4RecConfig
from distrib.models.autoencoders.mult_vae import MultVaeConfig
from distrib.models.shallow.ease import EaseConfig
from distrib.recommender import Policy, Recommender
from distrib.scoring.policy import PolicyConfig
from distrib.storage import Folder
from distrib.vocabulary import Catalog, Vocabulary

ITEMS = [f"sku-{n}" for n in range(50)]


def run_of(small, tmp_path, config, *, is_rated=True):
    levels = small.catalog.levels if is_rated else (1.0,)
    counts = small.catalog.train_count_IL
    counts = counts if is_rated else counts.sum(1, keepdims=True)
    catalog = Catalog(50, levels, counts, 37)
    torch.manual_seed(0)
    model = config.build(catalog)
    vocabulary = Vocabulary(pa.array(ITEMS), levels, counts, 37)
    folder = Folder(str(tmp_path / "run"))
    write_bundle(folder / BUNDLE, model.state_dict(), config, vocabulary, BundleFacts(epoch=1))
    return str(folder)


def about(row):
    """A row whose scores may differ in the last bits: batches of other sizes round otherwise."""
    return {k: pytest.approx(v, abs=1e-5) if isinstance(v, float) else v for k, v in row.items()}


@pytest.fixture
def vae(small, tmp_path):
    config = MultVaeConfig(hidden_width=16, latent_width=8)
    return Recommender.load(run_of(small, tmp_path, config, is_rated=False))


@pytest.fixture
def conv(small, tmp_path):
    return Recommender.load(run_of(small, tmp_path, Conv4RecConfig(latent_width=8, rating_width=4)))


HISTORIES = {"ann": ["sku-3", "sku-9"], "bob": ["sku-1"], "cid": ["sku-4", "sku-5", "sku-6"]}
ROWS = [{"user": user, "item": item} for user, items in HISTORIES.items() for item in items]


def test_all_kinds_of_histories_get_the_same_lists_in_their_own_kind(vae):
    wanted = vae.recommend(HISTORIES, 4)
    assert list(wanted) == list(HISTORIES)
    assert all([row["rank"] for row in rows] == [1, 2, 3, 4] for rows in wanted.values())
    assert vae.recommend(HISTORIES["ann"], 4) == [about(row) for row in wanted["ann"]]
    flat = [about({"user": user, **row}) for user, rows in wanted.items() for row in rows]
    rows = pa.Table.from_pylist(ROWS)
    lists = pa.table({"user": list(HISTORIES), "items": list(HISTORIES.values())})
    shuffled = rows.take([5, 0, 2, 1, 3, 4])
    for table in (rows, lists):
        assert vae.recommend(table, 4).to_pylist() == flat
        assert vae.recommend(table.to_pandas(), 4).to_dict("records") == flat
        found = vae.recommend(pl.from_arrow(table), 4)
        assert isinstance(found, pl.DataFrame)
        assert found.to_dicts() == flat
    assert {row["user"] for row in vae.recommend(shuffled, 4).to_pylist()} == {*HISTORIES}
    assert vae.recommend(shuffled, 1)["user"].to_pylist() == ["cid", "ann", "bob"]  # as they come
    named = rows.rename_columns(["account", "product"])
    columns = {"user": "account", "item": "product"}
    assert vae.recommend(named, 4, columns=columns).to_pylist() == flat


def test_policies_hold_and_seen_items_are_left_out(vae):
    (best, *_) = vae.recommend(["sku-3"], 1)
    assert best["item"] not in {
        row["item"] for row in vae.recommend(["sku-3"], 49, deny=[best["item"]])
    }
    assert best["item"] not in {
        row["item"] for row in vae.recommend(["sku-3"], 9, deny=best["item"])
    }
    assert {r["item"] for r in vae.recommend(["sku-3"], 50)} == {*ITEMS} - {"sku-3"}
    assert len(vae.recommend(["sku-3"], 50, exclude_seen=False)) == 50
    allowed = np.array(["sku-7", "sku-8"])
    assert {r["item"] for r in vae.recommend(["sku-3"], 9, allow=allowed)} == {"sku-7", "sku-8"}
    assert Policy.__annotations__.keys() == PolicyConfig.model_fields.keys()
    with pytest.raises(ConfigError, match="unknown key"):
        vae.recommend(["sku-3"], allowed=["sku-1"])
    with pytest.raises(ConfigError, match="k = 0"):
        vae.recommend(["sku-3"], 0)


def test_denied_ids_that_are_no_items_are_a_warning(vae):
    with pytest.warns(
        UserWarning, match="deny: 1 of 2 ids are not in the catalog, such as 'sku-none'"
    ):
        vae.recommend(["sku-3"], 9, deny=["sku-3", "sku-none"])


def test_ratings_are_read_and_predicted_for_pairs(conv):
    rated = {"ann": {"sku-3": 5, "sku-9": 2.0}, "bob": {"sku-1": 1}}
    lists = conv.recommend(rated, 50, exclude_seen=False)
    by_pair = {(user, row["item"]): row for user, rows in lists.items() for row in rows}
    with pytest.warns(UserWarning, match="2 pair.*'item': 'nothing'.*have no prediction"):
        predicted = conv.predict(rated, ["sku-1", "nothing", "sku-2"])
    assert [row["item"] for row in predicted["ann"]] == ["sku-1", "nothing", "sku-2"]
    assert predicted["ann"][1] == {"item": "nothing", "score": None, "rating": None}
    for user, rows in predicted.items():
        for row in (rows[0], rows[2]):
            there = by_pair[user, row["item"]]
            assert row["rating"] == pytest.approx(there["rating"], abs=1e-5)
            assert row["score"] == pytest.approx(there["score"], abs=1e-5)
    pairs = pd.DataFrame({"user": ["bob", "zoe", "ann"], "item": ["sku-2", "sku-2", "sku-1"]})
    with pytest.warns(UserWarning, match="1 pair.*'user': 'zoe'"):
        frame = conv.predict(rated, pairs)
    assert isinstance(frame, pd.DataFrame)
    assert frame["user"].tolist() == ["bob", "zoe", "ann"]
    assert frame["rating"].isna().tolist() == [False, True, False]
    assert frame["rating"][2] == pytest.approx(predicted["ann"][0]["rating"])
    one = conv.predict({"sku-3": 5, "sku-9": 2.0}, ["sku-1"])
    assert one[0]["rating"] == pytest.approx(predicted["ann"][0]["rating"])
    with pytest.raises(DataError, match="no ratings"):
        conv.recommend(["sku-1"])
    with pytest.raises(DataError, match="1 of 2 histories have ratings"):
        conv.recommend({"ann": {"sku-3": 5}, "bob": ["sku-1"]})


def test_reasons_are_the_influence_of_interactions(conv):
    history = {"sku-3": 5, "sku-9": 2, "sku-4": 4}
    listed = conv.explain(history, 3, max_reasons=2)
    assert [row["item"] for row in listed] == [row["item"] for row in conv.recommend(history, 3)]
    assert all({r["item"] for r in row["reasons"]} < {*history} for row in listed)
    without = conv.predict({"sku-9": 2, "sku-4": 4}, [listed[0]["item"]])[0]["score"]
    reasons = {
        r["item"]: r["influence"] for r in conv.explain(history, 1, max_reasons=3)[0]["reasons"]
    }
    assert reasons["sku-3"] == pytest.approx(listed[0]["score"] - without, abs=1e-4)


def test_embeddings_and_item_vectors_give_the_scores(vae):
    vectors = vae.item_vectors()
    assert vectors["item"].to_pylist() == ITEMS == vae.items
    users = np.array(list(vae.embed(HISTORIES).values()))
    np.testing.assert_allclose(vae.embed(HISTORIES["ann"]), users[0], atol=1e-5)
    item_IZ = np.array(vectors["vector"].to_pylist())
    score = np.concatenate([users, np.ones((3, 1))], axis=1) @ item_IZ.T
    for place, (user, rows) in enumerate(vae.recommend(HISTORIES, 5, outputs=["score"]).items()):
        for row in rows:
            assert row["score"] == pytest.approx(
                score[place, ITEMS.index(row["item"])], abs=1e-4
            ), user
    assert vae.embed(pd.DataFrame(ROWS)).columns.tolist() == ["user", "embedding"]


def test_series_sets_and_arrays_are_lists_and_ratings_need_a_model_that_reads_them(vae):
    wanted = [about(row) for row in vae.recommend(["sku-3", "sku-9"], 3)]
    for kind in (pd.Series, np.array, set, pl.Series):
        assert vae.recommend(kind(["sku-3", "sku-9"]), 3) == wanted
    assert vae.recommend({"sku-3": 7, "sku-9": 0.5}, 3) == wanted  # counts, on no scale
    assert set(vae.similar_items(pd.Series(["sku-3", "sku-7"]), 2)) == {"sku-3", "sku-7"}
    assert "mult_vae, 50 items, epoch 1" in repr(vae)


def test_users_of_whom_nothing_is_known_are_named(vae):
    with pytest.warns(UserWarning, match=r"1 user\(s\), such as \['ann'\]"):
        vae.recommend({"ann": ["nothing"], "bob": ["sku-1"]}, 2)


def test_similar_items_are_near_in_vectors_or_by_a_history_of_one(vae, small, tmp_path):
    item_IZ = np.array(vae.item_vectors()["vector"].to_pylist())[:, :-1]
    unit = item_IZ / np.linalg.norm(item_IZ, axis=1, keepdims=True)
    found = vae.similar_items(["sku-3", "sku-7"], 4)
    for name, rows in found.items():
        cosine = unit @ unit[ITEMS.index(name)]
        cosine[ITEMS.index(name)] = -1
        assert [row["item"] for row in rows] == [ITEMS[n] for n in np.argsort(-cosine)[:4]]
    assert vae.similar_items("sku-3", 4) == [about(row) for row in found["sku-3"]]
    with pytest.raises(DataError, match="does not know item"):
        vae.similar_items("no such")
    ease = Recommender.load(run_of(small, tmp_path / "ease", EaseConfig(), is_rated=False))
    other = ease.similar_items("sku-3", 3)
    assert len(other) == 3
    assert "sku-3" not in {row["item"] for row in other}


@pytest.mark.parametrize("kind", ["vae", "conv"])
def test_nothing_gives_nothing_in_the_same_kind(kind, request):
    """A model of ratings misses none where there is no interaction."""
    model = request.getfixturevalue(kind)
    empty = pd.DataFrame({"user": [], "item": []})
    assert model.recommend({}) == {}
    assert model.predict({}, {}) == {}
    assert len(model.recommend(empty)) == len(model.predict(empty, empty)) == 0
    assert len(model.recommend([], 3)) == len(model.recommend({"ann": []}, 3)["ann"]) == 3
    assert [row["item"] for row in model.predict([], ["sku-1"])] == ["sku-1"]


def test_candidates_that_the_model_does_not_know_are_counted(vae):
    candidates = [["nope", "sku-5", "gone"]]
    table = pa.table({"user": ["a"], "items": [["sku-3"]], "candidates": candidates})
    with pytest.warns(UserWarning, match=r"does not know 2 candidate"):
        found = vae.recommend(table)
    assert found["item"].to_pylist() == ["sku-5"]


def test_wrong_input_is_one_clear_error(vae, tmp_path):
    for histories, message in (
        (3, "histories are int"),
        ("sku-1", "histories are str"),
        (pd.DataFrame({"who": ["a"], "what": ["b"]}), "lacks column"),
        ({"ann": "sku-1"}, "history of 'ann' is str"),
        ({"ann": ["nothing", "at all"]}, "none of the 2 interactions can be used"),
        ({"ann": [1, "b"]}, "several types"),
    ):
        with pytest.raises(DataError, match=message):
            vae.recommend(histories)
    with pytest.raises(DataError, match="the history of one user"):
        vae.explain({"ann": ["sku-1"]})
    with pytest.raises(DataError, match="the history of one user"):
        vae.explain(pd.DataFrame(ROWS))
    with pytest.raises(DataError, match=r"\['usr'\] is none of"):
        vae.recommend(pd.DataFrame(ROWS), columns={"usr": "user"})
    with pytest.raises(DataError, match="1 null value"):
        vae.recommend(pd.DataFrame({"user": ["a", None], "item": ["sku-1", "sku-2"]}))
    with pytest.raises(DataError, match=r"LazyFrame; call collect\(\) first"):
        vae.recommend(pl.DataFrame(ROWS).lazy())
    with pytest.raises(DataError, match="are not in the table"):
        vae.recommend(pa.Table.from_pylist(ROWS), columns={"user": "account"})
    with pytest.raises(CheckpointError, match="manifest"):
        Recommender.load(str(tmp_path / "nowhere"))


def test_a_bundle_is_loaded_from_its_own_folder_too(vae, tmp_path):
    again = Recommender.load(str(tmp_path / "run" / "bundle"))
    assert again.recommend(HISTORIES, 3) == vae.recommend(HISTORIES, 3)


def test_public_names_need_no_ray_and_unknown_ones_are_errors():
    code = (
        "import sys, distrib\n"
        "assert {'ray', 'torch'}.isdisjoint(sys.modules)\n"
        "distrib.Recommender\n"
        "sys.exit(int(bool({'ray', 'deepspeed'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'tests'"):
        _ = distrib.tests
    assert all(callable(getattr(distrib, name)) for name in distrib.__all__ if name[0] != "_")


def test_users_without_a_history_and_frames_of_polars_are_predicted_for(conv):
    history, targets = {"ann": {"sku-3": 5}}, {"ann": ["sku-1"], "bob": ["sku-1"]}
    with pytest.warns(UserWarning, match="1 pair.*bob"):
        found = conv.predict(history, targets)
    assert found["bob"] == [{"item": "sku-1", "score": None, "rating": None}]
    rows = pl.DataFrame({"user": ["ann"], "item": ["sku-3"], "rating": [5.0]})
    pairs = pl.DataFrame({"user": ["ann"], "item": ["sku-1"]})
    assert conv.predict(rows, pairs)["score"].to_list() == [found["ann"][0]["score"]]
    lists = pl.DataFrame({"user": ["ann"], "items": [["sku-3"]], "ratings": [[5.0]]})
    assert conv.recommend(lists, 3).equals(conv.recommend(rows, 3))
