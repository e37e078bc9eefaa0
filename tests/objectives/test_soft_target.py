"""The loss with soft labels against its plain form, golden numbers, and corners of its dials."""

import pyarrow as pa
import pytest
import torch
from torch import nn

from distrib.batch import Batch
from distrib.errors import DataError
from distrib.objectives import MultinomialConfig, SoftmaxConfig, SoftTargetConfig
from distrib.objectives.base import Chunks, LossContext
from distrib.rng import CounterRng
from distrib.soft_labels import SoftLabels
from distrib.vocabulary import Catalog

ITEMS = 23
TARGETS = [[3], [0, 22, 7], [11, 4], [5], [9]]
LABELS = [
    {3: 0.6, 8: 0.3, 22: 0.1},
    {0: 0.4, 7: 0.2, 9: 0.1, 10: 0.3},  # without mass on one of the targets
    {11: 1.0},  # no other item
    {},  # no label
    {1: 0.7, 2: 0.3},  # no mass on the target
]
UNIFORM, POPULARITY = {"kind": "uniform"}, {"kind": "popularity", "power": 0.5}
KINDS = {"uniform": UNIFORM, "popularity": POPULARITY, "sparse": None}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_form = pytest.mark.parametrize("form", ["decoupled", "coupled"])


class Scores(nn.Module):
    """Decodes given scores: the state of row b is the b-th unit vector."""

    def __init__(self, score_BI):
        super().__init__()
        self.score_IB = nn.Parameter(score_BI.T.clone())

    def item_tables(self):
        return (self.score_IB,)

    def decode_rows(self, users, rows):
        return users[0] @ rows[0].T

    def score_pairs(self, users, pairs):
        return (users[0][pairs.row_N] * self.score_IB[pairs.item_N]).sum(1)


def stored(labels):
    rows = [
        {"number": n, "items": list(row), "weights": list(row.values())}
        for n, row in reversed([*enumerate(labels)])
    ]
    types = {"items": pa.list_(pa.int32()), "weights": pa.list_(pa.float32())}
    schema = pa.schema({"number": pa.int64(), **types})
    return SoftLabels.from_table(pa.Table.from_pylist(rows, schema=schema))


def counts():
    return torch.arange(1, ITEMS + 1)[:, None].numpy()


def terms(config, scores, targets, labels=None, chunk_items=5, keep_bytes=0):
    """Terms and the gradient of their weighted sum, by our way."""
    catalog = Catalog(len(scores[0]), (1.0,), counts()[: len(scores[0])], 9)
    if labels is None:
        objective = config.build(catalog)
    else:  # labels in a folder are read in their own test
        objective = config.model_copy(update={"label": UNIFORM_LABEL}).build(catalog)
        objective.prior_I, objective.labels = None, stored(labels)
    model = Scores(torch.as_tensor(scores))
    users = (torch.eye(len(scores), dtype=model.score_IB.dtype),)
    target = Batch.from_lists(targets, users=range(len(targets)))
    context = LossContext(CounterRng.of(0, 0), 0, Chunks(chunk_items, keep_bytes))
    found_TB = objective(model, users, target, context)
    weight_TB = torch.arange(1.0, found_TB.numel() + 1).view_as(found_TB)
    (found_TB * weight_TB).sum().backward()
    return found_TB.detach(), model.score_IB.grad.T


UNIFORM_LABEL = SoftTargetConfig(label=UNIFORM).label


def config_of(kind, **settings):
    return SoftTargetConfig(label=KINDS[kind] or UNIFORM, **settings)


def label_rows(kind):
    if kind == "sparse":
        return [torch.tensor([row.get(i, 0.0) for i in range(ITEMS)]).double() for row in LABELS]
    power = {"uniform": 0.0, "popularity": 0.5}[kind]
    mass_I = torch.from_numpy(counts()[:, 0]).double() ** power
    return [mass_I / mass_I.sum()] * len(TARGETS)


def plain(kind, config, score_BI):
    """The two terms as the page of the source writes them, a row at a time."""
    found = []
    l1, l2 = config.label_share, config.split[0]
    for score_I, own, z_I in zip(score_BI, TARGETS, label_rows(kind), strict=True):
        n, log_p_I = len(own), score_I.log_softmax(0)
        share_I = torch.zeros(ITEMS).double()
        share_I[own] = 1 / n
        if not z_I.any():
            z_I, l1_row = share_I, 0.0
        else:
            l1_row = l1
        if config.form == "coupled":
            first = -n * (1 - l1_row) * (share_I * log_p_I).sum()
            found.append([first, -n * l1_row * (z_I * log_p_I).sum()])
            continue
        is_own_I = share_I > 0
        p_own, z_own = log_p_I[is_own_I].exp().sum(), z_I[is_own_I].sum()
        c = 1 - l1_row * (1 - z_own)
        first = n * l2 * (-c * p_own.log() - (1 - c) * (1 - p_own).log())
        first -= l2 * c * (log_p_I[is_own_I] - p_own.log()).sum()
        second = torch.zeros(()).double()
        if 1 - z_own > 1e-9:
            z_rest_I = z_I[~is_own_I] / (1 - z_own)
            p_rest_I = log_p_I[~is_own_I].exp() / (1 - p_own)
            is_in_I = z_rest_I > 0
            z_rest_I, p_rest_I = z_rest_I[is_in_I], p_rest_I[is_in_I]
            second = (z_rest_I * (z_rest_I / p_rest_I).log()).sum()
        found.append([first, n * (1 - l2) * second])
    return torch.stack([torch.stack(row) for row in found]).T


@every_form
@every_kind
@pytest.mark.parametrize("keep_bytes", [0, 10**9])
def test_terms_and_gradient_are_those_of_the_plain_form(kind, form, keep_bytes):
    torch.manual_seed(0)
    score_BI = 3 * torch.randn(len(TARGETS), ITEMS, dtype=torch.float64)
    weight = {} if form == "coupled" else {"target_weight": 0.6}
    config = config_of(kind, form=form, label_share=0.4, **weight)
    labels = LABELS if kind == "sparse" else None
    found_TB, gradient_BI = terms(config, score_BI, TARGETS, labels, keep_bytes=keep_bytes)
    score_BI.requires_grad_()
    wanted_TB = plain(kind, config, score_BI)
    torch.testing.assert_close(found_TB.double(), wanted_TB, rtol=1e-5, atol=1e-5)
    weight_TB = torch.arange(1.0, wanted_TB.numel() + 1).view_as(wanted_TB)
    (wanted_TB * weight_TB).sum().backward()
    torch.testing.assert_close(gradient_BI, score_BI.grad, rtol=1e-4, atol=1e-5)


def test_golden_numbers():
    config = config_of("sparse", label_share=0.3, target_weight=0.7)
    scores = [[2.0, 1.0, 0.0, -1.0]]
    label = [{0: 0.6, 1: 0.3, 2: 0.1}]
    found_TB, _ = terms(config, scores, [[0]], label, chunk_items=3)
    assert found_TB[:, 0].tolist() == pytest.approx([0.7 * 0.511277, 0.3 * 0.095271], abs=2e-6)
    assert float(found_TB.sum()) == pytest.approx(0.386475, abs=1e-6)
    model = Scores(torch.tensor(scores))
    users, target = (torch.eye(1),), Batch.from_lists([[0]], users=[0])
    objective = config.build(Catalog(4, (1.0,), counts()[:4], 1))
    objective.prior_I, objective.labels = None, stored(label)
    context = LossContext(CounterRng.of(0, 0), 0, Chunks(3))
    objective(model, users, target, context).sum().backward()
    wanted = [-0.165260, 0.084510, 0.038862, 0.041888]
    assert model.score_IB.grad[:, 0].tolist() == pytest.approx(wanted, abs=2e-6)


@every_kind
def test_the_corner_of_the_dials_is_the_cross_entropy(kind):
    torch.manual_seed(1)
    score_BI = torch.randn(len(TARGETS), ITEMS)
    labels = LABELS if kind == "sparse" else None
    config = config_of(kind, label_share=0.0, target_weight=1.0)
    found_TB, _ = terms(config, score_BI, TARGETS, labels)
    wanted_TB, _ = terms(MultinomialConfig(kl_weight=0.0), score_BI, TARGETS)
    torch.testing.assert_close(found_TB.sum(0), wanted_TB[0])
    assert not found_TB[1].any()
    alone = [row[:1] for row in TARGETS]
    single_TB, _ = terms(config, score_BI, alone, labels)
    softmax_TB, _ = terms(SoftmaxConfig(), score_BI, alone)
    torch.testing.assert_close(single_TB[0], softmax_TB[0])


def test_a_coupled_label_is_on_a_curve_of_the_dials():
    """With l1 = l and l2 = 1 / (1 + l (1 - z_t)), up to a factor and a constant."""
    torch.manual_seed(2)
    target, label, share = [[3]], LABELS[:1], 0.4
    rest = 1 - label[0][3]
    weight = 1 / (1 + share * rest)
    coupled = config_of("sparse", form="coupled", label_share=share)
    apart = config_of("sparse", label_share=share, target_weight=weight)
    differences = []
    for _ in range(3):
        score_BI = torch.randn(1, ITEMS)
        one, other = (
            terms(config, score_BI, target, label)[0].sum() for config in (coupled, apart)
        )
        differences.append(float(one - other / weight))
    assert max(differences) - min(differences) < 1e-5


def test_settings_without_effect_and_missing_labels_are_refused(tmp_path):
    with pytest.raises(ValueError, match="target_weight has no effect with form = 'coupled'"):
        SoftTargetConfig(label=UNIFORM, form="coupled", target_weight=0.5)
    missing = SoftTargetConfig(label={"kind": "stored", "path": str(tmp_path)})
    with pytest.raises(DataError, match="so no complete soft labels; run distrib soften"):
        missing.build(Catalog(ITEMS, (1.0,), counts(), 9))


def test_users_outside_of_the_labels_have_none():
    found = stored(LABELS).of(torch.tensor([4, -1, 0, 3, 77]))
    assert found.length_B.tolist() == [2, 0, 3, 0, 0]
    assert found.item_N.tolist() == [1, 2, 3, 8, 22]
    assert found.user_B.tolist() == [4, -1, 0, 3, 77]
