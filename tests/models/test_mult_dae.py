"""Mult-DAE, VAE-CF and DAE-CF against plain networks on dense rows."""

import torch
import torch.nn.functional as F

from distrib.models import MultDaeConfig, MultVaeConfig
from distrib.objectives import MultinomialConfig, SquaredErrorConfig
from distrib.rng import CounterRng
from distrib.training.step import TrainStep, total


def dense(batch, by_value):
    x_BI = torch.zeros(batch.num_users, 50)
    x_BI[batch.row_N, batch.item_N] = batch.value_N if by_value else 1.0
    return x_BI


def gradients_agree(model, loss, wanted):
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-4)
    parameters = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(wanted, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_mult_dae_is_one_hidden_layer_and_a_softmax(small):
    model = MultDaeConfig(latent_width=8, input_dropout=0.0).build(small.catalog)
    objective = MultinomialConfig().build(small.catalog)
    loss = total(
        TrainStep(model, objective, block_items=7)(small.batch, small.batch, CounterRng(1), 0)
    )
    x_BI = dense(small.batch, by_value=False)
    latent_BZ = torch.tanh(F.normalize(x_BI, dim=1) @ model.input_IZ + model.input_bias_Z)
    logit_BI = latent_BZ @ model.output_IZ.T + model.output_bias_I
    gradients_agree(model, loss, -(x_BI * F.log_softmax(logit_BI, dim=1)).sum())


def test_dae_cf_reads_ratings_and_is_judged_on_observed_cells_only(small):
    model = MultDaeConfig(latent_width=8, input_dropout=0.0, input="ratings").build(small.catalog)
    objective = SquaredErrorConfig().build(small.catalog)
    loss = total(
        TrainStep(model, objective, block_items=7)(small.batch, small.batch, CounterRng(1), 0)
    )
    r_BI = dense(small.batch, by_value=True)
    latent_BZ = torch.tanh(F.normalize(r_BI, dim=1) @ model.input_IZ + model.input_bias_Z)
    rating_BI = latent_BZ @ model.output_IZ.T + model.output_bias_I
    gradients_agree(model, loss, torch.where(r_BI > 0, (rating_BI - r_BI) ** 2, 0.0).sum())


def test_vae_cf_adds_the_annealed_divergence(small):
    config = MultVaeConfig(hidden_width=16, latent_width=8, input_dropout=0.0, input="ratings")
    model = config.build(small.catalog)
    objective = SquaredErrorConfig(kl_weight=0.3, anneal_steps=100).build(small.catalog)
    noise = CounterRng.of(0, 0)
    loss = total(TrainStep(model, objective, block_items=7)(small.batch, small.batch, noise, 20))
    r_BI = dense(small.batch, by_value=True)
    hidden_BH = torch.tanh(F.normalize(r_BI, dim=1) @ model.input_IH + model.input_bias_H)
    mean_BZ, log_variance_BZ = model.to_code(hidden_BH).chunk(2, dim=1)
    draw_BZ = noise.normal(2, small.batch.user_B[:, None], torch.arange(8))
    latent_BZ = mean_BZ + (0.5 * log_variance_BZ).exp() * draw_BZ
    rating_BI = torch.tanh(model.from_code(latent_BZ)) @ model.output_IH.T + model.output_bias_I
    error = torch.where(r_BI > 0, (rating_BI - r_BI) ** 2, 0.0).sum()
    divergence = 0.5 * (log_variance_BZ.exp() + mean_BZ**2 - 1 - log_variance_BZ).sum()
    gradients_agree(model, loss, error + 0.2 * divergence)
