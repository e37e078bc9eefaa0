"""AutoRec against its equation on dense rows, both sides, both outputs."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from distrib.batch import Batch
from distrib.models import AutoRecConfig
from distrib.objectives import SquaredErrorConfig
from distrib.rng import CounterRng
from distrib.training.schemes.encoded_rows import joined_latents, latents_of
from distrib.training.schemes.item_rows import ItemRows
from distrib.training.step import TrainStep
from distrib.vocabulary import Catalog, Vocabulary
from tests.conftest import LEVELS

ACTIVATIONS = {"identity": lambda x: x, "sigmoid": torch.sigmoid, "relu": torch.relu}


def rating_matrix(small):
    r_UI = torch.zeros(37, 50)
    r_UI[small.batch.row_N, small.batch.item_N] = small.batch.value_N
    return r_UI


def plain(model, r):
    """h(r) = f(W g(V r + mu) + b), as the paper writes it; with centering, around item means."""
    config = model.config
    if config.centering == "means":
        rated, offset = r > 0, 0.0
        mean = model.mean_I
        if config.side == "items":
            mean = (r.sum(1, keepdim=True) + model.mean_I[0]) / (rated.sum(1, keepdim=True) + 1)
            offset = mean
        return offset + plain_of(model, torch.where(rated, r - mean, 0.0))
    return plain_of(model, r)


def plain_of(model, r):
    config = model.config
    hidden = ACTIVATIONS[config.hidden](r @ model.input_IZ + model.input_bias_Z)
    output = hidden @ model.output_IZ.T + model.output_bias_I
    return 1.0 + 4.0 * torch.sigmoid(output) if config.output == "sigmoid" else output


@pytest.mark.parametrize("hidden", list(ACTIVATIONS))
@pytest.mark.parametrize(
    "settings", [{"output": "identity"}, {"output": "sigmoid"}, {"centering": "means"}]
)
def test_loss_and_gradient_are_those_of_the_dense_network(hidden, settings, small):
    torch.manual_seed(0)
    config = AutoRecConfig(side="users", hidden_width=16, hidden=hidden, **settings)
    model = config.build(small.catalog)
    step = TrainStep(model, SquaredErrorConfig().build(small.catalog), block_items=7)
    (loss,) = step(small.batch, small.batch, CounterRng.of(0, 0), 0).values()
    r_UI = rating_matrix(small)
    error_UI = torch.where(r_UI > 0, plain(model, r_UI) - r_UI, 0.0)
    wanted = error_UI.square().sum()
    torch.testing.assert_close(loss, wanted)
    parameters = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(wanted, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_an_untrained_network_starts_near_the_mean_ratings(small):
    for output in ("identity", "sigmoid"):
        config = AutoRecConfig(side="users", hidden_width=16, output=output)
        model = config.build(small.catalog)
        level = small.catalog.train_count_IL @ np.array(LEVELS)
        mean_I = level / np.maximum(small.catalog.train_count_IL.sum(1), 1)
        rated = small.catalog.train_count_IL.sum(1) > 5
        rating_I = model.decode(model.encode(small.batch), slice(None)).detach().numpy().mean(0)
        assert np.abs(rating_I - mean_I)[rated].max() < 0.5


class Item:
    """An I-AutoRec network, its item rows, and what scores with them."""

    def __init__(self, small, **settings):
        torch.manual_seed(0)
        self.config = AutoRecConfig(side="items", hidden_width=16, **settings)
        self.network = self.config.network(small.catalog, small_users(small))
        torch.nn.init.normal_(self.network.output_bias_I)
        r_IU = rating_matrix(small).T
        self.rating_UI = plain(self.network, r_IU).T.detach()
        with torch.no_grad():
            rows = [(row.nonzero()[:, 0].tolist(), row[row > 0].tolist()) for row in r_IU]
            items = self.network.encode(Batch.from_lists(*zip(*rows, strict=True)))
        self.model = self.config.build(small.catalog)
        state = self.config.scoring(self.network.state_dict(), items)
        self.model.load_state_dict(state)


def small_users(small):
    counts = np.broadcast_to(small.catalog.train_count_IL.sum(0), (37, 5))
    return Catalog(37, LEVELS, counts, 50)


@pytest.mark.parametrize(
    "settings", [{"output": "identity"}, {"output": "sigmoid"}, {"centering": "means"}]
)
def test_item_autorec_gives_known_users_what_the_network_gives_their_columns(settings, small):
    item = Item(small, **settings)
    found_UI = item.model.decode(item.model.encode(small.batch), slice(None))
    torch.testing.assert_close(found_UI, item.rating_UI, rtol=1e-5, atol=1e-5)


def test_item_autorec_folds_unknown_users_in_among_known_ones(small):
    item = Item(small, new_user_penalty=1e-3)
    mixed = small.batch._replace(
        user_B=torch.where(torch.arange(37) % 2 == 0, -1, torch.arange(37))
    )
    rating_UI = item.model.decode(item.model.encode(mixed), slice(None))
    torch.testing.assert_close(rating_UI[1::2], item.rating_UI[1::2], rtol=1e-5, atol=1e-5)
    for row in range(0, 37, 2):
        own = torch.tensor(small.items[row])
        rated = torch.tensor(small.values[row])
        latent = item.model.code_IZ[own].double()
        x = torch.cat([latent, torch.ones(len(own), 1)], dim=1)
        system = x.T @ x + 1e-3 * torch.eye(x.shape[1])
        offset = item.model.offset_I[own].double()
        wanted = x @ torch.linalg.solve(system, x.T @ (rated.double() - offset))
        found = rating_UI[row, own].double() - offset
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_codes_of_items_are_the_networks_also_of_those_nobody_rated(small):
    counts_IL = small.catalog.train_count_IL
    vocabulary = Vocabulary(pa.array(range(50)), LEVELS, counts_IL, 37, user_index_size=37)
    torch.manual_seed(0)
    config = AutoRecConfig(side="items", hidden_width=16)
    network = ItemRows().build(config, vocabulary)
    rows, wanted = item_rows(small)
    halves = [iter([(rows, np.arange(rows.num_users)[rank::2])]) for rank in range(2)]
    parts = [latents_of(network.encode, half, 7) for half in halves]
    with torch.no_grad():
        absent = network.encode(Batch.from_lists([[]]))
    latent_IZ, _ = joined_latents(parts, 50, absent)
    torch.testing.assert_close(latent_IZ, wanted(network), rtol=1e-5, atol=1e-6)


def item_rows(small):
    from distrib.data.history_arrays import HistoryArrays

    order = torch.argsort(small.batch.item_N, stable=True)
    items = torch.unique(small.batch.item_N)
    lengths = torch.bincount(small.batch.item_N, minlength=50)[items]
    pointer_P = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    flat = (small.batch.row_N[order], small.batch.value_N[order], torch.zeros(len(order)))
    rows = HistoryArrays(*(part.numpy() for part in (items, pointer_P, *flat)))

    def latents(network):
        sums = rating_matrix(small).T @ network.input_IZ + network.input_bias_Z
        return torch.sigmoid(sums).detach()

    return rows, latents
