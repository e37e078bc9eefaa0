"""Mult-VAE against a plain network: multi-hot input, dense layers, torch.distributions."""

import torch
import torch.nn.functional as F
from torch.distributions import Multinomial, Normal, kl_divergence

from distrib.models.autoencoders.mult_vae import MultVaeConfig
from distrib.objectives import MultinomialConfig
from distrib.rng import CounterRng
from distrib.training.step import TrainStep
from tests.conftest import Small


def multi_hot(batch):
    x = torch.zeros(batch.num_users, 50)
    x[batch.row_N, batch.item_N] = 1.0
    return x


def plain(model, x, noise_code=0.0):
    h = torch.tanh(F.normalize(x, dim=1) @ model.input_IH + model.input_bias_H)
    mean, log_variance = model.to_code(h).chunk(2, dim=1)
    z = mean + (0.5 * log_variance).exp() * noise_code
    logits = torch.tanh(model.from_code(z)) @ model.output_IH.T + model.output_bias_I
    return logits, mean, log_variance


def test_network_equals_the_plain_one(small):
    model = MultVaeConfig(hidden_width=16, latent_width=8).build(small.catalog)
    state = model.encode(small.batch)
    logits, mean, _ = plain(model, multi_hot(small.batch))
    torch.testing.assert_close(model.decode(state, slice(None)), logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state.mean_BZ, mean, rtol=1e-5, atol=1e-6)


def test_loss_is_the_multinomial_likelihood_plus_the_annealed_divergence(small):
    model = MultVaeConfig(hidden_width=16, latent_width=8, input_dropout=0.0).build(small.catalog)
    objective = MultinomialConfig(kl_weight=0.2, anneal_steps=100).build(Small().catalog)
    noise = CounterRng.of(0, 0)
    terms = TrainStep(model, objective, block_items=7)(small.batch, small.batch, noise, 10)
    x = multi_hot(small.batch)
    latent = noise.normal(2, small.batch.user_B[:, None], torch.arange(8))
    logits, mean, log_variance = plain(model, x, latent)
    counts = x.sum(1)
    likelihood = sum(
        Multinomial(int(n), logits=row).log_prob(seen) - torch.lgamma(n + 1)
        for n, row, seen in zip(counts, logits, x, strict=True)
    )
    torch.testing.assert_close(terms["reconstruction"], -likelihood, rtol=1e-5, atol=1e-3)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    divergence = kl_divergence(posterior, Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(terms["divergence"], 0.1 * divergence, rtol=1e-5, atol=1e-5)


def test_the_divergence_weight_grows_to_its_cap():
    objective = MultinomialConfig(kl_weight=0.2, anneal_steps=100).build(Small().catalog)
    assert [objective.kl.weight(s) for s in (0, 10, 20, 500)] == [0.0, 0.1, 0.2, 0.2]


def test_the_code_is_drawn_with_its_own_deviation(small):
    """A deviation of 0.01 instead of 1, as seen elsewhere, would pass all other tests."""
    model = MultVaeConfig(hidden_width=16, latent_width=8, input_dropout=0.0).build(small.catalog)
    still = model.encode(small.batch).mean_BZ
    captured = []
    model.from_code.register_forward_hook(lambda _m, inputs, _o: captured.append(inputs[0]))
    for epoch in range(200):
        model.encode(small.batch, CounterRng.of(0, epoch))
    drawn = torch.stack(captured)
    wanted = (0.5 * model.encode(small.batch).log_variance_BZ).exp()
    torch.testing.assert_close(drawn.std(0).mean(), wanted.mean(), rtol=0.05, atol=0.0)
    torch.testing.assert_close(drawn.mean(0), still, rtol=0.0, atol=0.5)
