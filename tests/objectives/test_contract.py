"""The battery: what every objective in the union must do."""

import re
from typing import get_args

import pytest
import torch

from distrib.models import (
    AutoRecConfig,
    Conv4RecConfig,
    ElsaConfig,
    GmfConfig,
    Gru4RecConfig,
    MultVaeConfig,
    SasRecConfig,
)
from distrib.models.sequential.config import SequenceConfig
from distrib.objectives import (
    BinaryConfig,
    BprConfig,
    BprMaxConfig,
    CosineConfig,
    GbceConfig,
    ImputedSquaredErrorConfig,
    InverseDualConfig,
    InverseDualRowsConfig,
    InverseGradientConfig,
    InverseGradientRowsConfig,
    LabeledConfig,
    MultinomialConfig,
    ObjectiveConfig,
    PositiveUnlabeledConfig,
    RatingClassesConfig,
    ReweightedConfig,
    SampledNegativesConfig,
    SoftmaxConfig,
    SoftRatingClassesConfig,
    SoftTargetConfig,
    SquaredErrorConfig,
    Top1MaxConfig,
    TruncatedConfig,
)
from distrib.objectives.base import Candidates, Chunks, LossContext
from distrib.objectives.signed_pairs import SamplesUnlabeled
from distrib.parameters import roles_of, with_role
from distrib.rng import CounterRng
from distrib.sequences import with_targets
from tests.objectives.labels import label_folder

WIDTHS = {"hidden_width": 8, "latent_width": 4}
SEQUENCE = {"max_length": 9, "latent_width": 4}
CASES = [
    (BinaryConfig(), MultVaeConfig(**WIDTHS)),
    (CosineConfig(), ElsaConfig(latent_width=4)),
    (MultinomialConfig(), MultVaeConfig(**WIDTHS)),
    (RatingClassesConfig(rating_weight=3.0), Conv4RecConfig(latent_width=4, rating_width=2)),
    (
        RatingClassesConfig(rating_weight=3.0),
        Conv4RecConfig(latent_width=4, rating_width=0, decoder="linear"),
    ),
    (SquaredErrorConfig(), MultVaeConfig(input="ratings", **WIDTHS)),
    (SoftmaxConfig(), SasRecConfig(**SEQUENCE)),
    (SoftmaxConfig(against="sampled", num_sampled=12), SasRecConfig(**SEQUENCE)),
    (SoftmaxConfig(against="batch"), SasRecConfig(**SEQUENCE)),
    (SoftTargetConfig(label={"kind": "uniform"}), SasRecConfig(**SEQUENCE)),
    (
        SoftTargetConfig(label={"kind": "stored", "path": label_folder()}),
        MultVaeConfig(**WIDTHS),
    ),
    (
        SoftRatingClassesConfig(label={"kind": "stored", "path": label_folder()}),
        Conv4RecConfig(latent_width=4, rating_width=2),
    ),
    (
        SoftTargetConfig(label={"kind": "popularity"}, form="coupled"),
        MultVaeConfig(**WIDTHS),
    ),
    (
        ImputedSquaredErrorConfig(label={"kind": "stored", "path": label_folder()}),
        AutoRecConfig(side="users", hidden_width=4),
    ),
    (GbceConfig(), SasRecConfig(**SEQUENCE)),
    (GbceConfig(num_sampled=5, shared=True, calibration=0.75), Gru4RecConfig(**SEQUENCE)),
    (BprMaxConfig(num_sampled=12), Gru4RecConfig(**SEQUENCE)),
    (Top1MaxConfig(num_sampled=12), Gru4RecConfig(**SEQUENCE)),
    (LabeledConfig(), GmfConfig(latent_width=4)),
    (SampledNegativesConfig(), GmfConfig(latent_width=4)),
    (BprConfig(), GmfConfig(latent_width=4)),
    (TruncatedConfig(gradual_steps=6), GmfConfig(latent_width=4)),
    (ReweightedConfig(), GmfConfig(latent_width=4)),
    (PositiveUnlabeledConfig(), GmfConfig(latent_width=4)),
    (InverseDualConfig(), GmfConfig(latent_width=4)),
    (InverseGradientConfig(), GmfConfig(latent_width=4)),
    (
        InverseDualRowsConfig(base=MultinomialConfig(), warmup_steps=1),
        MultVaeConfig(**WIDTHS),
    ),
    (
        InverseDualRowsConfig(base=RatingClassesConfig(), warmup_steps=1, by_class=True),
        Conv4RecConfig(latent_width=4, rating_width=2),
    ),
    (
        InverseGradientRowsConfig(base=BinaryConfig(), warmup_steps=1),
        MultVaeConfig(**WIDTHS),
    ),
    (
        InverseGradientRowsConfig(base=SquaredErrorConfig(), warmup_steps=1),
        MultVaeConfig(input="ratings", **WIDTHS),
    ),
]
WITH_FIXED_WEIGHTS = (
    ReweightedConfig | PositiveUnlabeledConfig | InverseDualConfig | InverseGradientConfig
    | InverseDualRowsConfig | InverseGradientRowsConfig
)  # fmt: skip
"""No gradient flows through their weights, so theirs is not that of the loss."""

OF_BATCHES = TruncatedConfig | PositiveUnlabeledConfig
"""What a pair contributes depends on the other pairs of the batch."""
SAMPLED = [
    (BinaryConfig(num_sampled=12), BinaryConfig(), MultVaeConfig(**WIDTHS)),
    (
        RatingClassesConfig(num_sampled=12),
        RatingClassesConfig(),
        Conv4RecConfig(latent_width=4, rating_width=2),
    ),
]


def name_of(config):
    """The same in every process, wherever it has put the labels."""
    return re.sub(r"path='[^']*'", "path='labels'", repr(config))


every_objective = pytest.mark.parametrize(("objective", "model"), CASES, ids=name_of)


def built(objective, model, small):
    torch.manual_seed(0)
    made = model.build(small.catalog)
    with torch.no_grad():  # far enough from the start that no gradient is small by chance
        for held in made.parameters():
            held.add_(0.1 * torch.randn_like(held))
    return objective.build(small.catalog), made.double()


def context_of(chunk_items=17, keep_bytes=0, step=3, shard=None):
    chunks = Chunks(chunk_items, keep_bytes)
    return LossContext(CounterRng.of(0, 0), step, chunks, shard=shard)


def batch_for(objective, small):
    """Histories; some pairs are unlabeled where the objective takes such."""
    batch = small.batch
    if isinstance(objective, SamplesUnlabeled):
        value_N = batch.value_N.clone()
        value_N[::3] = torch.nan
        return batch._replace(value_N=value_N)
    return batch


def terms_of(objective, model, batch, context):
    """Terms, and their gradient by every parameter, weighted differently for each user."""
    inputs, target = fed(model, batch)
    terms_TB = objective(model, model.encode(inputs), target, context)
    return terms_TB, gradients_of(terms_TB, model)


def fed(model, batch):
    """What a model reads and decodes."""
    if isinstance(model.config, SequenceConfig) if hasattr(model, "config") else False:
        return with_targets(batch, model.config.max_length, every=True)
    return batch, batch


def gradients_of(terms_TB, model):
    weight_TB = torch.linspace(0.5, 2.0, terms_TB.numel()).reshape(terms_TB.shape)
    named = dict(model.named_parameters())
    loss = (terms_TB * weight_TB).sum()
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


def test_every_objective_has_a_case():
    union, *_ = get_args(ObjectiveConfig)
    assert {type(objective) for objective, _ in CASES} == set(get_args(union))


@every_objective
def test_settings_reach_workers_as_they_are(objective, model):
    for config in (objective, model):
        assert type(config).model_validate_json(config.model_dump_json()) == config


@every_objective
def test_every_user_has_a_finite_loss_for_each_term(objective, model, small):
    loss, made = built(objective, model, small)
    batch = batch_for(objective, small)
    terms_TB, _ = terms_of(loss, made, batch, context_of())
    assert terms_TB.shape == (len(loss.terms), fed(made, batch)[1].num_users)
    assert terms_TB.isfinite().all()
    assert isinstance(loss.decodes_pairs, bool)
    assert loss.kl.weight(0) <= loss.kl.weight(10**9) == loss.kl.cap


@every_objective
def test_the_gradient_is_that_of_small_differences(objective, model, small):
    """Against the definition, since what is compared with autograd elsewhere is autograd's own."""
    if isinstance(objective, WITH_FIXED_WEIGHTS):
        pytest.skip("its weights are constants to the gradient")
    loss, made = built(objective, model, small)
    batch, context = batch_for(objective, small).slice(0, 6), context_of()
    _, gradients = terms_of(loss, made, batch, context)
    for name, held in made.named_parameters():
        if name not in gradients:
            continue
        torch.manual_seed(1)
        direction = torch.randn_like(held)
        found = (gradients[name] * direction).sum().item()
        sides = []
        for sign in (1.0, -1.0):
            held.data.add_(sign * 1e-3 * direction)
            inputs, target = fed(made, batch)
            terms_TB = loss(made, made.encode(inputs), target, context).detach().double()
            weight_TB = torch.linspace(0.5, 2.0, terms_TB.numel()).reshape(terms_TB.shape)
            sides.append((terms_TB * weight_TB).sum().item())
            held.data.sub_(sign * 1e-3 * direction)
        # losses are float32: differences of two keep about four digits
        assert found == pytest.approx((sides[0] - sides[1]) / 2e-3, rel=2e-2, abs=2e-1), name


@every_objective
@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])
@pytest.mark.parametrize("chunk_items", [1, 7, 1000])
def test_chunks_of_any_size_give_the_same_loss(objective, model, chunk_items, keep_bytes, small):
    loss, made = built(objective, model, small)
    batch = batch_for(objective, small)
    wanted_TB, wanted = terms_of(loss, made, batch, context_of(50))
    found_TB, found = terms_of(loss, made, batch, context_of(chunk_items, keep_bytes))
    torch.testing.assert_close(found_TB, wanted_TB, rtol=1e-5, atol=1e-5)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@every_objective
def test_users_do_not_depend_on_who_else_is_in_the_batch(objective, model, small):
    loss, made = built(objective, model, small)
    if isinstance(objective, OF_BATCHES) or getattr(objective, "against", "") == "batch":
        pytest.skip("pairs are compared with those of the batch")
    batch = batch_for(objective, small)
    whole_TB, _ = terms_of(loss, made, batch, context_of())
    for user in (0, 7, 36):
        alone_TB, _ = terms_of(loss, made, batch.slice(user, user + 1), context_of())
        rows = fed(made, batch)[1].user_B == user
        torch.testing.assert_close(alone_TB, whole_TB[:, rows], rtol=1e-5, atol=1e-5)


class Shard:
    """One of several ranks that run one after the other: first to be heard, then to hear all."""

    def __init__(self, target, low, high, heard):
        self.target, self.low, self.high = target, low, high
        self.heard, self.calls, self.is_complete = heard, 0, False

    def gather(self, carry):
        parts = self.heard.setdefault(self.calls, [])
        self.calls += 1
        if self.is_complete:
            return list(parts)
        parts.append(tuple(part.detach() for part in carry))
        return [carry]

    def own(self, candidates):
        if candidates is None:
            return None
        is_mine_J = (candidates.item_J >= self.low) & (candidates.item_J < self.high)
        weight_J = candidates.log_weight_J
        return Candidates(
            candidates.item_J[is_mine_J] - self.low,
            None if weight_J is None else weight_J[is_mine_J],
        )


def rank_of(config, made, catalog, low, high):
    """The model of a rank: its tables of the last layer hold the own items only."""
    part = config.build(catalog).double()
    part.load_state_dict(made.state_dict())
    for name, table in roles_of(part).decoder.items():
        setattr(part, name, with_role(torch.nn.Parameter(table[low:high].detach()), table.role))
    return part


WITH_SHARDS = [
    case for case in CASES if not (case[0].spec.needs_tied or case[0].spec.needs_whole_catalog)
]


@pytest.mark.parametrize(("objective", "model"), WITH_SHARDS, ids=repr)
def test_ranks_that_hold_different_items_join_to_the_same_loss(objective, model, small):
    loss, made = built(objective, model, small)
    whole_TB, wanted = terms_of(loss, made, small.batch, context_of())
    users = tuple(part.detach() for part in made.encode(small.batch))
    heard, ranks = {}, []
    for low, high in [(0, 20), (20, 31), (31, 50)]:
        mine = small.batch.keep((small.batch.item_N >= low) & (small.batch.item_N < high))
        shard = Shard(small.batch, low, high, heard)
        mine = mine._replace(item_N=mine.item_N - low)
        rank = rank_of(model, made, small.catalog, low, high)
        loss(rank, users, mine, context_of(shard=shard))
        ranks.append((rank, mine, shard))
    for rank, mine, shard in ranks:
        shard.calls, shard.is_complete = 0, True
        terms_TB = loss(rank, users, mine, context_of(shard=shard))
        torch.testing.assert_close(terms_TB, whole_TB, rtol=1e-5, atol=1e-5)
        gradients = gradients_of(terms_TB, rank)
        for name in roles_of(rank).decoder:
            part = wanted[name][shard.low : shard.high]
            torch.testing.assert_close(gradients[name], part, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(("sampled", "exact", "model"), SAMPLED, ids=repr)
def test_a_sampled_loss_has_the_mean_of_the_exact_one(sampled, exact, model, small):
    loss, made = built(sampled, model, small)
    plain, _ = built(exact, model, small)
    batch = small.users(range(6))
    with torch.no_grad():
        users = made.encode(batch)
        wanted_TB = plain(made, users, batch, context_of())
        draws = torch.stack([loss(made, users, batch, context_of(step=n)) for n in range(300)])
    error_TB = draws.std(0) / 300**0.5
    assert ((draws.mean(0) - wanted_TB).abs() < 4.5 * error_TB + 1e-4).all()
