"""The battery: what every model in the union must do."""

from typing import get_args

import numpy as np
import pytest
import torch

from distrib.batch import Batch
from distrib.models import ModelConfig
from distrib.models.conv4rec import Conv4RecConfig
from distrib.models.mult_vae import MultVaeConfig
from distrib.noise import Noise
from distrib.objectives import MultinomialConfig, RatingClassesConfig
from distrib.train.engine import LocalEngine
from distrib.train.optimizer import OptimizerConfig
from distrib.train.step import TrainStep, total
from distrib.vocabulary import Catalogue

CASES = [
    Conv4RecConfig(latent_width=8),
    Conv4RecConfig(latent_width=8, decoder="mlp", channel_width=2),
    MultVaeConfig(hidden_width=16, latent_width=8),
]
OBJECTIVES = {"scores": MultinomialConfig(anneal_steps=10), "outcomes": RatingClassesConfig()}
every_model = pytest.mark.parametrize("config", CASES, ids=repr)


def step_of(config, catalogue, block_items=17):
    torch.manual_seed(0)
    objective = OBJECTIVES[config.gives].build(catalogue)
    return TrainStep(config.build(catalogue), objective, block_items=block_items)


def scores(model, batch):
    with torch.no_grad():
        output = model.decode(model.encode(batch), slice(None)).float()
        return model.ranking_score(output)


def test_every_model_has_a_case():
    union, *_ = get_args(ModelConfig)
    assert {type(case) for case in CASES} == set(get_args(union))


@every_model
def test_the_configuration_survives_json(config):
    assert type(config).model_validate_json(config.model_dump_json()) == config


@every_model
def test_one_finite_score_per_item_also_for_an_empty_history(config, small):
    model = config.build(small.catalogue)
    score = scores(model, Batch.from_lists([[], [1, 2]], [[], [5.0, 1.0]]))
    assert score.shape == (2, 50)
    assert score.dtype == torch.float32
    assert score.isfinite().all()


@every_model
def test_a_user_scores_the_same_alone_and_in_a_batch(config, small):
    model = config.build(small.catalogue)
    together = scores(model, small.batch)
    alone = torch.cat([scores(model, small.users([n])) for n in range(37)])
    # Sums over another batch size may be ordered differently: float32 rounding.
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@every_model
def test_a_part_of_the_items_decodes_as_in_the_whole(config, small):
    model = config.build(small.catalogue)
    state = model.encode(small.batch)
    chosen = torch.tensor([3, 41, 7])
    whole = model.decode(state, slice(None))
    torch.testing.assert_close(model.decode(state, chosen), whole[:, chosen], rtol=1e-5, atol=1e-5)


@every_model
def test_inference_is_a_pure_function_of_the_history(config, small):
    model = config.build(small.catalogue)
    stranger = small.batch._replace(user_B=torch.full((37,), -1))
    assert torch.equal(scores(model, small.batch), scores(model, stranger))


@every_model
def test_training_depends_on_the_noise_only_through_its_key(config, small):
    step = step_of(config, small.catalogue)

    def loss(noise):
        return total(step(small.batch, small.batch, noise, 5)).item()

    assert loss(Noise.of(0, 0)) == loss(Noise.of(0, 0))
    assert loss(Noise.of(0, 0)) != loss(Noise.of(0, 1))


@every_model
def test_the_loss_reaches_every_parameter(config, small):
    step = step_of(config, small.catalogue)
    total(step(small.batch, small.batch, Noise.of(0, 0), 5)).backward()
    for name, parameter in step.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@every_model
def test_permuting_items_permutes_scores(config, small):
    order = torch.from_numpy(np.random.default_rng(0).permutation(50))
    model = config.build(small.catalogue)
    moved = config.build(small.catalogue)
    state = {
        name: value[order] if value.ndim and value.shape[0] == 50 else value
        for name, value in model.state_dict().items()
    }
    moved.load_state_dict(state)
    place = torch.argsort(order)
    renamed = small.batch._replace(item_N=place[small.batch.item_N])
    torch.testing.assert_close(
        scores(moved, renamed), scores(model, small.batch)[:, order], rtol=1e-4, atol=1e-5
    )


@every_model
def test_learns_a_checkerboard(config):
    """Users of two kinds, each with half of the even or odd items: the rest must rank first."""
    rng = np.random.default_rng(0)
    kinds = [n % 2 for n in range(120)]
    items = [sorted((rng.permutation(10)[:6] * 2 + kind).tolist()) for kind in kinds]
    batch = Batch.from_lists(items, [[5.0] * 6 for _ in items], range(120))
    counts = np.zeros((20, 5), dtype=np.int64)
    counts[:, 4] = np.bincount(batch.item_N.numpy(), minlength=20)
    step = step_of(config, Catalogue(20, (1.0, 2.0, 3.0, 4.0, 5.0), counts, 120), block_items=9)
    engine = LocalEngine(step, OptimizerConfig(learning_rate=0.02))
    for epoch in range(80):
        engine.train_batch(batch, batch, Noise.of(0, epoch), step=epoch, num_users=120)
    score = scores(step.model, batch)
    score[batch.row_N, batch.item_N] = -torch.inf
    best = score.topk(4).indices
    right = (best % 2 == torch.tensor(kinds)[:, None]).float().mean()
    assert right > 0.95


@every_model
def test_weights_round_trip_exactly(config, small):
    model, other = config.build(small.catalogue), config.build(small.catalogue)
    other.load_state_dict(model.state_dict())
    assert torch.equal(scores(model, small.batch), scores(other, small.batch))
