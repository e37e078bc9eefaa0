"""Biased matrix factorization against its equation."""

import torch

from distrib.models import BiasedMfConfig
from distrib.objectives import SquaredErrorConfig
from distrib.rng import CounterRng
from distrib.training.step import TrainStep


def test_loss_and_gradient_are_those_of_a_loop_over_ratings(small):
    model = BiasedMfConfig(latent_width=8).build(small.catalog)
    torch.nn.init.normal_(model.user_bias_U)
    step = TrainStep(model, SquaredErrorConfig().build(small.catalog), block_items=7)
    (loss,) = step(small.batch, small.batch, CounterRng.of(0, 0), 0).values()
    wanted = torch.zeros(())
    for user, (items, values) in enumerate(zip(small.items, small.values, strict=True)):
        for item, value in zip(items, values, strict=True):
            product = model.user_UZ[user] @ model.item_IZ[item]
            rating = product + model.user_bias_U[user] + model.item_bias_I[item]
            wanted = wanted + (rating - value) ** 2
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-4)
    parameters = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(wanted, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_user_beyond_training_is_folded_in_and_comes_near_the_ratings(small):
    model = BiasedMfConfig(latent_width=8, new_user_penalty=1e-3).build(small.catalog)
    torch.nn.init.normal_(model.item_IZ)
    stranger = small.users([5])._replace(user_B=torch.tensor([-1]))
    rating_N = model.score_pairs(model.encode(stranger), stranger)
    assert (rating_N - stranger.value_N).abs().max() < 0.3
