"""RecVAE against plain layers, its prior against a loop, its turns against two optimizers."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal

from distrib.data.feeds.base import RankBatch
from distrib.models import RecVaeConfig
from distrib.models.autoencoders.rec_vae import kl_estimate
from distrib.objectives import MultinomialConfig
from distrib.rng import CounterRng
from distrib.training.engines.local import LocalEngine
from distrib.training.optimizer import OptimizerConfig
from distrib.training.step import TrainStep, total

CONFIG = RecVaeConfig(hidden_width=16, latent_width=8, input_dropout=0.0, gamma=0.02)


def multi_hot(batch):
    x_BI = torch.zeros(batch.num_users, 50)
    x_BI[batch.row_N, batch.item_N] = 1.0
    return x_BI


def plain_encoder(encoder, x_BI, epsilon):
    """Block by block, the sum of all earlier ones inside the swish."""
    before = []
    read = F.normalize(x_BI, dim=1) @ encoder.first_IH + encoder.first_bias_H
    for place in range(5):
        inner = read if place == 0 else encoder.blocks[place - 1](before[-1]) + sum(before)
        norm = encoder.norms[place]
        before.append(F.layer_norm(inner * inner.sigmoid(), (16,), norm.weight, norm.bias, epsilon))
    return encoder.to_mean(before[-1]), encoder.to_log_variance(before[-1])


@pytest.mark.parametrize(("variant", "epsilon"), [("master", 0.1), ("wsdm", 1e-5)])
def test_encoder_and_decoder_equal_plain_ones(variant, epsilon, small):
    model = CONFIG.model_copy(update={"variant": variant}).build(small.catalog)
    mean_BZ, _ = plain_encoder(model.encoder, multi_hot(small.batch), epsilon)
    score_BI = model.decode(model.encode(small.batch), slice(None))
    wanted = mean_BZ @ model.output_IZ.T + model.output_bias_I
    torch.testing.assert_close(score_BI, wanted, rtol=1e-4, atol=1e-5)


def test_the_prior_is_a_mixture_in_each_dimension():
    generator = torch.Generator().manual_seed(0)
    latent, mean, old_mean = (torch.randn(5, 3, generator=generator) for _ in range(3))
    spread, old_spread = (0.1 * torch.randn(5, 3, generator=generator) for _ in range(2))
    found_B = kl_estimate(latent, (mean, spread), (old_mean, old_spread))
    for row in range(5):
        wanted = 0.0
        for z, m, v, old_m, old_v in zip(
            latent[row], mean[row], spread[row], old_mean[row], old_spread[row], strict=True
        ):
            mixture = (
                3 / 20 * Normal(0.0, 1.0).log_prob(z).exp()
                + 3 / 4 * Normal(old_m, (0.5 * old_v).exp()).log_prob(z).exp()
                + 1 / 10 * Normal(0.0, math.exp(5.0)).log_prob(z).exp()
            )
            wanted += Normal(m, (0.5 * v).exp()).log_prob(z) - mixture.log()
        torch.testing.assert_close(found_B[row], wanted, rtol=1e-4, atol=1e-4)


def test_loss_weighs_the_divergence_by_the_length_of_the_history(small):
    model = CONFIG.build(small.catalog)
    objective = MultinomialConfig(kl_weight=1.0, anneal_steps=0).build(small.catalog)
    noise = CounterRng.of(0, 0)
    terms = TrainStep(model, objective, block_items=7)(small.batch, small.batch, noise, 0)
    x_BI = multi_hot(small.batch)
    mean_BZ, log_variance_BZ = plain_encoder(model.encoder, x_BI, 0.1)
    old = plain_encoder(model.old, x_BI, 0.1)
    draw_BZ = noise.normal(2, small.batch.user_B[:, None], torch.arange(8))
    latent_BZ = mean_BZ + (0.5 * log_variance_BZ).exp() * draw_BZ
    logit_BI = latent_BZ @ model.output_IZ.T + model.output_bias_I
    reconstruction = -(x_BI * F.log_softmax(logit_BI, dim=1)).sum()
    divergence_B = kl_estimate(latent_BZ, (mean_BZ, log_variance_BZ), old)
    wanted = reconstruction + (0.02 * x_BI.sum(1) * divergence_B).sum()
    torch.testing.assert_close(total(terms), wanted, rtol=1e-5, atol=1e-3)
    found = torch.autograd.grad(total(terms), list(model.encoder.parameters()))
    plain = torch.autograd.grad(wanted, list(model.encoder.parameters()))
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_turns_train_one_part_each_with_an_optimizer_state_of_its_own(small):
    torch.manual_seed(0)
    model = CONFIG.build(small.catalog)
    torch.manual_seed(0)
    twin = CONFIG.build(small.catalog)
    objective = MultinomialConfig(kl_weight=1.0, anneal_steps=0).build(small.catalog)
    engine = LocalEngine(TrainStep(model, objective, block_items=7), OptimizerConfig(name="adam"))
    step = TrainStep(twin, objective, block_items=7)
    optimizers = {part: torch.optim.Adam(p, lr=1e-3) for part, p in twin.phases().items()}
    batch = small.batch
    for epoch in range(9):
        noise = CounterRng.of(0, epoch)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        engine.begin_epoch(epoch)
        engine.train_batch(RankBatch(batch, batch, 37), noise, step=epoch)
        engine.end_epoch(epoch)
        part = "decoder" if epoch % 4 == 3 else "encoder"
        for name, value in model.state_dict().items():
            moved = not torch.equal(value, before[name])
            assert moved == (name.startswith("encoder") == (part == "encoder")), (epoch, name)
        assert twin.begin_epoch(epoch) == part
        twin.zero_grad()
        (total(step(batch, batch, noise, epoch)) / 37).backward()
        optimizers[part].step()
        twin.end_epoch(epoch)
        is_fresh = epoch % 4 == 2
        same = torch.equal(model.old.get_buffer("first_IH"), model.encoder.first_IH)
        assert same == (is_fresh or epoch % 4 == 3)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, msg=name)


def test_the_decoder_is_trained_without_dropout_on_sampled_codes(small):
    model = CONFIG.model_copy(update={"input_dropout": 0.5}).build(small.catalog)
    model.begin_epoch(3)
    mean_BZ, log_variance_BZ = plain_encoder(model.encoder, multi_hot(small.batch), 0.1)
    noise = CounterRng.of(0, 3)
    draw_BZ = noise.normal(2, small.batch.user_B[:, None], torch.arange(8))
    wanted = mean_BZ + (0.5 * log_variance_BZ).exp() * draw_BZ
    torch.testing.assert_close(model.encode(small.batch, noise).latent_BZ, wanted)
    assert "old.first_IH" not in model.state_dict()  # nothing that scores needs it
