"""The battery: what every training scheme must do."""

import pytest
import torch

from distrib.checkpoint.bundle import restored
from distrib.models import (
    AutoRecConfig,
    EaseConfig,
    GmfConfig,
    MultVaeConfig,
    SasRecConfig,
    VaeBmfConfig,
)
from distrib.objectives import (
    InverseDualConfig,
    InverseGradientConfig,
    InverseGradientRowsConfig,
    MultinomialConfig,
)
from distrib.rng import CounterRng
from distrib.sequences import Sequences
from distrib.tiles import Tile
from distrib.training.engines.local import LocalEngine
from distrib.training.optimizer import OptimizerConfig
from distrib.training.schemes import SCHEMES, is_iterative
from distrib.training.schemes.base import ExportContext, IterativeScheme, Sizes
from tests import in_process
from tests.in_process import CPU, feed_of, run_of, vocabulary_of

CASES = {
    "closed_form": (EaseConfig(), None),
    "item_rows": (AutoRecConfig(side="items", hidden_width=8), None),
    "meta": (GmfConfig(latent_width=4), InverseGradientConfig(hold_out=0.3)),
    "meta_rows": (
        MultVaeConfig(hidden_width=8, latent_width=4),
        InverseGradientRowsConfig(base=MultinomialConfig(anneal_steps=10), warmup_steps=0),
    ),
    "next_item": (SasRecConfig(max_length=9, latent_width=4), None),
    "pairs": (GmfConfig(latent_width=4), InverseDualConfig()),
    "two_sided": (VaeBmfConfig(latent_width=4, branch_width=4, hidden_width=4), None),
    "user_rows": (MultVaeConfig(hidden_width=8, latent_width=4), None),
}
ITERATIVE = [name for name in CASES if isinstance(SCHEMES[name], IterativeScheme)]
every_iterative_scheme = pytest.mark.parametrize("name", ITERATIVE)
BATCH = 7


def run_with(name):
    model, objective = CASES[name]
    return run_of(model, objective, batch_users=BATCH)


def feeds_of(name, small, world_size):
    return [
        feed_of(SCHEMES[name], run_with(name), small, rank, world_size)
        for rank in range(world_size)
    ]


def sizes_of(name, small):
    """How large the log is, without what the scheme does not read."""
    sign_N = small.catalog.feedback.sign(small.batch.value_N)
    is_read_N = sign_N != 0 if SCHEMES[name].counts == "pairs" else sign_N == sign_N
    return Sizes(small.batch.num_users, small.catalog.item_count, int(is_read_N.sum()))


def step_of(name, small):
    return in_process.step_of(run_with(name), small)


def interactions_of(batch):
    """Row number, column number and value of what a batch decodes."""
    target, items = batch.target, batch.target.item_N
    if isinstance(batch.inputs, Tile):  # its columns are rows of its own items
        items = batch.inputs.items.batch.user_B[items]
    rows, values = target.user_B[target.row_N], target.value_N.nan_to_num(-1.0)
    return list(zip(rows.tolist(), items.tolist(), values.tolist(), strict=True))


def test_every_scheme_has_a_case():
    assert CASES.keys() == SCHEMES.keys()


@pytest.mark.parametrize("name", CASES)
def test_the_defaults_have_no_fault(name):
    run = run_with(name)
    plain = run.engine.model_copy(update={"zero_stage": 0, "precision": "fp32"})
    run = run.model_copy(update={"engine": plain})
    assert list(SCHEMES[name].faults(run)) == []
    assert is_iterative(run) == (name in ITERATIVE)


@every_iterative_scheme
def test_ranks_share_each_global_batch_and_an_epoch_can_be_entered_anywhere(name, small):
    (whole,) = (list(feed.batches(1)) for feed in feeds_of(name, small, 1))
    ranks = [list(feed.batches(1)) for feed in feeds_of(name, small, 3)]
    assert {len(batches) for batches in ranks} == {len(whole)}
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert {part.size for part in parts} == {batch.size}
        together = [interaction for part in parts for interaction in interactions_of(part)]
        assert sorted(together) == sorted(interactions_of(batch))
    rest = list(feeds_of(name, small, 1)[0].batches(1, first_step=2))
    assert [b.size for b in rest] == [b.size for b in whole[2:]]
    for one, other in zip(rest, whole[2:], strict=True):
        assert torch.equal(one.target.item_N, other.target.item_N)


@pytest.mark.parametrize("name", [name for name in ITERATIVE if name != "meta_rows"])
def test_the_losses_of_ranks_add_up_to_those_of_one(name, small):
    """But of ranks that decide together, which need each other; see test_inverse_gradient.py."""
    step = step_of(name, small)
    whole = next(feeds_of(name, small, 1)[0].batches(0))
    parts = [next(feed.batches(0)) for feed in feeds_of(name, small, 3)]
    rng = CounterRng.of(0, 0)
    wanted = step(whole.inputs, whole.target, rng, 5)
    found = [step(part.inputs, part.target, rng, 5) for part in parts]
    for term, value in wanted.items():
        total = sum(terms[term] for terms in found)
        torch.testing.assert_close(total, value, rtol=1e-5, atol=1e-5)


@every_iterative_scheme
def test_training_lowers_the_loss(name, small):
    step = step_of(name, small)
    engine = LocalEngine(step, OptimizerConfig(learning_rate=0.02))
    (feed,) = feeds_of(name, small, 1)
    epochs = []
    for epoch in range(30):
        engine.begin_epoch(epoch)
        updates = [
            engine.train_batch(batch, CounterRng.of(0, epoch), step=1)
            for batch in feed.batches(epoch)
        ]
        engine.end_epoch(epoch)
        epochs.append(float(sum(update.terms[step.objective.terms[0]] for update in updates)))
    assert epochs[-1] < 0.95 * epochs[0]


class Ranks:
    """Runs the ranks of an export one after the other: the last one gathers from all."""

    def __init__(self):
        self.sent = []

    def gather_of_rank(self):
        mine, earlier = [], list(self.sent)
        self.sent.append(mine)

        def gather(part):
            mine.append(part)
            return [*(sent[len(mine) - 1] for sent in earlier), part]

        return gather


@every_iterative_scheme
def test_an_export_scores_and_does_not_depend_on_the_ranks(name, small):
    config, vocabulary = CASES[name][0], vocabulary_of(small)
    states = []
    for world_size in (1, 3):
        ranks = Ranks()
        for feed in feeds_of(name, small, world_size):
            network = step_of(name, small).model  # an export may change what it is trained on
            context = ExportContext(
                run_with(name), vocabulary, feed, CPU, ranks.gather_of_rank(), network, 0
            )
            state = SCHEMES[name].export(network.state_dict(), context)
        states.append(state)  # of the last rank, which gathers what all have sent
    one, three = states
    assert one.keys() == three.keys()
    for key, value in one.items():
        torch.testing.assert_close(three[key], value)
    model = restored(config, vocabulary, one)
    score = model.decode(model.encode(small.batch), slice(None))
    assert score.shape[:2] == (small.batch.num_users, small.catalog.item_count)
    assert score.isfinite().all()


@every_iterative_scheme
def test_estimates_agree_with_the_feed(name, small):
    scheme, run = SCHEMES[name], run_with(name)
    (feed,) = feeds_of(name, small, 1)
    steps = scheme.steps_per_epoch(run, sizes_of(name, small))
    assert 0 < feed.num_steps(0) == len(list(feed.batches(0))) <= steps <= feed.num_steps(0) + 1
    rows, columns = scheme.shape(run, sizes_of(name, small))
    assert rows >= feed.num_users
    assert all(int(batch.target.item_N.max()) < columns for batch in feed.batches(0))


@every_iterative_scheme
def test_samples_are_a_workers_share_of_batches_without_end(name, small):
    scheme, run = SCHEMES[name], run_with(name)
    vocabulary, (feed,) = vocabulary_of(small), feeds_of(name, small, 1)
    rows, _ = next(feed.training_parts())
    step = step_of(name, small)
    samples = scheme.sample_batches(run, rows, vocabulary, 2)
    for _ in range(2 * feed.num_steps(0)):
        batch = next(samples)
        read = batch.inputs.histories if isinstance(batch.inputs, Sequences) else batch.target
        assert 0 < read.num_users <= -(-BATCH // 2)
        assert len(batch.target.item_N) > 0
        losses = step(batch.inputs, batch.target, CounterRng.of(0, 0), 5)
        assert all(loss.isfinite() for loss in losses.values())
