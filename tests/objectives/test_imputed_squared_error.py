"""The squared error with imputed ratings against a plain sum over pairs."""

import pytest
import torch

from distrib.batch import Batch
from distrib.errors import DataError
from distrib.models import AutoRecConfig
from distrib.objectives import ImputedSquaredErrorConfig, SquaredErrorConfig
from distrib.objectives import imputed_squared_error as module
from distrib.objectives.base import Chunks, LossContext
from distrib.rng import CounterRng
from tests.objectives.labels import label_folder, stored_table

ITEMS, RATINGS = [[3, 8], [0, 22, 7], [11]], [[4.0, 1.0], [5.0, 2.0, 3.0], [2.0]]
LABELS = [{3: (0.5, 4.0), 9: (0.3, 2.5), 40: (0.2, 3.5)}, {}, {1: (0.9, 4.5), 11: (0.1, 2.0)}]


def parts(small, monkeypatch, **settings):
    monkeypatch.setattr(module, "label_table", lambda *_: stored_table(LABELS))
    torch.manual_seed(0)
    model = AutoRecConfig(side="users", hidden_width=4).build(small.catalog).double()
    target = Batch.from_lists(ITEMS, RATINGS, users=range(3))
    users = model.encode(target)
    config = ImputedSquaredErrorConfig(label={"kind": "stored", "path": "labels"}, **settings)
    context = LossContext(CounterRng.of(0, 0), 0, Chunks(7))
    return model, users, target, context, config.build(small.catalog)


def test_the_terms_are_those_of_all_pairs(small, monkeypatch):
    settings = {"label_share": 0.8, "target_weight": 0.7}
    model, users, target, context, objective = parts(small, monkeypatch, **settings)
    score_BI = model.decode(users, slice(None))
    wanted = torch.zeros(2, 3, dtype=torch.float64)
    for row, (items, ratings, label) in enumerate(zip(ITEMS, RATINGS, LABELS, strict=True)):
        for item, rating in zip(items, ratings, strict=True):
            wanted[0, row] += 1.4 * (score_BI[row, item] - rating) ** 2
        for item, (weight, rating) in label.items():
            if item not in items:
                share = min(1.0, 0.8 * len(items) * weight)
                wanted[1, row] += 0.6 * share * (score_BI[row, item] - rating) ** 2
    found = objective(model, users, target, context)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_without_label_share_at_equal_weights_it_is_the_base(small, monkeypatch):
    settings = {"label_share": 0.0, "target_weight": 0.5}
    model, users, target, context, objective = parts(small, monkeypatch, **settings)
    found = objective(model, users, target, context)
    base = SquaredErrorConfig().build(small.catalog)(model, users, target, context)
    torch.testing.assert_close(found.sum(0), base.sum(0).to(found.dtype))


def test_labels_without_ratings_are_refused_by_name(small, tmp_path):
    labels = {"kind": "stored", "path": label_folder(ratings=False)}
    with pytest.raises(DataError, match=r"no column\(s\) \['ratings'\]"):
        ImputedSquaredErrorConfig(label=labels).build(small.catalog)
