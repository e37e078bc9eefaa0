"""The inverse dual loss against numbers computed by hand, on pairs and on autoencoders."""

import math

import pytest
import torch

from distrib.batch import Batch
from distrib.feedback import Feedback
from distrib.models import Conv4RecConfig, MultVaeConfig
from distrib.objectives import (
    BinaryConfig,
    BprConfig,
    InverseDualConfig,
    InverseDualRowsConfig,
    LabeledConfig,
    MultinomialConfig,
    PositiveUnlabeledConfig,
    RatingClassesConfig,
    ReweightedConfig,
    SampledNegativesConfig,
    SquaredErrorConfig,
    TruncatedConfig,
)
from distrib.objectives.base import Chunks, LossContext, Recorder
from distrib.objectives.inverse_dual import (
    MEAN_WEIGHT,
    SHARE_LIKED,
    WEIGHT_BINS,
    class_weights,
    dual_loss,
    weight_bin,
)
from distrib.objectives.unlabeled_entries import EntryLosses, unlabeled_entries
from distrib.rng import CounterRng
from distrib.vocabulary import Catalog

GOLDEN = {  # power: logit, weight of like, loss, gradient
    2.0: [
        (0.0, 0.5, 0.6931, 0.0),
        (0.5, 0.8085, 0.5698, -0.1860),
        (1.0, 0.9462, 0.3671, -0.2151),
        (2.0, 0.9965, 0.1340, -0.1157),
        (-1.0, 0.0538, 0.3671, 0.2151),
    ],
    1.0: [
        (0.0, 0.5, 0.6931, 0.0),
        (0.5, 0.6726, 0.6378, -0.0502),
        (1.0, 0.8074, 0.5059, -0.0763),
        (2.0, 0.9437, 0.2396, -0.0629),
        (-1.0, 0.1926, 0.5059, 0.0763),
    ],
}


def dual_of(logit_N, power):
    return dual_loss(
        torch.nn.functional.softplus(-logit_N), torch.nn.functional.softplus(logit_N), power
    )


@pytest.mark.parametrize("power", GOLDEN)
def test_weights_losses_and_gradients_are_those_computed_by_hand(power):
    logit_N, weight_N, loss_N, gradient_N = torch.tensor(GOLDEN[power]).T
    logit_N = logit_N.clone().requires_grad_()
    found = dual_of(logit_N, power)
    found.loss_N.sum().backward()
    torch.testing.assert_close(found.like_weight_N, weight_N, atol=5e-5, rtol=0)
    torch.testing.assert_close(found.loss_N.detach(), loss_N, atol=5e-5, rtol=0)
    torch.testing.assert_close(logit_N.grad, gradient_N, atol=5e-5, rtol=0)


def test_the_boundary_repels_above_the_logarithm_of_two():
    logit_N = torch.tensor([1e-3], requires_grad=True, dtype=torch.float64)
    for power, slope in [(0.0, 0.25), (math.log(2), 0.0), (1.0, -0.111), (2.0, -0.471)]:
        (gradient,) = torch.autograd.grad(dual_of(logit_N, power).loss_N.sum(), logit_N)
        assert gradient.item() / 1e-3 == pytest.approx(slope, abs=1e-3)


def test_weights_stay_finite_for_any_logit():
    logit_N = torch.tensor([-1e4, -200.0, 0.0, 200.0, 1e4], requires_grad=True)
    found = dual_of(logit_N, 2.0)
    found.loss_N.sum().backward()
    assert found.loss_N.isfinite().all()
    assert found.like_weight_N.tolist() == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0])
    assert logit_N.grad.isfinite().all()


def test_weights_of_classes_are_those_computed_by_hand():
    loss_NC = torch.tensor([[0.1, 2.0, 3.0, 3.0, 4.0, 5.0]])
    wanted = torch.tensor([[0.9943, 0.0025, 0.0011, 0.0011, 0.0006, 0.0004]])
    torch.testing.assert_close(class_weights(loss_NC, 2.0), wanted, atol=5e-5, rtol=0)


class Scores:
    """A decoder of given scores, one for each pair."""

    def __init__(self, score_N):
        self.score_N = score_N

    def score_pairs(self, users, pairs):
        del users, pairs
        return self.score_N


CATALOG = Catalog(
    4, (1.0, 5.0), torch.ones(4, 2, dtype=torch.int64).numpy(), 2, 2, Feedback(3.0, 3.0)
)
NAN = float("nan")


def terms_of(config, scores, rows, step=0, recorder=None):
    """The terms of rows of ratings, one score for each."""
    items = [list(range(len(row))) for row in rows]
    target = Batch.from_lists(items, rows)
    score_N = torch.tensor(scores, requires_grad=True)
    context = LossContext(CounterRng.of(0, 0), step, Chunks(4), recorder=recorder)
    terms_TB = config.build(CATALOG)(Scores(score_N), (), target, context)
    (gradient_N,) = torch.autograd.grad(terms_TB.sum(), score_N)
    return terms_TB.detach(), gradient_N


def softplus(value):
    return math.log1p(math.exp(value))


def test_sampled_pairs_are_dislikes_or_nothing_or_both():
    scores, rows = [1.0, 0.5, -1.0], [[5.0, NAN], [1.0]]
    labeled = [softplus(-1.0), softplus(-1.0)]
    plain_TB, _ = terms_of(LabeledConfig(), [1.0, -1.0], [[5.0], [1.0]])
    assert plain_TB[0].tolist() == pytest.approx(labeled)
    sampled_TB, _ = terms_of(SampledNegativesConfig(), scores, rows)
    assert sampled_TB[0].tolist() == pytest.approx(labeled)
    assert sampled_TB[1].tolist() == pytest.approx([softplus(0.5), 0.0])
    recorder = Recorder()
    dual_TB, gradient_N = terms_of(InverseDualConfig(), scores, rows, recorder=recorder)
    assert dual_TB[0].tolist() == pytest.approx(labeled)
    assert dual_TB[1].tolist() == pytest.approx([0.5698, 0.0], abs=5e-5)
    assert gradient_N[1].item() == pytest.approx(-0.1860, abs=5e-5)
    assert recorder.sums[MEAN_WEIGHT].tolist() == pytest.approx([0.8085, 1.0], abs=5e-5)
    assert recorder.sums[SHARE_LIKED].tolist() == [1.0, 1.0]
    bins = [recorder.sums[weight_bin(place)][0].item() for place in range(WEIGHT_BINS)]
    assert bins == [0.0] * 8 + [1.0, 0.0]


def test_bpr_compares_likes_with_what_was_sampled_for_them():
    terms_TB, gradient_N = terms_of(BprConfig(), [1.0, 0.5, -1.0, 2.0], [[5.0, NAN], [1.0, NAN]])
    assert terms_TB[0].tolist() == pytest.approx([softplus(0.5 - 1.0), 0.0])
    slope = 1 / (1 + math.exp(0.5))
    assert gradient_N.tolist() == pytest.approx([-slope, slope, 0.0, 0.0])


def test_truncation_drops_the_worst_likes_by_a_growing_share():
    config = TruncatedConfig(drop_share=0.5, gradual_steps=10)
    assert [config.build(CATALOG).share(step) for step in (0, 5, 10, 99)] == [0.0, 0.25, 0.5, 0.5]
    scores, rows = [-3.0, 1.0, 2.0, 9.0], [[5.0, 5.0], [5.0, NAN]]
    _, all_N = terms_of(config, scores, rows, step=0)
    _, quarter_N = terms_of(config, scores, rows, step=5)
    _, half_N = terms_of(config, scores, rows, step=10)
    assert (all_N != 0).tolist() == [True, True, True, True]
    assert (quarter_N != 0).tolist() == [False, True, True, True]
    assert (half_N != 0).tolist() == [False, False, True, True]  # a negative is never dropped


def test_reweighting_weighs_by_the_probability_of_the_label():
    terms_TB, gradient_N = terms_of(ReweightedConfig(power=0.5), [2.0, 0.5], [[5.0, NAN]])
    likely, unlikely = 1 / (1 + math.exp(-2.0)), 1 - 1 / (1 + math.exp(-0.5))
    losses = [-(likely**0.5) * math.log(likely), -(unlikely**0.5) * math.log(unlikely)]
    assert terms_TB[0].item() == pytest.approx(sum(losses))
    slopes = [-(likely**0.5) * (1 - likely), unlikely**0.5 * (1 - unlikely)]
    assert gradient_N.tolist() == pytest.approx(slopes)


def test_the_positive_unlabeled_risk_is_corrected_where_it_is_negative():
    prior = 0.5
    config = PositiveUnlabeledConfig(prior=prior)
    for like, unlabeled in [(0.0, 2.0), (2.0, -2.0)]:
        found_TB, gradient_N = terms_of(config, [like, unlabeled], [[5.0, NAN]])
        rest = softplus(unlabeled) - prior * softplus(like)
        wanted = prior * softplus(-like) + max(0.0, rest)
        assert found_TB[1].item() == pytest.approx(wanted)
        by_like, by_unlabeled = 1 / (1 + math.exp(-like)), 1 / (1 + math.exp(-unlabeled))
        of_labels = by_like - 1.0
        if rest > 0:
            slopes = [of_labels + prior * (by_like - 1.0) - prior * by_like, by_unlabeled]
        else:  # algorithm 1: against the second part alone
            slopes = [of_labels + prior * by_like, -by_unlabeled]
        assert gradient_N.tolist() == pytest.approx(slopes)


def test_the_poissonized_loss_is_that_computed_by_hand():
    """l- = m, l+ = -log(1 - e^-m) for an expected number m, and m times the gradient by m."""
    golden = [
        (0.1, 0.001804, 0.098104),
        (0.5, 0.223209, 0.216358),
        (math.log(2), 0.5, 0.0),
        (1.0, 0.826185, -0.307005),
        (2.0, 0.994742, -0.300872),
    ]
    losses = EntryLosses(MultinomialConfig(), CATALOG)
    entries = Batch.from_lists([[0]], [[NAN]])
    for mean, weight, slope in golden:
        score_N = torch.tensor([math.log(mean)], requires_grad=True, dtype=torch.float64)
        zero_B, one_B = torch.zeros(1), torch.ones(1)  # n = 1 and lse = 0, so m = exp(score)
        sides = losses(Scores(score_N), (), entries, zero_B, one_B)
        found = dual_loss(sides.like_N, sides.dislike_N, 2.0)
        (gradient_N,) = torch.autograd.grad(found.loss_N.sum(), score_N)
        assert found.like_weight_N.item() == pytest.approx(weight, abs=1e-6)
        assert gradient_N.item() == pytest.approx(slope, abs=1e-6)


def test_the_mean_ratings_of_likes_and_dislikes_leave_out_what_is_neither():
    counts = torch.tensor([[10, 10, 1000, 10, 10]]).numpy()
    catalog = Catalog(1, (1.0, 2.0, 3.0, 4.0, 5.0), counts, 1, 1, Feedback(3.0, 2.0))
    losses = EntryLosses(SquaredErrorConfig(), catalog)
    assert (losses.like, losses.dislike) == (4.5, 1.5)
    plain = EntryLosses(SquaredErrorConfig(), catalog._replace(feedback=None))
    assert (plain.like, plain.dislike) == (4.5, pytest.approx(3030 / 1020))


def test_the_loss_of_an_entry_of_the_history_is_that_of_its_objective(small):
    """What the held-out entries of the inverse gradient are measured by, weights included."""
    for base, model in ROWS:
        if isinstance(base, RatingClassesConfig):
            base = RatingClassesConfig(rating_weight=3.0)
        torch.manual_seed(0)
        made = model.build(small.catalog)
        losses, context = EntryLosses(base, small.catalog), LossContext(RNG, 0, Chunks(17))
        users = made.encode(small.batch)
        own_TB, normalizer_B = losses.of_histories(made, users, small.batch, context)
        sides = losses(made, users, small.batch, normalizer_B, small.batch.length_B)
        found_B = torch.zeros(37).index_add(0, small.batch.row_N, sides.given_N)
        if isinstance(base, BinaryConfig | RatingClassesConfig):  # these count all other items, too
            head = made.output.ranking_score(made.decode(users, slice(None)))
            is_other_BI = torch.ones(37, 50).index_put(
                (small.batch.row_N, small.batch.item_N), torch.zeros(len(small.batch.item_N))
            )
            found_B = found_B + (torch.nn.functional.softplus(head) * is_other_BI).sum(1)
        torch.testing.assert_close(found_B, own_TB.sum(0), rtol=1e-4, atol=1e-3)


RNG = CounterRng.of(0, 0)
ROWS = [
    (MultinomialConfig(), MultVaeConfig(hidden_width=8, latent_width=4)),
    (BinaryConfig(), MultVaeConfig(hidden_width=8, latent_width=4)),
    (RatingClassesConfig(), Conv4RecConfig(latent_width=4, rating_width=2)),
    (SquaredErrorConfig(), MultVaeConfig(hidden_width=8, latent_width=4, input="ratings")),
]


@pytest.mark.parametrize(("base", "model"), ROWS, ids=repr)
def test_the_loss_of_an_autoencoder_is_its_own_plus_that_of_sampled_entries(base, model, small):
    """Against a plain computation over the whole output."""
    torch.manual_seed(0)
    made, item_count = model.build(small.catalog), small.catalog.item_count
    with torch.no_grad():
        for held in made.parameters():
            held.add_(0.1 * torch.randn_like(held))
    config = InverseDualRowsConfig(base=base, weight=0.5, warmup_steps=1)
    context = LossContext(CounterRng.of(0, 0), 5, Chunks(17))
    users = made.encode(small.batch)
    found_TB = config.build(small.catalog)(made, users, small.batch, context)
    own_TB = base.build(small.catalog)(made, users, small.batch, context)
    torch.testing.assert_close(found_TB[:-1], own_TB)
    sampled = unlabeled_entries(small.batch, context.rng, 1.0, item_count)
    output = made.decode(users, slice(None))
    at = (sampled.row_N, sampled.item_N)
    if isinstance(base, MultinomialConfig):
        mean_BI = small.batch.length_B[:, None] * torch.softmax(output, 1)
        like_N, dislike_N = -torch.log(1 - torch.exp(-mean_BI[at])), mean_BI[at]
    elif isinstance(base, SquaredErrorConfig):
        rating_N = small.batch.value_N
        like_N = (output[at] - rating_N[rating_N > 3].mean()).square()
        dislike_N = (output[at] - rating_N[rating_N <= 2].mean()).square()
    else:
        chance_BI = torch.sigmoid(made.output.ranking_score(output))
        if isinstance(base, BinaryConfig):
            chance_BI = torch.sigmoid(output)
        like_N, dislike_N = -torch.log(chance_BI[at]), -torch.log(1 - chance_BI[at])
    weight_N = dislike_N**2 / (like_N**2 + dislike_N**2)
    loss_N = weight_N * like_N + (1 - weight_N) * dislike_N
    wanted_B = 0.5 * torch.zeros(37).index_add(0, sampled.row_N, loss_N)
    torch.testing.assert_close(found_TB[-1], wanted_B, rtol=1e-4, atol=1e-4)


def test_sampled_entries_lie_outside_the_history_and_depend_on_the_user_alone(small):
    rng, item_count = CounterRng.of(0, 3), small.catalog.item_count
    found = unlabeled_entries(small.batch, rng, 2.0, item_count)
    assert found.length_B.tolist() == (2 * small.batch.length_B).tolist()
    assert found.value_N.isnan().all()
    known = set(zip(small.batch.row_N.tolist(), small.batch.item_N.tolist(), strict=True))
    assert not known & set(zip(found.row_N.tolist(), found.item_N.tolist(), strict=True))
    alone = unlabeled_entries(small.users([7]), rng, 2.0, item_count)
    assert torch.equal(alone.item_N, found.slice(7, 8).item_N)
    other = unlabeled_entries(small.batch, CounterRng.of(0, 4), 2.0, item_count)
    assert not torch.equal(other.item_N, found.item_N)
    full = Batch.from_lists([list(range(50)), []])
    assert unlabeled_entries(full, rng, 1.0, 50).length_B.tolist() == [0, 0]


def test_classes_are_weighed_only_where_there_are_some():
    with pytest.raises(ValueError, match="'multinomial', which has no classes"):
        InverseDualRowsConfig(base=MultinomialConfig(), by_class=True)


def test_the_weight_warms_up_and_a_collapse_has_a_limit(small):
    config = InverseDualRowsConfig(base=MultinomialConfig(), warmup_steps=10)
    assert [config.schedule(step) for step in (0, 10, 15, 20, 99)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    density = len(small.batch.item_N) / (37 * 50)
    assert config.build(small.catalog).limits == {}  # 20 times this density is more than all
    tight = config.model_copy(update={"collapse_factor": 2.0}).build(small.catalog)
    assert tight.limits == {SHARE_LIKED: pytest.approx(2 * density)}
    ratings = InverseDualRowsConfig(base=SquaredErrorConfig(), collapse_factor=2.0)
    assert ratings.build(small.catalog).limits == {}  # a good rating is not an interaction
