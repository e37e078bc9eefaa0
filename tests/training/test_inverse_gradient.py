"""The inverse gradient: decisions, sketches, ranks, refusals."""

import itertools
import json
import multiprocessing

import numpy as np
import pytest
import torch

from distrib.models import AutoRecConfig, GmfConfig, MultVaeConfig, VaeBmfConfig
from distrib.objectives import (
    InverseDualRowsConfig,
    InverseGradientConfig,
    InverseGradientRowsConfig,
    MultinomialConfig,
    RatingClassesConfig,
    SquaredErrorConfig,
)
from distrib.objectives.base import Recorder
from distrib.rng import CounterRng
from distrib.training.config import EngineConfig
from distrib.training.engines.local import LocalEngine
from distrib.training.optimizer import OptimizerConfig
from distrib.training.preflight.checks import run_faults
from distrib.training.schemes import iterative_scheme_of
from distrib.training.schemes.look_ahead import (
    COSINE,
    DIRECT,
    INVERSE,
    NAMES,
    NOT_FINITE,
    STAY,
    Exact,
    FirstOrder,
    GradientSketch,
    best_choice,
    decide,
)
from distrib.training.schemes.meta_rows import held_out_entries
from tests.in_process import feed_of, run_of, step_of
from tests.training.gradient_ranks import CASES, run_rank

NAN = float("nan")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.training.gradient_ranks"])
PLAIN = EngineConfig(zero_stage=0, precision="fp32")
ROWS = InverseGradientRowsConfig(base=MultinomialConfig(anneal_steps=10), warmup_steps=0)
DUAL = InverseDualRowsConfig(base=SquaredErrorConfig())


def test_the_best_of_three_is_taken_and_doubt_stays():
    assert best_choice(1.0, 2.0, 3.0) == DIRECT
    assert best_choice(2.0, 1.0, 3.0) == INVERSE
    assert best_choice(2.0, 3.0, 1.0) == STAY
    assert best_choice(1.0, 1.0, 1.0) == STAY
    assert best_choice(1.0, 1.0, 2.0) == INVERSE
    assert best_choice(NAN, NAN, NAN) == STAY


def test_the_sign_of_the_inner_product_decides_outside_the_dead_zone():
    assert decide(0.5, 1.0, 1.0, 0.1) == (DIRECT, 0.5)
    assert decide(-0.5, 1.0, 1.0, 0.1) == (INVERSE, -0.5)
    assert decide(0.05, 1.0, 1.0, 0.1) == (STAY, 0.05)
    assert decide(0.0, 0.0, 1.0, 0.0) == (STAY, 0.0)
    assert decide(NAN, 1.0, 1.0, 0.0).choice == STAY


def quadratic(center, start):
    """A loss around a center, at a parameter."""
    held = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    return held, lambda: (held - torch.tensor(center, dtype=torch.float64)).square().sum()


@pytest.mark.parametrize(("target", "choice"), [(2.0, DIRECT), (-2.0, INVERSE), (0.0, STAY)])
@pytest.mark.parametrize("by_sign", [False, True])
def test_the_exact_form_moves_to_the_best_of_three(target, choice, by_sign):
    held, unlabeled = quadratic([1.0, 1.0], [0.0, 0.0])  # its descent leads towards 1
    wanted = torch.full((2,), target, dtype=torch.float64)
    recorder = Recorder()
    Exact(0.1, by_sign=by_sign).move(
        4.0 * unlabeled(),
        4,
        lambda: ((held - wanted).square().sum(), 3),
        [held],
        recorder,
    )
    step = 0.1 if by_sign else 0.2  # the gradient of the mean is -2
    torch.testing.assert_close(held.detach(), choice * torch.full_like(wanted, step))
    assert recorder.sums[f"share {NAMES[choice]}"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("bad", [NAN, float("inf")])
def test_a_gradient_that_is_not_finite_stays_and_is_counted(bad):
    held = torch.nn.Parameter(torch.ones(3))
    broken = (held * torch.tensor([bad, 1.0, 1.0])).sum()
    recorder = Recorder()
    Exact(0.1, by_sign=False).move(broken, 1, lambda: (held.sum(), 3), [held], recorder)
    assert held.tolist() == [1.0, 1.0, 1.0]
    look_ahead = FirstOrder(InverseGradientConfig(form="first_order"), is_sketched=False)
    one, other = look_ahead.combined(held.square().sum(), broken, [held], recorder, 0.5)
    (one + other).backward()
    assert held.grad.tolist() == [2.0, 2.0, 2.0]
    assert other.item() == 0.0
    assert recorder.sums["share stay"].tolist() == [2.0, 2.0]
    assert recorder.sums[NOT_FINITE].tolist() == [2.0, 2.0]
    assert recorder.sums[COSINE].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("num_sampled", [1, 4])
@pytest.mark.parametrize("form", ["exact", "first_order"])
def test_a_looking_step_is_a_whole_supervised_one_whatever_is_sampled(form, num_sampled, small):
    """Plain gradient descent by the mean over the held-out labels, where nothing is tried."""
    special = {"look_ahead_rate": 1e-12} if form == "exact" else {"ratio": 0.0}
    objective = InverseGradientConfig(form=form, num_sampled=num_sampled, hold_out=0.3, **special)
    run = run_of(GmfConfig(latent_width=4), objective)
    batches = feed_of(iterative_scheme_of(run), run, small).batches(0)
    batch = next(batch for batch in batches if batch.inputs.phase == 1)
    step = step_of(run, small)
    engine = LocalEngine(step, OptimizerConfig(name="sgd", learning_rate=1.0))
    sign_N = small.catalog.feedback.sign(batch.target.value_N)
    share_liked = (sign_N > 0).sum() / (sign_N != 0).sum()  # log-odds are 0 at first
    engine.train_batch(batch, CounterRng.of(0, 0), step=0)
    assert step.model.bias_1.item() == pytest.approx(float(share_liked) - 0.5, abs=1e-2)


def test_without_held_out_pairs_nothing_moves():
    held, unlabeled = quadratic([1.0], [0.0])
    nothing = torch.zeros((), dtype=torch.float64)
    Exact(0.1, by_sign=False).move(unlabeled(), 1, lambda: (nothing, 0), [held], Recorder())
    assert held.item() == 0.0


@pytest.mark.parametrize("is_sketched", [False, True])
@pytest.mark.parametrize(("target", "choice"), [(2.0, DIRECT), (-2.0, INVERSE)])
def test_the_first_order_form_carries_the_gradient_of_the_combination(is_sketched, target, choice):
    held, unlabeled = quadratic([1.0] * 5, [0.0] * 5)
    held_out = (held - target).square().sum()
    config = InverseGradientConfig(form="sketched", sketch_size=64)
    look_ahead = FirstOrder(config, is_sketched=is_sketched)
    one, other = look_ahead.combined(held_out, unlabeled(), [held], Recorder(), 0.5)
    (one + other).backward()
    wanted = -2.0 * target + choice * 0.5 * -2.0
    torch.testing.assert_close(held.grad, torch.full_like(held.grad, wanted))
    assert one.item() == pytest.approx(5 * target**2)
    assert other.item() == pytest.approx(choice * 0.5 * 5.0)


def test_first_order_decisions_agree_with_exact_ones():
    """On losses of curvature, the sign of the product is what trying both directions says."""
    generator = torch.Generator().manual_seed(0)
    agreed = 0
    for _ in range(200):
        centers = torch.randn(2, 6, generator=generator, dtype=torch.float64)
        held = torch.nn.Parameter(torch.randn(6, generator=generator, dtype=torch.float64))
        losses = [(held - center).pow(4).sum() for center in centers]
        (g,), (h,) = (torch.autograd.grad(loss, held) for loss in losses)
        first = decide(float(g @ h), float(g @ g), float(h @ h), 0.0).choice
        tried = [
            float((held.detach() - choice * 1e-3 * g - centers[1]).pow(4).sum())
            for choice in (DIRECT, INVERSE, STAY)
        ]
        agreed += first == best_choice(*tried)
    assert agreed >= 199


def test_a_sketch_is_linear_and_its_products_are_unbiased():
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.zeros(40, 30), torch.zeros(7)]
    draws = [[torch.randn(p.shape, generator=generator) for p in parameters] for _ in range(2)]
    sketch = GradientSketch(64)
    one, other = (sketch.of(found, parameters) for found in draws)
    both = sketch.of([a + b for a, b in zip(*draws, strict=True)], parameters)
    torch.testing.assert_close(one + other, both)
    torch.testing.assert_close(sketch.of([None, draws[0][1]], parameters)[7:], torch.zeros(57))
    errors = []
    for _ in range(400):
        vector = torch.randn(40, 30, generator=generator)
        found = sketch.of([vector, None], parameters)
        errors.append(float(found @ found / vector.square().sum()) - 1.0)
    assert abs(np.mean(errors)) < 3 * np.std(errors) / 400**0.5 + 0.01
    assert np.std(errors) < 1.3 * (2 / 64) ** 0.5


def test_what_a_step_communicates_is_what_the_form_says():
    config = InverseGradientConfig()
    assert FirstOrder(config, is_sketched=True).extra_bytes(10**9) == 32 * 1024
    assert FirstOrder(config, is_sketched=False).extra_bytes(1000) == 8000
    assert Exact.extra_bytes(1000) == 4 * 1001 + 32


@pytest.mark.parametrize("alternate", ["batches", "epochs"])
def test_phases_split_the_labels_and_only_the_second_samples(alternate, small):
    objective = InverseGradientConfig(hold_out=0.3, alternate=alternate)
    run = run_of(GmfConfig(latent_width=4), objective, batch_users=16)
    feed = feed_of(iterative_scheme_of(run), run, small)
    batches = list(feed.batches(0))
    phases = [batch.inputs.phase for batch in batches]
    if alternate == "epochs":
        assert phases == sorted(phases)
    else:
        share = sum(phases) / len(phases)
        assert all(abs(sum(phases[:n]) - share * n) <= 1.0 for n in range(len(phases)))
    pairs = {0: set(), 1: set()}
    for batch in batches:
        is_sampled_N = batch.target.value_N.isnan()
        assert is_sampled_N.any() == (batch.inputs.phase == 1)
        kept = batch.target.keep(~is_sampled_N)
        users = kept.user_B[kept.row_N].tolist()
        pairs[batch.inputs.phase] |= set(zip(users, kept.item_N.tolist(), strict=True))
    sign_N = small.catalog.feedback.sign(small.batch.value_N)
    labeled = small.batch.keep(sign_N != 0)
    everything = set(zip(labeled.row_N.tolist(), labeled.item_N.tolist(), strict=True))
    assert pairs[0] | pairs[1] == everything
    assert not pairs[0] & pairs[1]
    assert 0.2 < len(pairs[1]) / len(everything) < 0.4
    for first in range(len(batches) + 1):
        later = list(feed.batches(0, first_step=first))
        assert [batch.inputs.phase for batch in later] == phases[first:]
        for batch, wanted in zip(later, batches[first:], strict=True):
            assert torch.equal(batch.target.item_N, wanted.target.item_N)


def test_held_out_entries_are_in_no_input_and_leave_something_to_read(small):
    config = ROWS.model_copy(update={"hold_out": 0.5, "min_history": 4})
    is_held_out_N = held_out_entries(small.batch, config)
    kept = small.batch.keep(~is_held_out_N)
    assert ((kept.length_B > 0) | (small.batch.length_B == 0)).all()
    is_short_B = small.batch.length_B < 4
    assert not is_held_out_N[is_short_B[small.batch.row_N]].any()
    long_N = (~is_short_B)[small.batch.row_N]
    assert 0.3 < is_held_out_N[long_N].float().mean() < 0.6
    alone = held_out_entries(small.users([5]), config)
    assert torch.equal(alone, is_held_out_N[small.batch.row_N == 5])
    other = held_out_entries(small.batch, config.model_copy(update={"hold_out_seed": 1}))
    assert not torch.equal(other, is_held_out_N)


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        (GmfConfig(latent_width=4), InverseGradientConfig(hold_out=0.4, look_ahead_rate=0.1)),
        (MultVaeConfig(hidden_width=8, latent_width=4), ROWS),
    ],
    ids=["pairs", "rows"],
)
def test_a_restart_within_an_epoch_reproduces_the_next_decisions_bit_for_bit(
    model, objective, small
):
    run = run_of(model, objective, batch_users=8)

    def updates(engine, first, last):
        feed = feed_of(iterative_scheme_of(run), run, small)
        found = []
        for place, batch in enumerate(
            itertools.islice(feed.batches(0, first), last - first), start=first
        ):
            update = engine.train_batch(batch, CounterRng.of(0, 0), step=place)
            found.append({name: sums.tolist() for name, sums in update.recorded.items()})
        return found

    whole = LocalEngine(step_of(run, small), OptimizerConfig(learning_rate=0.01))
    last = feed_of(iterative_scheme_of(run), run, small).num_steps(0)
    wanted = updates(whole, 0, last)
    first = LocalEngine(step_of(run, small), OptimizerConfig(learning_rate=0.01))
    updates(first, 0, last - 2)
    second = LocalEngine(step_of(run, small), OptimizerConfig(learning_rate=0.01))
    second.step_module.load_state_dict(first.step_module.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert updates(second, last - 2, last) == wanted[-2:]
    assert any("share direct" in recorded for recorded in wanted[-2:])
    for name, weight in whole.weights().items():
        assert torch.equal(second.weights()[name], weight)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradient")
    found = {}
    for world_size in (1, 2, 4):
        processes = [
            FORKS.Process(target=run_rank, args=(rank, world_size, folder))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)  # a rank without rows must not wait for ever
            assert process.exitcode == 0
        found[world_size] = [
            json.loads((folder / f"{world_size}-{rank}.json").read_text())
            for rank in range(world_size)
        ]
    return found


@pytest.mark.processes
@pytest.mark.parametrize("case", CASES)
def test_one_two_and_four_ranks_decide_alike_and_end_with_equal_parameters(case, ranks):
    (alone,) = ranks[1]
    choices = [tuple(choice) for choice in alone[case]["choices"] if choice]
    assert len({*choices}) >= 2  # else equality would say little
    for world_size in (2, 4):
        for rank in ranks[world_size]:
            assert rank[case]["choices"] == alone[case]["choices"]
            # Sketches are float32, so only their signs are exact; all else is float64.
            np.testing.assert_allclose(
                rank[case]["weights"], alone[case]["weights"], rtol=0, atol=1e-12
            )
    assert any(0 in rank[case]["counts"] for rank in ranks[4])


@pytest.mark.parametrize(
    ("model", "objective", "engine", "why"),
    [
        (GmfConfig(), InverseGradientConfig(), {"zero_stage": 1}, "moves whole parameters"),
        (GmfConfig(), InverseGradientConfig(), {"precision": "bf16"}, "moves whole parameters"),
        (GmfConfig(), InverseGradientConfig(form="sketched"), {"zero_stage": 3}, "whole gradients"),
        (GmfConfig(), InverseGradientConfig(), {"parallel": "items"}, "whole gradients"),
        (GmfConfig(), InverseGradientConfig(), {"micro_batch_users": 8}, "a whole update"),
        (MultVaeConfig(), ROWS, {"zero_stage": 3}, "no rank has whole gradients"),
        (
            MultVaeConfig(),
            ROWS.model_copy(update={"base": RatingClassesConfig()}),
            {},
            "objective.base = 'rating_classes' takes rating_classes",
        ),
        (VaeBmfConfig(), DUAL, {}, "of models of scheme 'user_rows'"),
        (AutoRecConfig(side="items"), DUAL, {}, "of models of scheme 'user_rows'"),
        (AutoRecConfig(side="items"), ROWS, {}, "of models of scheme 'user_rows'"),
        (MultVaeConfig(), InverseGradientConfig(), {}, "takes log_odds"),
    ],
)
def test_what_could_not_be_exact_is_refused(model, objective, engine, why):
    run = run_of(model, objective)
    config = PLAIN.model_copy(update=engine)
    faults = run_faults(run.model_copy(update={"engine": config}))
    assert any(why in fault for fault in faults), faults


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"ratio": 0.5}, "ratio has no effect with form = 'exact'"),
        ({"form": "sketched", "look_ahead": "sign"}, "look_ahead has no effect"),
    ],
)
def test_settings_of_another_form_are_refused(settings, why):
    with pytest.raises(ValueError, match=why):
        InverseGradientConfig(**settings)
