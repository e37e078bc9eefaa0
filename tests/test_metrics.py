import math

import numpy as np
import pytest
import torch

from distrib.batch import Batch
from distrib.metrics import hit_rate, hits, mrr, ndcg, recall, sums_of, total_variation


def naive(ranked, wanted, n):
    found = [item in wanted for item in ranked[:n] if item >= 0]
    gained = sum(hit / math.log2(rank + 2) for rank, hit in enumerate(found))
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(n, len(wanted))))
    first = found.index(True) + 1 if True in found else math.inf
    return sum(found) / min(n, len(wanted)), gained / ideal, float(any(found)), 1 / first


@pytest.mark.parametrize("n", [1, 3, 10])
def test_ranking_metrics_equal_the_formulas(n):
    rng = np.random.default_rng(1)
    ranked = [rng.permutation(30)[:10].tolist() for _ in range(50)]
    ranked[0][7:] = [-1, -1, -1]  # a user with few candidates
    targets = [rng.choice(30, rng.integers(1, 20), replace=False).tolist() for _ in range(50)]
    target = Batch.from_lists(targets)
    hit = hits(torch.tensor(ranked), target, 30)
    wanted = [naive(r, set(t), n) for r, t in zip(ranked, targets, strict=True)]
    for place, metric in enumerate((recall, ndcg, hit_rate, mrr)):
        found = metric(hit, target.length_B, n).tolist()
        assert found == pytest.approx([values[place] for values in wanted])


def test_a_user_without_targets_does_not_count():
    target = Batch.from_lists([[3], []])
    hit = hits(torch.tensor([[3, 1], [3, 1]]), target, 5)
    for metric in (recall, ndcg, hit_rate, mrr):
        found = sums_of({"x": metric(hit, target.length_B, 2)}).summaries()["x"]
        assert found.num_observations == 1
        assert found.mean == 1.0


def test_sums_merge_like_one_batch_and_give_standard_errors():
    values = torch.rand(101, dtype=torch.float64)
    merged = sums_of({"x": values[:40]}).merged(sums_of({"x": values[40:]}))
    summary = merged.summaries()["x"]
    assert summary.mean == pytest.approx(values.mean().item())
    assert summary.standard_error == pytest.approx(values.std(correction=1).item() / 101**0.5)


def test_squared_errors_become_rmse():
    summary = sums_of({"squared_error": torch.tensor([1.0, 4.0, 4.0])}).summaries()["rmse"]
    assert summary.mean == pytest.approx(3.0**0.5)


def test_total_variation_of_known_distributions():
    p, q = np.array([[0.5, 0.5, 0.0]]), np.array([[0.0, 0.5, 0.5]])
    assert total_variation(p, q).tolist() == [0.5]
