"""The chunked loss equals the plain one: decode everything, textbook loss, autograd."""

import pytest
import torch
import torch.nn.functional as F

from distrib.batch import Batch, entries_by_chunk, level_index
from distrib.models.autoencoders.conv4rec import Conv4RecConfig
from distrib.models.autoencoders.mult_vae import MultVaeConfig
from distrib.objectives import (
    BinaryConfig,
    MultinomialConfig,
    RatingClassesConfig,
    SquaredErrorConfig,
)
from distrib.objectives.base import Chunks, LossContext
from distrib.objectives.chunked import ChunkDecoder, chunked_terms
from distrib.rng import CounterRng
from distrib.training.step import TrainStep, total
from tests.conftest import Small


def context(chunk_items, keep_bytes=0, step=0):
    return LossContext(CounterRng.of(0, 0), step, Chunks(chunk_items, keep_bytes))


def whole_output_terms(model, objective, users, batch, chunk_items=17):
    """The loss by chunks of the whole output, also where a model decodes its parts alone."""
    return chunked_terms(ChunkDecoder.of(model), objective, users, batch, context(chunk_items))


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
    "conv4rec": (Conv4RecConfig(latent_width=8, rating_width=4), RatingClassesConfig()),
    "conv4rec-linear": (
        Conv4RecConfig(latent_width=8, decoder="linear"),
        RatingClassesConfig(rating_weight=3.0),
    ),
    "conv4rec-mlp": (
        Conv4RecConfig(latent_width=8, decoder="mlp"),
        RatingClassesConfig(),
    ),
    "mult_vae": (MultVaeConfig(hidden_width=16, latent_width=8), MultinomialConfig()),
    "ratings": (MultVaeConfig(hidden_width=16, latent_width=8), SquaredErrorConfig()),
}


def plain_terms(model, objective_config, state, target):
    output = model.decode(state, slice(None)).float()
    if objective_config.name == "squared_error":
        error_N = output[target.row_N, target.item_N] - target.value_N
        return torch.zeros(len(output)).index_add(0, target.row_N, error_N**2)[None]
    if objective_config.name == "multinomial":
        return plain_multinomial(output, target)
    return plain_rating_classes(output, target, model.levels, objective_config.rating_weight)


def gradients(terms_TB, model):
    weight_TB = torch.linspace(0.5, 2.0, terms_TB.numel()).reshape(terms_TB.shape)
    found = torch.autograd.grad((terms_TB * weight_TB).sum(), list(model.parameters()))
    return dict(zip(dict(model.named_parameters()), found, strict=True))


@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])
@pytest.mark.parametrize("chunk_items", [1, 7, 17, 50, 1000])
@pytest.mark.parametrize("case", CASES)
def test_blocked_equals_plain_forward_and_backward(case, chunk_items, keep_bytes, small):
    config, objective_config = CASES[case]
    model = config.build(small.catalog)
    objective = objective_config.build(small.catalog)
    batch, noise = small.batch, CounterRng.of(0, 0)
    chunks = context(chunk_items, keep_bytes)
    blocked = objective(model, model.encode(batch, noise), batch, chunks)
    plain = plain_terms(model, objective_config, model.encode(batch, noise), batch)
    torch.testing.assert_close(blocked, plain, rtol=1e-4, atol=1e-4)
    wanted = gradients(plain, model)
    for name, gradient in gradients(blocked, model).items():
        # float32 sums in a different order
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-4, msg=name)


def test_the_objectives_terms_add_up_to_the_plain_cross_entropy(small):
    model = Conv4RecConfig(latent_width=8, rating_width=4).build(small.catalog).double()
    batch = small.batch
    objective = RatingClassesConfig(rating_weight=1.0).build(small.catalog)
    output = model.decode(model.encode(batch), slice(None))
    outcome = torch.zeros(37, 50, dtype=torch.int64)
    outcome[batch.row_N, batch.item_N] = level_index(batch.value_N, model.levels) + 1
    plain = F.cross_entropy(output.permute(0, 2, 1), outcome, reduction="none").sum(1)
    blocked = whole_output_terms(model, objective, model.encode(batch), batch, 50).sum(0)
    torch.testing.assert_close(blocked.double(), plain, rtol=1e-5, atol=1e-5)


def test_a_near_certain_none_keeps_its_loss():
    """-log p(none) of 4e-7 nats is 0 in float32 when taken through a log-softmax."""
    output = torch.tensor([[[16.0, -2.0, -2.0, -2.0, -2.0, -2.0]]])
    objective = RatingClassesConfig().build(Small().catalog)
    nothing = next(entries_by_chunk(Batch.from_lists([[]]), [(0, 1)]))
    (loss_TB,) = objective.accumulate(None, objective.observe(output, nothing), nothing)
    loss = loss_TB[0]
    exact = torch.log1p(5 * torch.exp(torch.tensor(-18.0, dtype=torch.float64)))
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    assert -output.log_softmax(-1)[0, 0, 0].item() == 0.0


@pytest.mark.parametrize("rating_width", [0, 4])
def test_interactions_and_levels_by_themselves_give_the_loss_of_all_outcomes(rating_width, small):
    model = Conv4RecConfig(latent_width=8, rating_width=rating_width).build(small.catalog)
    objective = RatingClassesConfig(rating_weight=3.0).build(small.catalog)
    batch, noise = small.batch, CounterRng.of(0, 0)
    whole_TB = whole_output_terms(model, objective, model.encode(batch, noise), batch)
    wanted = torch.autograd.grad(whole_TB.sum(), list(model.parameters()))
    terms = TrainStep(model, objective, block_items=17)(batch, batch, noise, 0)
    torch.testing.assert_close(torch.stack(list(terms.values())), whole_TB.sum(1))
    found = torch.autograd.grad(total(terms), list(model.parameters()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_binary_loss_is_the_plain_one(small):
    model = MultVaeConfig(hidden_width=16, latent_width=8).build(small.catalog)
    objective = BinaryConfig().build(small.catalog)
    batch = small.batch
    loss_TB = objective(model, model.encode(batch), batch, context(17))
    met_BI = torch.zeros(37, 50).index_put((batch.row_N, batch.item_N), torch.ones(()))
    odds_BI = model.decode(model.encode(batch), slice(None))
    plain_BI = F.binary_cross_entropy_with_logits(odds_BI, met_BI, reduction="none")
    torch.testing.assert_close(loss_TB[0], plain_BI.sum(1))
    wanted = gradients(plain_BI.sum(1)[None], model)
    for name, gradient in gradients(loss_TB, model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_sampled_unobserved_cells_have_the_mean_of_all_loss_and_gradient(power, small):
    config = Conv4RecConfig(latent_width=8, decoder="linear")
    model, batch = config.build(small.catalog), small.users(range(6))
    exact = RatingClassesConfig().build(small.catalog)
    settings = RatingClassesConfig(num_sampled=12, sampling_power=power)
    sampled = settings.build(small.catalog)

    def both(objective, step):
        terms_TB = objective(model, model.encode(batch), batch, context(17, step=step))
        (by_prior,) = torch.autograd.grad(terms_TB.sum(), [model.prior_IC])
        return torch.cat([terms_TB[0].detach(), by_prior[:, 0]]), terms_TB[1].detach()

    wanted, rating_B = both(exact, 0)
    draws = [both(sampled, step) for step in range(400)]
    for _, ratings_B in draws[:5]:  # rated items are not sampled
        torch.testing.assert_close(ratings_B, rating_B)
    found = torch.stack([draw for draw, _ in draws])
    error = found.std(0) / 20.0
    assert ((found.mean(0) - wanted).abs() < 4.5 * error + 1e-4).all()


def test_users_without_targets_and_batches_without_users_give_zeros(small):
    for config, objective_config in CASES.values():
        model = config.build(small.catalog)
        objective = objective_config.build(small.catalog)
        no_user = Batch.from_lists([])
        terms = objective(model, model.encode(no_user), no_user, context(17))
        assert terms.shape[1] == 0
        terms.sum().backward()
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def sampled_loss(model, batch, num_sampled, step, power=0.5, chunk_items=17):
    config = MultinomialConfig(num_sampled=num_sampled, sampling_power=power)
    objective = config.build(Small().catalog)
    candidates = objective.candidates(batch, CounterRng.of(0, 0), step)
    found = objective(model, model.encode(batch), batch, context(chunk_items, step=step))
    return found[0], candidates


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_sampled_normaliser_has_the_mean_of_the_exact_one(power, small):
    model = MultVaeConfig(hidden_width=16, latent_width=8).build(small.catalog)
    batch = small.users(range(6))
    output_BI = model.decode(model.encode(batch), slice(None)).detach()
    score_B = torch.zeros(6).index_add(0, batch.row_N, output_BI[batch.row_N, batch.item_N])
    sums = []
    for step in range(400):
        loss_B, _ = sampled_loss(model, batch, 12, step, power)
        sums.append(((loss_B.detach() + score_B) / batch.length_B).exp())
    mean_B, exact_B = torch.stack(sums).mean(0), output_BI.exp().sum(1)
    error_B = torch.stack(sums).std(0) / 20.0
    assert ((mean_B - exact_B).abs() < 4 * error_B).all()


def test_a_sampled_loss_does_not_depend_on_who_else_is_in_the_batch(small):
    model = MultVaeConfig(hidden_width=16, latent_width=8).build(small.catalog)
    whole_B, _ = sampled_loss(model, small.batch, 20, 3)
    alone_B, candidates = sampled_loss(model, small.users([7]), 20, 3, chunk_items=5)
    torch.testing.assert_close(whole_B[7:8], alone_B)
    assert set(small.items[7]) <= set(candidates.item_J.tolist())


def test_the_gradient_of_a_sampled_loss_is_that_of_the_plain_formula(small):
    model = MultVaeConfig(hidden_width=16, latent_width=8).build(small.catalog)
    batch = small.batch
    loss_B, (item_J, log_weight_J) = sampled_loss(model, batch, 20, 0)
    output_BJ = model.decode(model.encode(batch), item_J)
    place_N = torch.searchsorted(item_J, batch.item_N)
    own_BJ = torch.zeros(output_BJ.shape, dtype=torch.bool)
    own_BJ[batch.row_N, place_N] = True
    weighted_BJ = torch.where(own_BJ, output_BJ, output_BJ + log_weight_J)
    score_B = torch.where(own_BJ, output_BJ, 0.0).sum(1)
    plain_B = batch.length_B * weighted_BJ.logsumexp(1) - score_B
    torch.testing.assert_close(loss_B, plain_B)
    wanted = gradients(plain_B[None], model)
    for name, gradient in gradients(loss_B[None], model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-4, msg=name)
