"""Models of pairs against their definitions, and users that training did not see."""

import pytest
import torch
import torch.nn.functional as F

from distrib.batch import Batch
from distrib.models import ConvNcfConfig, GmfConfig, MlpConfig, NeuMfConfig
from distrib.models.ncf import conv_ncf, tower

CONFIGS = [
    GmfConfig(latent_width=8),
    MlpConfig(latent_width=8, hidden_widths=(16, 8)),
    NeuMfConfig(gmf_width=4, mlp_width=8, hidden_widths=(16, 8)),
    ConvNcfConfig(latent_width=8, channels=4),
]
every_model = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)


def built(config, small, scale=0.5):
    """A model far from its start, where embeddings are nearly zero."""
    torch.manual_seed(0)
    model = config.build(small.catalog)
    with torch.no_grad():
        for held in model.parameters():
            held.add_(scale * torch.randn_like(held))
    return model.eval()


def plain(model, user, item):
    """The log-odds of one pair, as the papers write them."""
    name = model.config.name
    if name == "gmf":
        return (model.user_UZ[user] * model.item_IZ[item]) @ model.head_Z + model.bias_1[0]
    if name == "mlp":
        hidden = torch.cat([model.user_UZ[user], model.item_IZ[item]])
        for layer in model.tower.layers:
            hidden = F.relu(layer(hidden))
        return model.head(hidden)[0]
    if name == "neumf":
        hidden = torch.cat([model.mlp_user_UZ[user], model.mlp_item_IZ[item]])
        for layer in model.tower.layers:
            hidden = F.relu(layer(hidden))
        product = model.gmf_user_UZ[user] * model.gmf_item_IZ[item]
        head = torch.cat([model.gmf_head_Z, model.mlp_head_H])
        return torch.cat([product, hidden]) @ head + model.bias_1[0]
    hidden = torch.outer(model.user_UZ[user], model.item_IZ[item])[None, None]
    for kernel, bias in zip(model.kernels, model.biases, strict=True):
        hidden = F.relu(F.conv2d(hidden, kernel, bias, stride=2))
    return model.head(hidden.flatten())[0]


@every_model
def test_scores_are_those_of_the_definition(config, small, monkeypatch):
    monkeypatch.setattr(tower, "_BLOCK_FLOATS", 16 * 50 * 3)  # several blocks
    monkeypatch.setattr(conv_ncf, "_BLOCK_FLOATS", 4 * 16 * 7)
    model = built(config, small)
    state = model.encode(small.users([3, 30]))
    wanted = torch.stack([torch.stack([plain(model, u, i) for i in range(50)]) for u in (3, 30)])
    torch.testing.assert_close(model.decode(state, slice(None)), wanted, rtol=1e-4, atol=1e-5)
    pairs = Batch.from_lists([[4, 9], [1]], users=[3, 30])
    found = model.score_pairs(state, pairs)
    torch.testing.assert_close(found, wanted[[0, 0, 1], [4, 9, 1]], rtol=1e-4, atol=1e-5)


def test_blocks_that_are_recomputed_have_the_gradient_of_the_whole(small, monkeypatch):
    model = built(ConvNcfConfig(latent_width=8, channels=4), small)

    def gradients():
        model.zero_grad()
        model.score_pairs(model.encode(small.batch), small.batch).square().sum().backward()
        return [held.grad.clone() for held in model.parameters()]

    wanted = gradients()
    monkeypatch.setattr(conv_ncf, "_BLOCK_FLOATS", 4 * 16 * 7)
    for one, other in zip(gradients(), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@every_model
def test_a_new_user_is_folded_in_from_likes_and_dislikes(config, small):
    model = built(config, small)
    rows = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]]
    likes = [[5.0, 5.0, 5.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 5.0, 5.0, 5.0]]
    with torch.inference_mode():  # as the scorer does
        new = Batch.from_lists(rows, likes)
        found = model.score_pairs(model.encode(new), new).view(2, 6)
        difference = found[:, :3].mean(1) - found[:, 3:].mean(1)
        assert difference[0] > 0.1
        assert difference[1] < -0.1
        alone = Batch.from_lists(rows[:1], likes[:1])
        torch.testing.assert_close(model.score_pairs(model.encode(alone), alone), found[0])
    assert all(held.grad is None for held in model.parameters())


@every_model
def test_known_users_have_their_rows_whatever_they_are_given(config, small):
    model = built(config, small)
    known = small.users([5])
    bare = known.keep(torch.zeros_like(known.item_N, dtype=torch.bool))
    for one, other in zip(model.encode(known), model.encode(bare), strict=True):
        assert torch.equal(one, other)


def test_neumf_starts_from_a_gmf_and_an_mlp_whose_heads_are_halved(small):
    gmf = built(GmfConfig(latent_width=4), small)
    mlp = built(MlpConfig(latent_width=8, hidden_widths=(16, 8)), small)
    model = NeuMfConfig(gmf_width=4, mlp_width=8, hidden_widths=(16, 8)).build(small.catalog)
    model.start_from([gmf, mlp])
    users = small.users(range(10))
    scores = [part.decode(part.encode(users), slice(None)) for part in (gmf, mlp, model)]
    torch.testing.assert_close(scores[2], 0.5 * (scores[0] + scores[1]))


def test_conv_ncf_starts_from_the_embeddings_of_a_factorization(small):
    gmf = built(GmfConfig(latent_width=8), small)
    model = ConvNcfConfig(latent_width=8, channels=4).build(small.catalog)
    model.start_from([gmf])
    torch.testing.assert_close(
        model.user_UZ @ model.item_IZ.T, (gmf.user_UZ * gmf.head_Z) @ gmf.item_IZ.T
    )


def test_a_width_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="latent_width = 48: must be a power of 2"):
        ConvNcfConfig(latent_width=48)
