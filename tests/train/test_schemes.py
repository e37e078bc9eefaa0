"""The battery: what every training scheme must do."""

import pytest
import torch

from distrib.checkpoint.bundle import restored
from distrib.models import AutoRecConfig, EaseConfig, MultVaeConfig, VaeBmfConfig
from distrib.rng import CounterRng
from distrib.tiles import Tile
from distrib.train.engines.local import LocalEngine
from distrib.train.optimizer import OptimizerConfig
from distrib.train.schemes import SCHEMES
from distrib.train.schemes.base import ExportContext, IterativeScheme, Sizes
from distrib.train.step import TrainStep
from tests.training import CPU, feed_of, run_of, vocabulary_of

CASES = {
    "closed_form": EaseConfig(),
    "item_rows": AutoRecConfig(side="items", hidden_width=8),
    "two_sided": VaeBmfConfig(latent_width=4, branch_width=4, hidden_width=4),
    "user_rows": MultVaeConfig(hidden_width=8, latent_width=4),
}
ITERATIVE = [name for name in CASES if isinstance(SCHEMES[name], IterativeScheme)]
every_iterative_scheme = pytest.mark.parametrize("name", ITERATIVE)
BATCH = 7


def run_with(name):
    return run_of(CASES[name], batch_users=BATCH)


def feeds_of(name, small, world_size):
    return [
        feed_of(SCHEMES[name], run_with(name), small, rank, world_size)
        for rank in range(world_size)
    ]


def sizes_of(small):
    return Sizes(small.batch.num_users, small.catalog.item_count, len(small.batch.item_N))


def step_of(name, small):
    torch.manual_seed(0)
    config = CASES[name]
    network = SCHEMES[name].build(config, vocabulary_of(small))
    return TrainStep(network, config.spec.objective.build(small.catalog), block_items=17)


def interactions_of(batch):
    """Row number, column number and value of what a batch decodes."""
    target, items = batch.target, batch.target.item_N
    if isinstance(batch.inputs, Tile):  # its columns are rows of its own items
        items = batch.inputs.items.batch.user_B[items]
    rows = target.user_B[target.row_N]
    return list(zip(rows.tolist(), items.tolist(), target.value_N.tolist(), strict=True))


def test_every_scheme_has_a_case():
    assert CASES.keys() == SCHEMES.keys()


@pytest.mark.parametrize("name", CASES)
def test_the_defaults_have_no_fault(name):
    assert list(SCHEMES[name].faults(run_of(CASES[name]))) == []


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


@every_iterative_scheme
def test_the_losses_of_ranks_add_up_to_those_of_one(name, small):
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
    config, vocabulary = CASES[name], vocabulary_of(small)
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
    steps = scheme.steps_per_epoch(run, sizes_of(small))
    assert 0 < feed.num_steps(0) == len(list(feed.batches(0))) <= steps <= feed.num_steps(0) + 1
    rows, columns = scheme.shape(run, sizes_of(small))
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
        assert 0 < batch.target.num_users <= -(-BATCH // 2)
        assert len(batch.target.item_N) > 0
        losses = step(batch.inputs, batch.target, CounterRng.of(0, 0), 5)
        assert all(loss.isfinite() for loss in losses.values())
