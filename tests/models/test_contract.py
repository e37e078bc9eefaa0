"""The battery: what every model in the union must do."""

from typing import get_args

import numpy as np
import pytest
import torch

from distrib.batch import Batch
from distrib.checkpoint.bundle import restored
from distrib.models import (
    AutoRecConfig,
    BiasedMfConfig,
    Conv4RecConfig,
    ConvNcfConfig,
    DeepFmConfig,
    EaseConfig,
    ElsaConfig,
    GmfConfig,
    Gru4RecConfig,
    ItemKnnConfig,
    MlpConfig,
    ModelConfig,
    MultDaeConfig,
    MultVaeConfig,
    NeuMfConfig,
    PopularityConfig,
    RecVaeConfig,
    SasRecConfig,
    VaeBmfConfig,
    YoutubeDnnConfig,
)
from distrib.models.capabilities import EncodesItems, TiedLinear, begin_epoch, phases_of
from distrib.rng import CounterRng
from distrib.training.engines.local import LocalEngine
from distrib.training.optimizer import OptimizerConfig
from distrib.training.schemes import SCHEMES, is_iterative, iterative_scheme_of
from distrib.training.schemes.closed_form import SolvesGram
from distrib.training.schemes.gram import partial_gram
from distrib.training.step import total
from tests import in_process
from tests.conftest import Small, rows_of
from tests.in_process import (
    exported,
    feed_of,
    filled,
    run_of,
    vocabulary_of,
    whole_batch,
)

CASES = [
    Conv4RecConfig(latent_width=8, rating_width=4),
    Conv4RecConfig(latent_width=8, rating_width=0, encoder="dense", scale="history"),
    Conv4RecConfig(latent_width=8, rating_width=0, decoder="linear"),
    Conv4RecConfig(latent_width=8, rating_width=0, decoder="mlp", channel_width=2),
    MultVaeConfig(hidden_width=16, latent_width=8),
    MultVaeConfig(hidden_width=16, latent_width=8, input="ratings"),
    MultDaeConfig(latent_width=8),
    MultDaeConfig(latent_width=8, input="ratings"),
    RecVaeConfig(hidden_width=16, latent_width=8),
    ElsaConfig(latent_width=8),
    AutoRecConfig(side="users", hidden_width=16),
    AutoRecConfig(side="users", hidden_width=16, hidden="relu", output="sigmoid"),
    AutoRecConfig(side="items", hidden_width=16),
    AutoRecConfig(side="items", hidden_width=16, centering="means"),
    AutoRecConfig(side="users", hidden_width=16, centering="means"),
    BiasedMfConfig(latent_width=8),
    EaseConfig(penalty=10.0),
    EaseConfig(penalty=10.0, num_neighbors=50),
    ItemKnnConfig(num_neighbors=50),
    PopularityConfig(),
    VaeBmfConfig(latent_width=8, branch_width=8, hidden_width=8),
    VaeBmfConfig(
        latent_width=8,
        branch_width=8,
        hidden_width=8,
        latent="gated",
        attention="global",
        likelihood="analytic",
        centering="means",
    ),
]
CASES += [
    GmfConfig(latent_width=8),
    MlpConfig(latent_width=8, hidden_widths=(8, 4)),
    NeuMfConfig(gmf_width=4, mlp_width=8, hidden_widths=(8, 4)),
    ConvNcfConfig(latent_width=8, channels=4),
]
CASES += [
    SasRecConfig(max_length=9, latent_width=8, heads=2),
    SasRecConfig(max_length=9, latent_width=8, block="pre_norm", tied=False),
    SasRecConfig(max_length=9, latent_width=8, block="gated", hidden_width=12),
    Gru4RecConfig(max_length=9, latent_width=8, dropout=0.2, input_dropout=0.1),
    YoutubeDnnConfig(max_length=9, targets="every", latent_width=8, hidden_widths=(16,)),
    DeepFmConfig(max_length=9, targets="every", latent_width=4, hidden_widths=(16,), dropout=0.3),
]
every_model = pytest.mark.parametrize("config", CASES, ids=repr)
TRAINED = [case for case in CASES if is_iterative(run_of(case))]
every_trained_model = pytest.mark.parametrize("config", TRAINED, ids=repr)


def step_of(config, small, block_items=17):
    run = run_of(config)
    return in_process.step_of(run, small, block_items), whole_batch(run, small)


def scores(model, batch):
    with torch.no_grad():
        output = model.decode(model.encode(batch), slice(None)).float()
        return model.output.ranking_score(output)


def test_every_model_has_a_case():
    union, *_ = get_args(ModelConfig)
    assert {type(case) for case in CASES} == set(get_args(union))


@every_model
def test_the_specification_is_that_of_the_model(config, small):
    model, spec = config.build(small.catalog), config.spec
    assert spec.scheme in SCHEMES
    assert model.output.kind == spec.output
    assert isinstance(model, EncodesItems) == spec.encodes_items
    assert isinstance(model, TiedLinear) == spec.is_tied
    assert (spec.objective is not None) == is_iterative(run_of(config))


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
    is_noisy &= config.spec.output != "log_odds"

    def loss(rng):
        return total(step(batch.inputs, batch.target, rng, 5)).item()

    assert loss(CounterRng.of(0, 0)) == loss(CounterRng.of(0, 0))
    assert (loss(CounterRng.of(0, 0)) != loss(CounterRng.of(0, 1))) == is_noisy


@every_trained_model
def test_the_loss_reaches_every_parameter_in_its_turn(config, small):
    step, batch = step_of(config, small)
    for epoch in range(4):
        phase = begin_epoch(step.model, epoch)
        step.zero_grad()
        total(step(batch.inputs, batch.target, CounterRng.of(0, 0), 5)).backward()
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
    if isinstance(config, SolvesGram):
        moved.load_state_dict(config.solve(partial_gram(rows_of(renamed), 50)))
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
    """Users of two kinds, each with some of the even or odd items; rated: some of all items.

    In random order, which is all the same to most models.
    """
    rng = np.random.default_rng(0)
    kinds = [n % 2 for n in range(120)]
    if is_rated:
        items = [sorted(rng.permutation(20)[:12].tolist()) for _ in kinds]
    else:
        items = [(rng.permutation(10)[:6] * 2 + kind).tolist() for kind in kinds]
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
    is_rated = config.spec.output in {"ratings", "log_odds"}
    world, kinds = board(is_rated)
    model = trained(config, world)
    score = scores(model, world.batch)
    is_own = torch.arange(20) % 2 == kinds[:, None]
    is_new = torch.ones(120, 20, dtype=torch.bool)
    is_new[world.batch.row_N, world.batch.item_N] = False
    if is_rated:
        middle = 3.0 if config.spec.output == "ratings" else score.mean(1, keepdim=True)
        right = ((score > middle) == is_own)[is_new].float().mean()
    else:
        best = score.masked_fill(~is_new, -torch.inf).topk(4).indices
        right = is_own.gather(1, best).float().mean()
    assert right > 0.95


def trained(config, world):
    """A model that scores, trained on all there is."""
    run = run_of(config)
    if not is_iterative(run):
        return filled(config, world)
    step, _ = step_of(config, world, block_items=9)
    engine = LocalEngine(step, OptimizerConfig(learning_rate=0.02))
    feed = feed_of(iterative_scheme_of(run), run, world)
    state = {}
    for epoch in range(120):
        engine.begin_epoch(epoch)
        for batch in feed.batches(epoch):
            engine.train_batch(batch, CounterRng.of(0, epoch), step=epoch)
        engine.end_epoch(epoch)
        state = exported(run, world, step.model, engine.weights(), epoch=epoch)
    return restored(config, vocabulary_of(world), state)


@every_model
def test_weights_round_trip_exactly(config, small):
    model, other = filled(config, small), config.build(Small(seed=1).catalog)
    assert not torch.equal(scores(model, small.batch), scores(other, small.batch))
    other.load_state_dict(model.state_dict())
    assert torch.equal(scores(model, small.batch), scores(other, small.batch))
