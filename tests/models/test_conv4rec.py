"""Conv4Rec against its definition: a dense network with 1x1 convolutions over one-hot classes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distrib.batch import level_index
from distrib.models.autoencoders.conv4rec import Conv4RecConfig, log_frequencies
from distrib.rng import CounterRng


def dense_one_hot(batch, levels):
    outcome = torch.zeros(batch.num_users, 50, dtype=torch.int64)
    outcome[batch.row_N, batch.item_N] = level_index(batch.value_N, levels) + 1
    return F.one_hot(outcome, 6).double()


def dense_forward(model, batch):
    """The network as the paper draws it: [B, C, I] through Conv1d, flatten, Linear, and back."""
    x = dense_one_hot(batch, model.levels).permute(0, 2, 1)
    first, second = model.channels[0], model.channels[2]
    c = F.leaky_relu(F.conv1d(x, first.weight[..., None], first.bias), 0.1)
    c = F.leaky_relu(F.conv1d(c, second.weight[..., None], second.bias), 0.1)  # [B, D, I]
    unrated = F.one_hot(torch.zeros(1, 50, dtype=torch.int64), 6).double().permute(0, 2, 1)
    c0 = F.leaky_relu(F.conv1d(unrated, first.weight[..., None], first.bias), 0.1)
    c0 = F.leaky_relu(F.conv1d(c0, second.weight[..., None], second.bias), 0.1)
    weight = model.input_IDZ.permute(1, 0, 2).flatten(0, 1)  # [D * I, Z]
    scale = batch.length_B.clamp(min=1).double().rsqrt()[:, None]
    a = (c.flatten(1) - c0.flatten(1)) @ weight
    h = torch.tanh(a * scale + model.input_bias_Z)
    t = torch.einsum("bz,idz->bid", h, model.output_IDZ)
    if model.head is not None:
        t = model.head(t + model.output_bias_ID)
    return t + model.prior_IC


@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_sparse_network_equals_the_dense_one_forward_and_backward(decoder, small):
    model = (
        Conv4RecConfig(latent_width=8, rating_width=4, decoder=decoder)
        .build(small.catalog)
        .double()
    )
    batch = small.batch._replace(value_N=small.batch.value_N.double())
    sparse = model.decode(model.encode(batch), slice(None))
    dense = dense_forward(model, batch)
    torch.testing.assert_close(sparse, dense, rtol=1e-6, atol=1e-6)
    weights = torch.randn_like(dense)
    parameters = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad((sparse * weights).sum(), parameters),
        torch.autograd.grad((dense * weights).sum(), parameters),
        strict=True,
    ):
        # The root of the length is float32, so 1e-12 is out of reach.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rating_width", [0, 4])
def test_the_ordinal_decoder_equals_dense_convolutions_over_two_channels(rating_width, small):
    torch.manual_seed(0)
    config = Conv4RecConfig(latent_width=8, rating_width=rating_width, encoder="dense")
    model = config.build(small.catalog).double()
    torch.nn.init.normal_(model.rating_IZ)
    torch.nn.init.normal_(model.output_IDZ)
    batch = small.batch._replace(value_N=small.batch.value_N.double())
    one_hot = dense_one_hot(batch, model.levels)[..., 1:]  # [B, I, L]
    a = torch.einsum("bil,ilz->bz", one_hot, model.input_IDZ)
    h = torch.tanh(a * batch.length_B.double().rsqrt()[:, None] + model.input_bias_Z)
    interaction, rating = (h[:, :8], h[:, 8:]) if rating_width else (h, h)
    channels = torch.stack(
        [interaction @ model.output_IDZ[:, 0].T - model.prior_IC[:, 0], rating @ model.rating_IZ.T],
        dim=1,
    )  # [B, 2, I]
    level = F.conv1d(channels[:, 1:], model.slope_L[:, None, None]) + model.prior_IC.T[1:]
    odds = channels[:, :1] - torch.logsumexp(level, dim=1, keepdim=True)
    wanted = torch.cat([torch.zeros_like(odds), odds + level], dim=1).softmax(1).permute(0, 2, 1)
    state = model.encode(batch)
    found = model.decode(state, slice(None)).softmax(-1)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    cells = model.score_pairs(state, batch).softmax(-1)
    torch.testing.assert_close(cells, wanted[batch.row_N, batch.item_N], rtol=1e-6, atol=1e-6)
    weights = torch.randn_like(wanted)
    parameters = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), parameters),
        torch.autograd.grad((wanted * weights).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_prior_starts_at_the_items_smoothed_frequencies(small):
    prior = np.exp(log_frequencies(small.catalog))
    counts = small.catalog.train_count_IL
    assert prior.sum(1) == pytest.approx(np.ones(50), rel=1e-4)
    item = int(counts.sum(1).argmax())
    all_levels = counts.sum(0) / (37 * 50)
    wanted = (counts[item] + 10 * all_levels) / (37 + 10)
    assert prior[item, 1:] == pytest.approx(wanted, rel=1e-2)


def test_opinion_is_a_distribution_and_its_mean_lies_on_the_scale(small):
    model = Conv4RecConfig(latent_width=8, rating_width=4).build(small.catalog)
    output = model.decode(model.encode(small.batch), slice(None)).float()
    prediction = model.output.predict(output)
    six = output.softmax(-1)
    torch.testing.assert_close(prediction.probability_BI, 1 - six[..., 0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(prediction.level_BIL.sum(-1), torch.ones(37, 50))
    renormalised = six[..., 1:] / six[..., 1:].sum(-1, keepdim=True)
    mean = renormalised @ torch.arange(1.0, 6.0)
    torch.testing.assert_close(prediction.rating_BI, mean, rtol=1e-4, atol=1e-4)


def test_corruption_hides_half_of_the_history_as_if_not_observed(small):
    config = Conv4RecConfig(latent_width=8, corruption=0.5, scale="history")
    model = config.build(small.catalog)
    noise = CounterRng.of(0, 0)
    batch = small.batch
    draw = noise.uniform(1, batch.user_B[batch.row_N], batch.item_N)
    kept = batch.keep(draw >= 0.5)
    by_visible = Conv4RecConfig(latent_width=8, corruption=0.5).build(small.catalog)
    assert torch.equal(by_visible.encode(batch, noise).latent_BZ, by_visible.encode(kept).latent_BZ)
    hidden = model.encode(batch, noise).latent_BZ
    scale = (kept.length_B.clamp(min=1) / batch.length_B.clamp(min=1)).float().sqrt()[:, None]
    inner = torch.atanh(model.encode(kept).latent_BZ) - model.input_bias_Z
    wanted = torch.tanh(inner * scale + model.input_bias_Z)
    torch.testing.assert_close(hidden, wanted, rtol=1e-4, atol=1e-5)
    assert 0.3 < len(kept.item_N) / len(batch.item_N) < 0.7
