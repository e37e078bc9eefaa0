"""Soft labels of Conv4Rec against the plain sum over all pairs."""

import pytest
import torch
import torch.nn.functional as F

from distrib.batch import Batch, level_index
from distrib.models import Conv4RecConfig
from distrib.objectives import RatingClassesConfig, SoftRatingClassesConfig
from distrib.objectives.base import Chunks, LossContext
from distrib.objectives.label_config import StoredLabel
from distrib.rng import CounterRng
from distrib.soft_labels import SoftLabels
from tests.conftest import LEVELS
from tests.objectives.test_soft_target import stored

ITEMS = [[3, 8], [0, 22, 7], [11]]
LABELS = [{3: 0.5, 9: 0.3, 40: 0.2}, {}, {1: 0.9, 11: 0.1}]
MODELS = [
    Conv4RecConfig(latent_width=4, rating_width=2),
    Conv4RecConfig(latent_width=4, rating_width=0, decoder="linear"),
]


def parts(model_config, small, monkeypatch, **settings):
    monkeypatch.setattr(SoftLabels, "open", lambda _: stored(LABELS))
    torch.manual_seed(0)
    model = model_config.build(small.catalog).double()
    with torch.no_grad():
        for held in model.parameters():
            held.add_(0.2 * torch.randn_like(held))
    values = [[LEVELS[(n + place) % 5] for n in range(len(row))] for place, row in enumerate(ITEMS)]
    target = Batch.from_lists(ITEMS, values, users=range(3))
    users = model.encode(target)
    config = SoftRatingClassesConfig(label=StoredLabel(path="labels"), **settings)
    context = LossContext(CounterRng.of(0, 0), 0, Chunks(7))
    found = config.build(small.catalog)(model, users, target, context)
    return model, users, target, context, found


@pytest.mark.parametrize("model_config", MODELS, ids=repr)
def test_the_loss_and_its_gradient_are_those_of_all_pairs(model_config, small, monkeypatch):
    settings = {"label_share": 0.4, "target_weight": 0.7}
    made = parts(model_config, small, monkeypatch, **settings)
    model, users, target, _, found_TB = made
    output = model.decode(users, slice(None))
    odds_BI = output[..., 1:].logsumexp(-1) - output[..., 0]
    wanted = []
    for row, (own, label) in enumerate(zip(ITEMS, LABELS, strict=True)):
        soft_I, weight_I = torch.zeros(50).double(), torch.full((50,), 0.6).double()
        for item, weight in label.items():
            soft_I[item] = min(1.0, 0.4 * len(own) * weight)
        rest = sum(weight for item, weight in label.items() if item not in own)
        soft_I[own], weight_I[own] = 1 - 0.4 * rest, 1.4
        total = (weight_I * (F.softplus(odds_BI[row]) - soft_I * odds_BI[row])).sum()
        level = level_index(target.slice(row, row + 1).value_N, LEVELS)
        wanted.append(total + F.cross_entropy(output[row, own, 1:], level, reduction="sum"))
    wanted_B = torch.stack(wanted)
    torch.testing.assert_close(found_TB.sum(0).double(), wanted_B, rtol=1e-5, atol=1e-5)
    grads = [
        torch.autograd.grad(loss.sum(), list(model.parameters()), retain_graph=True)
        for loss in (found_TB, wanted_B)
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_without_label_share_at_equal_weights_it_is_the_base(small, monkeypatch):
    settings = {"label_share": 0.0, "target_weight": 0.5}
    made = parts(MODELS[0], small, monkeypatch, **settings)
    model, users, target, context, found_TB = made
    base = RatingClassesConfig().build(small.catalog)(model, users, target, context)
    torch.testing.assert_close(found_TB.sum(0), base.sum(0))
