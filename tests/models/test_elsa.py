"""ELSA: what the identities give, against the dense output."""

import torch
import torch.nn.functional as F

from distrib.batch import Batch
from distrib.models import ElsaConfig
from distrib.objectives import CosineConfig
from distrib.rng import CounterRng
from distrib.training.step import TrainStep


def dense_output(model, batch):
    x_BI = torch.zeros(batch.num_users, 50, dtype=model.item_IZ.dtype)
    x_BI[batch.row_N, batch.item_N] = 1.0
    unit_IZ = F.normalize(model.item_IZ, dim=-1)
    return x_BI, x_BI @ unit_IZ @ unit_IZ.T - x_BI


def test_the_loss_is_the_cosine_of_the_dense_output_value_and_gradient(small):
    model = ElsaConfig(latent_width=8).build(small.catalog)
    step = TrainStep(model, CosineConfig().build(small.catalog), block_items=7)
    (loss,) = step(small.batch, small.batch, CounterRng.of(0, 0), 0).values()
    x_BI, output_BI = dense_output(model, small.batch)
    wanted = (1.0 - F.cosine_similarity(output_BI, x_BI, dim=1)).sum()
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
    (one,), (other,) = (torch.autograd.grad(t, [model.item_IZ]) for t in (loss, wanted))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_the_sources_squared_error_of_unit_rows_is_the_same_up_to_a_factor(small):
    model = ElsaConfig(latent_width=8).build(small.catalog)
    x_BI, output_BI = dense_output(model, small.batch)
    squared = (F.normalize(output_BI, dim=1) - F.normalize(x_BI, dim=1)).square().mean(1)
    cosine = 1.0 - F.cosine_similarity(output_BI, x_BI, dim=1)
    torch.testing.assert_close(squared, 2.0 / 50 * cosine)


def test_scores_are_those_of_the_dense_output_but_for_own_items(small):
    model = ElsaConfig(latent_width=8).build(small.catalog)
    score_BI = model.decode(model.encode(small.batch), slice(None))
    x_BI, output_BI = dense_output(model, small.batch)
    torch.testing.assert_close(score_BI, output_BI + x_BI)


def test_empty_and_lonely_histories_have_a_finite_gradient(small):
    model = ElsaConfig(latent_width=8).build(small.catalog)
    batch = Batch.from_lists([[], [3]])
    step = TrainStep(model, CosineConfig().build(small.catalog), block_items=7)
    (loss,) = step(batch, batch, CounterRng.of(0, 0), 0).values()
    loss.backward()
    assert loss.isfinite()
    assert model.item_IZ.grad.isfinite().all()
