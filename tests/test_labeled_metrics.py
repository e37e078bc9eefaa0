"""Metrics on labeled pairs, against scikit-learn and plain loops."""

import numpy as np
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from distrib.labeled_metrics import GAUC, MRR, NDCG, area_under_curve, metrics_by_user


def drawn(seed, num_scores):
    """Users with some labeled pairs each; few different scores make ties."""
    rng = np.random.default_rng(seed)
    row_N = np.sort(rng.integers(0, 40, size=600))
    row_N = row_N[rng.permutation(600)]  # pairs of a user need not be together
    return rng.integers(0, num_scores, 600).astype(np.float32), rng.random(600) < 0.7, row_N


@pytest.mark.parametrize("num_scores", [3, 20, 1 << 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_metrics_equal_those_of_scikit_learn(seed, num_scores):
    score_N, is_like_N, row_N = drawn(seed, num_scores)
    area = area_under_curve(score_N, is_like_N)
    assert area.mean == pytest.approx(roc_auc_score(is_like_N, score_N), abs=1e-12)
    found = metrics_by_user(score_N, is_like_N, row_N, 45)
    for user in range(45):
        mine = row_N == user
        if len({*is_like_N[mine]}) < 2:
            assert all(np.isnan(value_B[user]) for value_B in found.values())
            continue
        labels, scores = is_like_N[mine], score_N[mine]
        assert found[GAUC][user] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        wanted = ndcg_score([labels], [scores], k=10)  # averages over the orders of ties
        assert found[NDCG][user] == pytest.approx(wanted, abs=1e-9)


def test_the_reciprocal_rank_is_that_of_every_like():
    score_N = np.array([4.0, 3.0, 2.0, 1.0], dtype=np.float32)
    found = metrics_by_user(score_N, np.array([1, 0, 1, 0], bool), np.zeros(4, np.int64), 1)
    assert found[MRR][0] == pytest.approx((1 + 1 / 3) / 2)
    tied = metrics_by_user(0 * score_N, np.array([1, 0, 1, 0], bool), np.zeros(4, np.int64), 1)
    assert tied[MRR][0] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_the_error_of_the_area_is_that_of_resampling():
    rng = np.random.default_rng(0)
    is_like_N = rng.random(2000) < 0.8
    score_N = (rng.normal(size=2000) + is_like_N).astype(np.float32)
    area = area_under_curve(score_N, is_like_N)
    resampled = []
    for _ in range(300):
        chosen = rng.integers(0, 2000, 2000)
        resampled.append(area_under_curve(score_N[chosen], is_like_N[chosen]).mean)
    assert area.standard_error == pytest.approx(np.std(resampled), rel=0.15)


def test_one_label_has_no_area():
    assert area_under_curve(np.ones(3, np.float32), np.ones(3, bool)) is None
    found = metrics_by_user(np.ones(0, np.float32), np.ones(0, bool), np.zeros(0, np.int64), 2)
    assert all(np.isnan(value_B).all() and len(value_B) == 2 for value_B in found.values())
