"""The blocked loss equals the plain one: decode everything, take the textbook loss, autograd."""

import pytest
import torch
import torch.nn.functional as F

from distrib.batch import Batch, cells_by_block, level_index
from distrib.models.conv4rec import Conv4RecConfig
from distrib.models.mult_vae import MultVaeConfig
from distrib.noise import Noise
from distrib.objectives import MultinomialConfig, RatingClassesConfig
from distrib.train.blocked import blocked_terms


def plain_rating_classes(output_BIC, target, levels, rating_weight):
    outcome_BI = torch.zeros(output_BIC.shape[:2], dtype=torch.int64)
    outcome_BI[target.row_N, target.item_N] = level_index(target.value_N, levels) + 1
    log_p_BIC = output_BIC.log_softmax(-1)
    met_BI = output_BIC[..., 1:].logsumexp(-1) - output_BIC.logsumexp(-1)
    interaction_BI = -torch.where(outcome_BI > 0, met_BI, log_p_BIC[..., 0])
    whole_BI = -log_p_BIC.gather(-1, outcome_BI[..., None])[..., 0]
    rating_BI = torch.where(outcome_BI > 0, whole_BI - interaction_BI, 0.0)
    return torch.stack([interaction_BI.sum(1), rating_weight * rating_BI.sum(1)])


def plain_multinomial(output_BI, target):
    count_BI = torch.zeros_like(output_BI).index_put(
        (target.row_N, target.item_N), torch.ones(()), accumulate=True
    )
    return -(count_BI * F.log_softmax(output_BI, dim=-1)).sum(1)[None]


CASES = {
    "conv4rec-linear": (Conv4RecConfig(latent_width=8), RatingClassesConfig(rating_weight=3.0)),
    "conv4rec-mlp": (Conv4RecConfig(latent_width=8, decoder="mlp"), RatingClassesConfig()),
    "mult_vae": (MultVaeConfig(hidden_width=16, latent_width=8), MultinomialConfig()),
}


def plain_terms(model, objective_config, state, target):
    output = model.decode(state, slice(None)).float()
    if objective_config.name == "multinomial":
        return plain_multinomial(output, target)
    return plain_rating_classes(output, target, model.levels, objective_config.rating_weight)


def gradients(terms_TB, model):
    weight_TB = torch.linspace(0.5, 2.0, terms_TB.numel()).reshape(terms_TB.shape)
    found = torch.autograd.grad((terms_TB * weight_TB).sum(), list(model.parameters()))
    return dict(zip(dict(model.named_parameters()), found, strict=True))


@pytest.mark.parametrize("block_items", [1, 7, 17, 50, 1000])
@pytest.mark.parametrize("case", CASES)
def test_blocked_equals_plain_forward_and_backward(case, block_items, small):
    config, objective_config = CASES[case]
    model = config.build(small.catalogue)
    objective = objective_config.build(small.catalogue.levels)
    batch, noise = small.batch, Noise.of(0, 0)
    blocked = blocked_terms(model, objective, model.encode(batch, noise), batch, block_items)
    plain = plain_terms(model, objective_config, model.encode(batch, noise), batch)
    torch.testing.assert_close(blocked, plain, rtol=1e-4, atol=1e-4)
    wanted = gradients(plain, model)
    for name, gradient in gradients(blocked, model).items():
        # float32 sums in another order
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-4, msg=name)


def test_the_objectives_terms_add_up_to_the_plain_cross_entropy(small):
    model = Conv4RecConfig(latent_width=8).build(small.catalogue).double()
    batch = small.batch
    objective = RatingClassesConfig(rating_weight=1.0).build(small.catalogue.levels)
    output = model.decode(model.encode(batch), slice(None))
    outcome = torch.zeros(37, 50, dtype=torch.int64)
    outcome[batch.row_N, batch.item_N] = level_index(batch.value_N, model.levels) + 1
    plain = F.cross_entropy(output.permute(0, 2, 1), outcome, reduction="none").sum(1)
    blocked = blocked_terms(model, objective, model.encode(batch), batch, 50).sum(0)
    torch.testing.assert_close(blocked.double(), plain, rtol=1e-5, atol=1e-5)


def test_a_near_certain_none_keeps_its_loss():
    """-log p(none) of 4e-7 nats is 0 in float32 when taken through a log-softmax."""
    output = torch.tensor([[[16.0, -2.0, -2.0, -2.0, -2.0, -2.0]]])
    objective = RatingClassesConfig().build((1.0, 2.0, 3.0, 4.0, 5.0))
    nothing = next(cells_by_block(Batch.from_lists([[]]), [(0, 1)]))
    loss = objective.accumulate(None, output, nothing)[0]
    exact = torch.log1p(5 * torch.exp(torch.tensor(-18.0, dtype=torch.float64)))
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    assert -output.log_softmax(-1)[0, 0, 0].item() == 0.0


def test_users_without_targets_and_batches_without_users_give_zeros(small):
    for config, objective_config in CASES.values():
        model = config.build(small.catalogue)
        objective = objective_config.build(small.catalogue.levels)
        nobody = Batch.from_lists([])
        terms = blocked_terms(model, objective, model.encode(nobody), nobody, 17)
        assert terms.shape[1] == 0
        terms.sum().backward()
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())
