"""Metrics of lists against another library's, and against their definitions."""

import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from distrib.batch import Batch
from distrib.data.feeds.collate import example
from distrib.data.schema import Role
from distrib.errors import DataError
from distrib.evaluation.config import EvaluateConfig
from distrib.evaluation.lists import RANKING
from distrib.evaluation.measured import joined
from distrib.evaluation.protocol import measure
from distrib.evaluation.ratings import CONFUSION, RELIABILITY, calibration_error, rating_tables
from distrib.metrics import (
    gini,
    hits,
    weighted_recall,
)
from distrib.models import Conv4RecConfig, PopularityConfig
from distrib.scoring.results import PairPredictions
from tests.evaluation.test_protocol import rows_of, scorer_of


def lists(seed, num_users=40, num_items=60, length=20):
    rng = np.random.default_rng(seed)
    item_BK = np.stack([rng.permutation(num_items)[:length] for _ in range(num_users)])
    wanted = [
        rng.choice(num_items, rng.integers(1, 30), replace=False).tolist() for _ in range(num_users)
    ]
    return torch.from_numpy(item_BK), wanted


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cutoff", [1, 5, 20])
def test_metrics_are_those_of_ranx(seed, cutoff):
    """Recall, MAP and NDCG differ where there are more targets than places: ours is of the best
    list that there can be, as Liang et al. define it."""
    item_BK, wanted = lists(seed)
    batch = Batch.from_lists(wanted)
    hit_BK = hits(item_BK, batch, 60)
    truth = {f"u{u:02}": dict.fromkeys(map(str, items), 1) for u, items in enumerate(wanted)}
    ranked = enumerate(item_BK.tolist())
    run = {f"u{u:02}": {str(i): 1.0 / (k + 1) for k, i in enumerate(row)} for u, row in ranked}
    names = [f"{name}@{cutoff}" for name in RANKING]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ranx import Qrels, Run, evaluate

        found = evaluate(Qrels(truth), Run(run), names, return_mean=False)
    length_B = batch.length_B
    few_B = length_B.clamp(max=cutoff).double() / length_B
    for name, ours in RANKING.items():
        ours_B = ours(hit_BK, length_B, cutoff)
        if name in ("recall", "map"):
            ours_B = ours_B * few_B
        theirs = found[f"{name}@{cutoff}"].tolist()
        assert ours_B.tolist() == pytest.approx(theirs, abs=1e-9), name


def test_weights_of_one_give_recall_and_those_of_a_part_its_recall():
    item_BK, wanted = lists(7)
    batch = Batch.from_lists(wanted)
    hit_BK = hits(item_BK, batch, 60)
    ones = torch.ones(60, dtype=torch.float64)
    found_B = weighted_recall(hit_BK, item_BK, batch, ones, 20)
    assert found_B.tolist() == [
        len({*item_BK[u].tolist()} & {*wanted[u]}) / len(wanted[u]) for u in range(len(wanted))
    ]
    is_low = torch.zeros(60, dtype=torch.float64)
    is_low[:10] = 1.0
    for u, value in enumerate(weighted_recall(hit_BK, item_BK, batch, is_low, 5).tolist()):
        low = {item for item in wanted[u] if item < 10}
        expected = len({*item_BK[u, :5].tolist()} & low) / len(low) if low else np.nan
        assert value == pytest.approx(expected, nan_ok=True)


def test_gini_is_half_the_mean_difference_of_all_pairs():
    rng = np.random.default_rng(1)
    for _ in range(5):
        count_I = rng.integers(0, 9, 30).astype(float)
        pairs = np.abs(count_I[:, None] - count_I).mean()
        assert gini(count_I) == pytest.approx(pairs / (2 * count_I.mean()))
    assert gini(np.ones(9)) == 0.0
    assert gini(np.zeros(9)) == 0.0


@pytest.fixture
def asked(small):
    rows = rows_of(small)
    return example(rows, np.arange(rows.num_users), Role.TEST_TARGET)


def test_lists_are_measured_apart_from_hits(small, asked, tmp_path):
    path = tmp_path / "groups.parquet"
    pq.write_table(pa.table({"item": list(range(50)), "group": ["even", "odd"] * 25}), path)
    config = EvaluateConfig(
        recall_at=(20,),
        catalog_at=(5,),
        by_popularity=True,
        propensity_power=0.5,
        item_groups=str(path),
    )
    scorer = scorer_of(PopularityConfig(), small)
    found = measure(scorer, asked, config)
    item_BK = scorer.recommend(asked.source, asked.seen, 5).item_BK.numpy()
    count_I = small.catalog.train_count_IL.sum(1)
    shown = np.bincount(item_BK.ravel(), minlength=50)
    means = found.means()
    assert means["coverage@5"] == (shown > 0).mean()
    assert means["gini@5"] == pytest.approx(gini(shown.astype(float)))
    assert found.by_user["popularity@5"] == pytest.approx(count_I[item_BK].mean(1))
    rarity = np.log2(37 / np.clip(count_I, 1, 37))
    assert found.by_user["novelty@5"] == pytest.approx(rarity[item_BK].mean(1))
    odd_B = (item_BK % 2).sum(1)
    assert found.by_user["diversity@5"] == pytest.approx(odd_B * (5 - odd_B) / 10)
    assert means["head_recall@20"] > means["recall@20"] > means["tail_recall@20"]
    assert means["ips_recall@20"] == means["recall@20"]  # users have one target each
    is_even_N = asked.target.item_N.numpy() % 2 == 0  # users have one target each
    hits_B = found.by_user["recall@20"]
    assert means["recall@20 of even"] == pytest.approx(hits_B[is_even_N].mean())
    assert means["recall@20 of odd"] == pytest.approx(hits_B[~is_even_N].mean())
    twice = joined([found, found]).means()
    assert twice["coverage@5"] == means["coverage@5"]
    assert twice["gini@5"] == pytest.approx(means["gini@5"])


def test_a_file_of_groups_without_its_columns_is_refused(small, asked, tmp_path):
    path = tmp_path / "wrong.parquet"
    pq.write_table(pa.table({"item": [1], "kind": ["a"]}), path)
    config = EvaluateConfig(catalog_at=(5,), item_groups=str(path))
    with pytest.raises(DataError, match="no column"):
        measure(scorer_of(PopularityConfig(), small), asked, config)


def test_the_effective_rank_is_that_of_the_centered_embeddings(small, asked):
    config = Conv4RecConfig(latent_width=8)
    scorer = scorer_of(config, small)
    found = measure(scorer, asked, EvaluateConfig(effective_rank=True))
    vector_BZ = scorer.embed(asked.source).double().numpy()
    singular_Z = np.linalg.svd(vector_BZ - vector_BZ.mean(0), compute_uv=False)
    share_Z = singular_Z / singular_Z.sum()
    expected = np.exp(-(share_Z * np.log(np.maximum(share_Z, 1e-300))).sum())
    assert found.means()["effective_rank"] == pytest.approx(expected, rel=1e-5)
    assert joined([found, found]).means()["effective_rank"] == pytest.approx(expected, rel=1e-5)
    popular = measure(
        scorer_of(PopularityConfig(), small), asked, EvaluateConfig(effective_rank=True)
    )
    assert "effective_rank" not in popular.means()


def test_tables_of_ratings_count_pairs_and_probabilities():
    levels = (1.0, 2.0, 4.0)
    share = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    predicted = PairPredictions(torch.tensor([1.3, 3.4]), None, None, share)
    tables = rating_tables(predicted, torch.tensor([1.0, 2.0]), levels)
    assert tables[CONFUSION].tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    bins = tables[RELIABILITY]
    assert bins[:, 0].sum() == 6
    assert bins[1].tolist() == pytest.approx([3, 0.3, 1])  # 0.1 three times, one of them true
    assert bins[8].tolist() == pytest.approx([1, 0.8, 0])
    expected = (abs(0.3 - 1) + 0.2 + abs(0.7 - 1) + 0.8) / 6
    assert calibration_error(bins) == pytest.approx(expected)


def test_a_model_of_rating_levels_has_its_tables_measured(small, asked):
    found = measure(scorer_of(Conv4RecConfig(latent_width=8), small), asked, EvaluateConfig())
    assert found.tables[CONFUSION].sum() == len(asked.target.item_N)
    assert found.tables[RELIABILITY][:, 0].sum() == 5 * len(asked.target.item_N)
    assert 0 <= found.means()["rating_calibration_error"] <= 1
    sums = found.by_user["squared_error sum"]
    assert np.sqrt(sums.sum() / found.by_user["pairs"].sum()) == pytest.approx(
        found.means()["rmse"]
    )
