"""Losses of the next item against their closed forms, on scores that are computed plainly."""

import math

import pytest
import torch

from distrib.batch import Batch
from distrib.models import SasRecConfig
from distrib.objectives import BprMaxConfig, GbceConfig, SoftmaxConfig, Top1MaxConfig
from distrib.objectives.base import Chunks, LossContext
from distrib.rng import CounterRng
from distrib.sequences import with_targets

HISTORIES = [[3, 1, 4, 15, 5], [9, 2], [6], [5, 35, 8, 9, 7], [20, 21, 3]]


@pytest.fixture
def world(small):
    torch.manual_seed(0)
    model = SasRecConfig(max_length=9, latent_width=8).build(small.catalog).double()
    batch = Batch.from_lists(HISTORIES, users=[1, 2, 3, 4, 5])
    inputs, target = with_targets(batch, 9, every=True)
    users = model.encode(inputs)
    return model, users, target, model.decode(users, slice(None)).float()


def context(step=3):
    return LossContext(CounterRng.of(0, 0), step, Chunks(7))


def loss_of(config, world, small, **special):
    model, users, target, _ = world
    return config.build(small.catalog)(model, users, target, context(**special))


def weighted(world, weight_I):
    """-log of the target's share, where each other item stands for so many."""
    _, _, target, score_RI = world
    found = []
    for score_I, item in zip(score_RI, target.item_N.tolist(), strict=True):
        others = torch.arange(len(score_I)) != item
        total = score_I[item].exp() + (weight_I * score_I.exp())[others].sum()
        found.append(total.log() - score_I[item])
    return torch.stack(found)


def test_the_full_softmax_is_that_of_all_items(world, small):
    _, _, target, score_RI = world
    wanted = -score_RI.log_softmax(1).gather(1, target.item_N[:, None])[:, 0]
    torch.testing.assert_close(loss_of(SoftmaxConfig(), world, small)[0], wanted)


@pytest.mark.parametrize("power", [0.0, 0.7])
def test_a_sampled_softmax_weighs_each_item_by_draws_over_expected_ones(power, world, small):
    config = SoftmaxConfig(against="sampled", num_sampled=40, sampling_power=power)
    count_I = torch.from_numpy(small.catalog.train_count_IL.sum(1)).double()
    share_I = (1 + count_I) ** power / ((1 + count_I) ** power).sum()
    sampler = config.build(small.catalog).item_sampler
    item_J, times_J = sampler.items(CounterRng.of(0, 0), 3, torch.device("cpu"))
    weight_I = torch.zeros(50, dtype=torch.float64)
    weight_I[item_J] = times_J.double() / (40 * share_I[item_J])
    torch.testing.assert_close(
        loss_of(config, world, small)[0], weighted(world, weight_I.float()), rtol=1e-4, atol=1e-4
    )


def test_samples_are_drawn_by_their_probability_and_the_estimate_is_unbiased(world, small):
    """Sampling precedes the softmax: the mean of the normalizers is that of all items."""
    _, _, target, score_RI = world
    config = SoftmaxConfig(against="sampled", num_sampled=20, sampling_power=0.5)
    target_R = score_RI.gather(1, target.item_N[:, None])[:, 0]
    sums = [
        (loss_of(config, world, small, step=step)[0] + target_R).detach().exp()
        for step in range(800)
    ]
    found, wanted = torch.stack(sums), score_RI.exp().sum(1)
    error = found.std(0) / 800**0.5
    assert ((found.mean(0) - wanted).abs() < 4.5 * error).all()


def test_targets_of_the_batch_are_corrected_by_their_popularity(world, small):
    _, _, target, _ = world
    count_I = torch.from_numpy(small.catalog.train_count_IL.sum(1)).double()
    share_I = (1 + count_I) / (1 + count_I).sum()
    times_I = torch.bincount(target.item_N, minlength=50).double()
    weight_I = times_I / (len(target.item_N) * share_I)
    found = loss_of(SoftmaxConfig(against="batch"), world, small)[0]
    torch.testing.assert_close(found, weighted(world, weight_I.float()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("starts_at_rest", [False, True])
@pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
def test_the_generalized_cross_entropy_is_that_of_the_paper(
    calibration, starts_at_rest, is_shared, world, small
):
    _, _, target, score_RI = world
    config = GbceConfig(
        num_sampled=5, calibration=calibration, shared=is_shared, starts_at_rest=starts_at_rest
    )
    found_TR = loss_of(config, world, small)
    rate = 5 / 49
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    assert beta == pytest.approx({0.0: 1.0, 1.0: rate}.get(calibration, beta))
    if starts_at_rest:
        score_RI = score_RI + math.log(beta / 5)
    probability_R = torch.sigmoid(score_RI.gather(1, target.item_N[:, None]))[:, 0]
    torch.testing.assert_close(found_TR[0], -(probability_R**beta).log(), rtol=1e-4, atol=1e-5)
    drawn_RK = config.build(small.catalog)._draw(target, places(target), context())
    if is_shared:
        first = {int(u): row for row, u in reversed(list(enumerate(target.user_B)))}
        drawn_RK = torch.stack([drawn_RK[first[int(u)]] for u in target.user_B])
    for row, (score_I, drawn_K) in enumerate(zip(score_RI, drawn_RK.tolist(), strict=True)):
        own = {int(i) for i, u in zip(target.item_N, target.user_B, strict=True)
               if u == target.user_B[row]}  # fmt: skip
        left = [item for item in drawn_K if item not in own]
        wanted = sum(-math.log(1 - torch.sigmoid(score_I[item]).item()) for item in left)
        assert found_TR[1, row].item() == pytest.approx(wanted, rel=1e-4)


def places(target):
    seen = {}
    return torch.tensor([seen.setdefault(int(u), []).append(0) or len(seen[int(u)]) - 1
                         for u in target.user_B])  # fmt: skip


def sampled(world, small, config):
    """Scores of targets and of drawn items, and the softmax over the latter, row by row."""
    _, _, target, score_RI = world
    sampler = config.build(small.catalog).sampler
    item_J, times_J = sampler.items(CounterRng.of(0, 0), 3, torch.device("cpu"))
    drawn = item_J.repeat_interleave(times_J.long())
    for score_I, item in zip(score_RI, target.item_N.tolist(), strict=True):
        score_S = score_I[drawn[drawn != item]]
        yield score_I[item], score_S


@pytest.mark.parametrize("elu", [0.0, 1.0])
def test_bpr_max_is_that_of_the_paper(elu, world, small):
    config = BprMaxConfig(num_sampled=30, score_penalty=0.3, elu=elu)
    found_TR = loss_of(config, world, small)
    for row, (score, score_S) in enumerate(sampled(world, small, config)):
        if elu:
            score, score_S = torch.nn.functional.elu(score), torch.nn.functional.elu(score_S)
        weight_S = score_S.softmax(0)
        wanted = -(weight_S * torch.sigmoid(score - score_S)).sum().log()
        penalty = 0.3 * (weight_S * score_S**2).sum()
        torch.testing.assert_close(found_TR[:, row], torch.stack([wanted, penalty]))


def test_top1_max_is_that_of_the_paper(world, small):
    config = Top1MaxConfig(num_sampled=30)
    found_TR = loss_of(config, world, small)
    for row, (score, score_S) in enumerate(sampled(world, small, config)):
        below_S = torch.sigmoid(score_S - score) + torch.sigmoid(score_S**2)
        torch.testing.assert_close(found_TR[0, row], (score_S.softmax(0) * below_S).sum())


@pytest.mark.parametrize(
    "config",
    [SoftmaxConfig(), SoftmaxConfig(against="batch"), GbceConfig(num_sampled=9, shared=True),
     BprMaxConfig(num_sampled=9, elu=0.0), Top1MaxConfig(num_sampled=9)],
    ids=lambda config: config.name,
)  # fmt: skip
def test_extreme_scores_give_no_infinite_loss_and_no_nan(config, world, small):
    """A sigmoid of a large difference is 0 in float32, and its logarithm minus infinity."""
    model, _, target, _ = world
    users = model.encode(
        with_targets(Batch.from_lists(HISTORIES, users=[1, 2, 3, 4, 5]), 9, every=True)[0]
    )
    huge = users._replace(latent_RZ=users.latent_RZ * 1e4)
    loss = config.build(small.catalog)(model, huge, target, context()).sum()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("config", [BprMaxConfig(num_sampled=1), Top1MaxConfig(num_sampled=1)])
def test_a_target_that_alone_was_drawn_is_no_sample_of_itself(config, world, small):
    model, users, target, _ = world
    objective = config.build(small.catalog)
    item_J, _ = objective.sampler.items(CounterRng.of(0, 0), 3, torch.device("cpu"))
    only = target._replace(item_N=item_J.expand_as(target.item_N))
    found_TR = objective(model, users, only, context())
    assert not found_TR.any()
    found_TR.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
