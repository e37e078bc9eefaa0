"""The battery: what every model in the union must do."""

from typing import get_args

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from distrib.batch import Batch
from distrib.models import (
    AutoRecConfig,
    BiasedMfConfig,
    Conv4RecConfig,
    EaseConfig,
    ElsaConfig,
    ItemKnnConfig,
    ModelConfig,
    MultDaeConfig,
    MultVaeConfig,
    PopularityConfig,
    RecVaeConfig,
    VaeBmfConfig,
)
from distrib.models.capabilities import begin_epoch, phases_of
from distrib.rng import CounterRng
from distrib.tiles import Side, Tile, Transposed
from distrib.train.engines.local import LocalEngine
from distrib.train.optimizer import OptimizerConfig
from distrib.train.step import TrainStep, total
from distrib.vocabulary import Catalog
from tests.conftest import LEVELS, Small

CASES = [
    Conv4RecConfig(latent_width=8, rating_width=4),
    Conv4RecConfig(latent_width=8, rating_width=0, encoder="dense", scale="history"),
    Conv4RecConfig(latent_width=8, rating_width=0, decoder="linear"),
    Conv4RecConfig(latent_width=8, rating_width=0, decoder="mlp", channel_width=2),
    MultVaeConfig(hidden_width=16, latent_width=8),
    MultVaeConfig(hidden_width=16, latent_width=8, reads="ratings"),
    MultDaeConfig(latent_width=8),
    MultDaeConfig(latent_width=8, reads="ratings"),
    RecVaeConfig(hidden_width=16, latent_width=8),
    ElsaConfig(latent_width=8),
    AutoRecConfig(side="users", hidden_width=16),
    AutoRecConfig(side="users", hidden_width=16, hidden="relu", output="sigmoid"),
    AutoRecConfig(side="items", hidden_width=16),
    BiasedMfConfig(latent_width=8),
    EaseConfig(penalty=10.0),
    EaseConfig(penalty=10.0, num_neighbours=50),
    ItemKnnConfig(num_neighbours=50),
    PopularityConfig(),
    VaeBmfConfig(latent_width=8, branch_width=8, hidden_width=8),
    VaeBmfConfig(
        latent_width=8,
        branch_width=8,
        hidden_width=8,
        latent="gated",
        attention="global",
        likelihood="analytic",
        centring="means",
    ),
]
every_model = pytest.mark.parametrize("config", CASES, ids=repr)
TRAINED = [case for case in CASES if case.spec.scheme != "closed_form"]
every_trained_model = pytest.mark.parametrize("config", TRAINED, ids=repr)


def trained_on(config, small):
    """What training updates, and what it reads: histories of users, of items, or both."""
    if config.spec.scheme in ("user_rows", "closed_form"):
        return config.build(small.catalog), small.batch
    batch, item_count = small.batch, small.catalog.item_count
    count_UL = np.ones((batch.num_users, len(LEVELS)), dtype=np.int64)
    users = Catalog(batch.num_users, LEVELS, count_UL, item_count, batch.num_users)
    network = config.network(small.catalog, users)
    items = of_items(small)
    if config.spec.scheme == "item_rows":
        return network, items
    cells = Transposed.of(batch.item_N, batch.pointer_P, item_count)
    return network, Tile(Side.whole(batch), Side.whole(items), batch, cells, torch.zeros(1).long())


def of_items(small):
    """The histories of all items."""
    batch, item_count = small.batch, small.catalog.item_count
    order = torch.argsort(batch.item_N, stable=True)
    lengths = torch.bincount(batch.item_N, minlength=item_count)
    pointer_P = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return Batch(torch.arange(item_count), pointer_P, batch.row_N[order], batch.value_N[order])


def step_of(config, small, block_items=17):
    torch.manual_seed(0)
    model, batch = trained_on(config, small)
    objective = config.spec.objective.build(small.catalog)
    return TrainStep(model, objective, block_items=block_items), batch


def filled(config, small):
    """A model that scores, with something to say."""
    torch.manual_seed(0)
    model = config.build(small.catalog)
    if config.spec.scheme == "closed_form" and hasattr(config, "solve"):
        model.load_state_dict(config.solve(gram_of(small.batch, small.catalog.item_count)))
    if config.spec.scheme in ("item_rows", "two_sided"):
        network, _ = trained_on(config, small)
        model.load_state_dict(scoring(config, network, small))
    return model.requires_grad_(False)


def scoring(config, network, small):
    """The state of what scores, from the network that is trained."""
    network = network.requires_grad_(False)
    if config.spec.scheme == "item_rows":
        return config.scoring(network.state_dict(), network.encode(of_items(small))[0])
    return config.scoring(network.state_dict(), network.encode_items(of_items(small)))


def gram_of(batch, item_count=50):
    """Plain: the dense product."""
    met_BI = torch.zeros(batch.num_users, item_count)
    met_BI[batch.row_N, batch.item_N] = 1.0
    return csr_array((met_BI.T @ met_BI).numpy().astype(np.int32))


def scores(model, batch):
    with torch.no_grad():
        output = model.decode(model.encode(batch), slice(None)).float()
        return model.output.ranking_score(output)


def test_every_model_has_a_case():
    union, *_ = get_args(ModelConfig)
    assert {type(case) for case in CASES} == set(get_args(union))


@every_model
def test_the_configuration_survives_json(config):
    assert type(config).model_validate_json(config.model_dump_json()) == config


@every_model
def test_one_finite_score_per_item_also_for_an_empty_history(config, small):
    model = filled(config, small)
    score = scores(model, Batch.from_lists([[], [1, 2]], [[], [5.0, 1.0]]))
    assert score.shape == (2, 50)
    assert score.dtype == torch.float32
    assert score.isfinite().all()


@every_model
def test_a_user_scores_the_same_alone_and_in_a_batch(config, small):
    model = filled(config, small)
    together = scores(model, small.batch)
    alone = torch.cat([scores(model, small.users([n])) for n in range(37)])
    # Sums over another batch size may be ordered differently: float32 rounding.
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@every_model
def test_a_part_of_the_items_decodes_as_in_the_whole(config, small):
    model = filled(config, small)
    state = model.encode(small.batch)
    chosen = torch.tensor([3, 41, 7])
    whole = model.decode(state, slice(None))
    torch.testing.assert_close(model.decode(state, chosen), whole[:, chosen], rtol=1e-5, atol=1e-5)


@every_model
def test_inference_is_a_pure_function_of_the_history(config, small):
    """But of models with parameters for each user, which fold others in."""
    model = filled(config, small)
    stranger = small.batch._replace(user_B=torch.full((37,), -1))
    is_equal = torch.equal(scores(model, small.batch), scores(model, stranger))
    assert is_equal != config.spec.has_user_rows
    beyond = small.batch._replace(user_B=torch.arange(37) + 1000)
    assert torch.equal(scores(model, beyond), scores(model, stranger))


@every_trained_model
def test_training_depends_on_the_noise_only_through_its_key(config, small):
    step, batch = step_of(config, small)
    is_noisy = not isinstance(config, AutoRecConfig | BiasedMfConfig | ElsaConfig)
    is_noisy &= getattr(config, "likelihood", "") != "analytic"

    def loss(noise):
        return total(step(batch, batch, noise, 5)).item()

    assert loss(CounterRng.of(0, 0)) == loss(CounterRng.of(0, 0))
    assert (loss(CounterRng.of(0, 0)) != loss(CounterRng.of(0, 1))) == is_noisy


@every_trained_model
def test_the_loss_reaches_every_parameter_in_its_turn(config, small):
    step, batch = step_of(config, small)
    for epoch in range(4):
        phase = begin_epoch(step.model, epoch)
        step.zero_grad()
        total(step(batch, batch, CounterRng.of(0, 0), 5)).backward()
        for parameter in phases_of(step.model)[phase]:
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0
    together = [p for parameters in phases_of(step.model).values() for p in parameters]
    assert {id(p) for p in together} == {id(p) for p in step.parameters()}


@every_model
def test_stored_cells_decode_as_in_the_whole(config, small):
    model = filled(config, small)
    state = model.encode(small.batch)
    whole = model.decode(state, slice(None))[small.batch.row_N, small.batch.item_N]
    torch.testing.assert_close(model.score_pairs(state, small.batch), whole)


@every_model
def test_permuting_items_permutes_scores(config, small):
    order = torch.from_numpy(np.random.default_rng(0).permutation(50))
    place = torch.argsort(order)
    renamed = small.batch._replace(item_N=place[small.batch.item_N])
    model = filled(config, small)
    moved = config.build(small.catalog)
    if config.spec.scheme == "closed_form" and hasattr(config, "solve"):
        moved.load_state_dict(config.solve(gram_of(renamed)))
    else:
        state = {
            name: value[order] if value.ndim and value.shape[0] == 50 else value
            for name, value in model.state_dict().items()
        }
        moved.load_state_dict(state)
    torch.testing.assert_close(
        scores(moved, renamed), scores(model, small.batch)[:, order], rtol=1e-4, atol=1e-5
    )


def board(is_rated):
    """Users of two kinds, each with some of the even or odd items; rated: some of all items."""
    rng = np.random.default_rng(0)
    kinds = [n % 2 for n in range(120)]
    if is_rated:
        items = [sorted(rng.permutation(20)[:12].tolist()) for _ in kinds]
    else:
        items = [sorted((rng.permutation(10)[:6] * 2 + kind).tolist()) for kind in kinds]
    values = [
        [5.0 if item % 2 == kind else 1.0 for item in row]
        for row, kind in zip(items, kinds, strict=True)
    ]
    return Small.of(items, values, 20), torch.tensor(kinds)


@pytest.mark.parametrize(
    "config", [c for c in CASES if not isinstance(c, PopularityConfig)], ids=repr
)
def test_learns_a_checkerboard(config):
    """What a user of either kind has not met: the user's own color must come first."""
    is_rated = config.spec.output == "ratings"
    world, kinds = board(is_rated)
    model = trained(config, world)
    score = scores(model, world.batch)
    is_own = torch.arange(20) % 2 == kinds[:, None]
    is_new = torch.ones(120, 20, dtype=torch.bool)
    is_new[world.batch.row_N, world.batch.item_N] = False
    if is_rated:
        right = ((score > 3.0) == is_own)[is_new].float().mean()
    else:
        best = score.masked_fill(~is_new, -torch.inf).topk(4).indices
        right = is_own.gather(1, best).float().mean()
    assert right > 0.95


def trained(config, world):
    """A model that scores, trained on all there is."""
    if config.spec.scheme == "closed_form" and hasattr(config, "solve"):
        return filled(config, world)
    step, batch = step_of(config, world, block_items=9)
    engine = LocalEngine(step, OptimizerConfig(learning_rate=0.02))
    for epoch in range(120):
        engine.begin_epoch(epoch)
        engine.train_batch(batch, batch, CounterRng.of(0, epoch), step=epoch, num_users=120)
        engine.end_epoch(epoch)
        if config.spec.scheme == "two_sided":
            with torch.no_grad():
                found = (
                    step.model.encode_users(world.batch),
                    step.model.encode_items(of_items(world)),
                )
            step.model.feed_codes(*found, CounterRng.of(0, epoch))
    if config.spec.scheme in ("user_rows", "closed_form"):
        return step.model
    model = config.build(world.catalog)
    model.load_state_dict(scoring(config, step.model, world))
    return model


@every_model
def test_weights_round_trip_exactly(config, small):
    model, other = config.build(small.catalog), config.build(small.catalog)
    other.load_state_dict(model.state_dict())
    assert torch.equal(scores(model, small.batch), scores(other, small.batch))
