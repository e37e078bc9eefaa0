"""Every model, objective and path of an engine or scorer on a device other than the CPU.

Nothing here needs a GPU: `StandIn` raises where CUDA would, and results must equal the CPU's.
"""

import itertools

import pytest
import torch

from distrib.batch import Batch
from distrib.checkpoint.state import SavedState, write_pieces
from distrib.data.feeds.base import BatchSharding
from distrib.data.feeds.collate import Example
from distrib.data.feeds.resident import ResidentFeed
from distrib.data.feeds.tiles import TileConfig
from distrib.evaluation.config import EvaluateConfig
from distrib.evaluation.protocol import measure
from distrib.models.capabilities import item_vectors, user_embedding
from distrib.models.outputs import ClassOutput
from distrib.parameters import roles_of
from distrib.scoring.results import NoveltyFilter
from distrib.scoring.rules import Rules, _unit_vectors
from distrib.scoring.scorer import Scorer, require_numbers
from distrib.scoring.search import Limits
from distrib.scoring.vectors import _item_matrix
from distrib.training.engines.base import Update
from distrib.training.engines.config import EngineConfig
from distrib.training.engines.item_parallel import ItemEngine
from distrib.training.engines.state import take_up
from distrib.training.schemes import iterative_scheme_of
from distrib.training.workers.loss_reducer import LossReducer
from tests.conftest import Small, rows_of
from tests.device.cases import (
    EMBEDDED,
    MODELS,
    OPTIMIZER,
    PAIRS,
    TRAINED,
    assert_equal,
    engine_of,
    losses_and_gradients,
    step_of,
    update,
)
from tests.device.stand_in import CUDA, CudaTensor, MixedDevicesError, StandIn, values_of, waits
from tests.in_process import (
    exported,
    feed_of,
    filled,
    network_of,
    run_of,
    vocabulary_of,
)

every_model = pytest.mark.parametrize("config", MODELS, ids=repr)
every_trained_model = pytest.mark.parametrize("config", TRAINED, ids=repr)
every_pair = pytest.mark.parametrize(("config", "objective"), PAIRS, ids=repr)


def test_the_stand_in_refuses_what_cuda_refuses():
    with StandIn():
        here, there = torch.arange(3.0), torch.arange(3.0, device="cuda")
        for mixing in (
            lambda: here + there,
            lambda: there.numpy(),
            lambda: torch.cat([here, there]),
            lambda: here[there.long()],
            lambda: (
                torch.optim.Adam([here.requires_grad_()], fused=True) and there.copy_(here) @ here
            ),
        ):
            with pytest.raises(MixedDevicesError):
                mixing()
        assert (there + 1).device == CUDA
        assert torch.equal((there * 2).cpu(), here.detach() * 2)


@pytest.mark.parametrize(
    "settings", [{}, {"keep_output_mb": 64}, {"dtype": torch.bfloat16}], ids=repr
)
@every_pair
def test_losses_and_gradients_equal_those_of_the_cpu(config, objective, settings, small):
    expected = losses_and_gradients(*step_of(config, objective, small, **settings), "cpu")
    with StandIn():
        step, batch = step_of(config, objective, small, **settings)
        found = losses_and_gradients(step.to(CUDA), batch, CUDA)
        assert all(isinstance(gradient, CudaTensor) for gradient in found[1].values())
    for one, other in zip(expected, values_of(found), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_pair
def test_updates_go_on_after_a_restore(config, objective, dtype, small, tmp_path):
    with StandIn():
        engine, batch = engine_of(config, objective, small, CUDA, dtype=dtype)
        engine.begin_epoch(0)
        update(engine, batch, 0)
        update(engine, batch, 1)
        engine.end_epoch(0)
        assert not any(isinstance(weight, CudaTensor) for weight in engine.weights().values())
        write_pieces(tmp_path / "state-00000.safetensors", [p.copied() for p in engine.pieces()])
        saved = SavedState(tmp_path)
        update(engine, batch, 2)
        again, _ = engine_of(config, objective, small, CUDA, dtype=dtype)
        again.restore(saved, {})
        update(again, batch, 2)
        for name, weight in engine.weights().items():
            torch.testing.assert_close(again.weights()[name], weight, equal_nan=True)


def test_a_count_of_updates_that_is_restored_on_the_host_is_found(small, tmp_path, monkeypatch):
    def on_host(optimizer, saved, name, held, stretch):
        take_up(optimizer, saved, name, held, stretch)
        optimizer.state[held]["step"] = torch.tensor(1.0)

    with StandIn():
        engine, batch = engine_of(*PAIRS[0], small, CUDA)
        engine.begin_epoch(0)
        update(engine, batch, 0)
        write_pieces(tmp_path / "state-00000.safetensors", [p.copied() for p in engine.pieces()])
        again, _ = engine_of(*PAIRS[0], small, CUDA)
        monkeypatch.setattr("distrib.training.engines.local.take_up", on_host)
        again.restore(SavedState(tmp_path), {})
        with pytest.raises(MixedDevicesError):
            update(again, batch, 1)


def rules_of(kind, small, device, model):
    group_I = (torch.arange(50) % 7).to(device)
    if kind == "policy":
        is_allowed_I = torch.ones(50, dtype=torch.bool)
        is_allowed_I[:5] = False
        damping_I = 0.1 * torch.from_numpy(small.catalog.train_count_IL.sum(1)).float().log1p()
        return Rules(is_allowed_I.to(device), damping_I=damping_I.to(device), min_score=-100.0)
    if kind == "groups":
        return Rules(group_I=group_I, at_most=1, pool=12)
    if kind == "diverse":
        vector_IZ = _unit_vectors(model)
        return Rules(diversity=0.5, pool=20, vector_IZ=vector_IZ, group_I=group_I, at_most=2)
    return Rules()


LISTS = [
    *itertools.product(MODELS, ["plain", "policy", "groups", "limited"], ["fp32"]),
    *itertools.product(EMBEDDED, ["diverse"], ["fp32"]),
    *itertools.product(EMBEDDED, ["plain"], ["bf16"]),
]


@pytest.mark.parametrize(("config", "kind", "precision"), LISTS, ids=repr)
def test_lists_equal_those_of_the_cpu(config, kind, precision, small):
    limits = None
    if kind == "limited":
        candidates = Batch.from_lists([[1, 2, 3, 4, 30]] * 37)
        limits = Limits(candidates, torch.arange(37) % 2 == 0)

    def lists(device):
        made = filled(config, small).to(device)
        scorer = Scorer(
            made, vocabulary_of(small), device=device, chunk_items=17, precision=precision
        )
        rules = rules_of(kind, small, device, scorer.model)
        return scorer.recommend(small.batch, small.batch, 7, rules=rules, limits=limits)

    expected = lists("cpu")
    with StandIn():
        found = lists(CUDA)
    assert_equal(tuple(expected), tuple(found))


@every_model
def test_all_other_answers_of_a_scorer_equal_those_of_the_cpu(config, small):
    batch = small.batch

    def answers(device):
        made = filled(config, small).to(device)
        scorer = Scorer(made, vocabulary_of(small), device=device, chunk_items=17)
        found = [
            scorer.predict(batch, batch),
            scorer.predictions(batch, torch.tensor([1, 2])),
            scorer.predictions(batch, slice(3, 9)),
            scorer.expected_interactions(batch),
            scorer.explain(small.users([3]), torch.tensor([4, 5])),
        ]
        if (
            getattr(config, "attention_norm", "") != "linear"
        ):  # untrained, its scores are not finite
            require_numbers(scorer)
        if user_embedding(made, made.encode(batch.to(device))) is not None:
            found.append(scorer.embed(batch))
        if item_vectors(made) is not None:
            found.append(_item_matrix(made))
        if isinstance(made.output, ClassOutput):
            novel = NoveltyFilter(0.5, 1)
            found += scorer.serendipitous(batch, batch, 5, novel=novel)[:2]
        nothing = batch.keep(torch.zeros_like(batch.item_N, dtype=torch.bool))
        held_out = Example(batch, small.users(range(37)), nothing)
        sums = measure(scorer, held_out, EvaluateConfig(recall_at=(5,), ndcg_at=(5,)))
        return (*found, *(torch.tensor(s.mean) for s in sums.summaries().values()))

    expected = answers("cpu")
    with StandIn():
        found = answers(CUDA)
    assert_equal(expected, found)


def run_epochs(run, small, num_epochs=2, num_steps=3):
    """Train on the device by the model's scheme; the state that scores must be on the CPU."""
    scheme = iterative_scheme_of(run)
    engine, _ = engine_of(run.model, run.objective, small, CUDA)
    feed = feed_of(scheme, run, small)
    for epoch in range(num_epochs):
        engine.begin_epoch(epoch)
        for step, batch in enumerate(itertools.islice(feed.batches(epoch), num_steps)):
            update(engine, batch, step)
        engine.end_epoch(epoch)
        weights, network = engine.weights(), engine.step_module.model
        state = exported(run, small, network, weights, device=CUDA, epoch=epoch)
        assert not any(isinstance(tensor, CudaTensor) for tensor in state.values())


@every_trained_model
def test_epochs_end_with_an_export(config, small):
    with StandIn():
        run_epochs(run_of(config, batch_users=10), small)


@pytest.mark.parametrize("order", ["shuffled", "sequential", "edges"])
@pytest.mark.parametrize(
    "config", [case for case in TRAINED if case.spec.scheme == "two_sided"], ids=repr
)
def test_every_order_of_tiles_and_new_items(config, order, small):
    with StandIn():
        run_epochs(run_of(config, batch_users=10, tiles=TileConfig(order=order, items=15)), small)
        model = filled(config, small).to(CUDA)
        model.append_items(small.batch.to(CUDA))
        Scorer(model, vocabulary_of(small), device=CUDA, chunk_items=17)


def is_cut_by_items(config, objective):
    roles = roles_of(network_of(run_of(config), Small()))
    is_tied = bool(roles.encoder.keys() & roles.decoder.keys())
    return config.spec.scheme == "user_rows" and bool(roles.encoder) and not is_tied


CUT = [pair for pair in PAIRS if is_cut_by_items(*pair) and pair[1].name != "cosine"]


@pytest.mark.parametrize(("config", "objective"), CUT, ids=repr)
def test_the_item_parallel_engine_updates(config, objective, small, process_group):
    with StandIn():
        step, batch = step_of(config, objective, small, dtype=torch.bfloat16)
        settings = EngineConfig(parallel="items", precision="bf16", zero_stage=1)
        engine = ItemEngine(step.to(CUDA), OPTIMIZER, settings, batch_users=37, device=CUDA)
        engine.begin_epoch(0)
        for number in range(2):
            update(engine, batch, number)
        engine.end_epoch(0)
        assert not any(isinstance(weight, CudaTensor) for weight in engine.weights().values())


def test_a_resident_feed_on_the_device_gives_the_same_batches(small):
    rows = rows_of(small.batch)
    sharding = BatchSharding(10, 0, 0, 1)
    expected = [batch for batch, *_ in ResidentFeed(rows, rows, sharding)._batches(0, 0)]
    with StandIn():
        feed = ResidentFeed(rows, rows, sharding, CUDA)
        waits.clear()
        found = [batch for batch, *_ in feed._batches(0, 0)]
        assert not waits, "kernels of an update would wait for those of the next batch"
        assert all(isinstance(batch.item_N, CudaTensor) for batch in found)
    for one, other in zip(expected, values_of(found), strict=True):
        assert_equal(tuple(one), tuple(other))


def test_losses_are_reduced_on_the_device(process_group):
    with StandIn():
        reducer = LossReducer(CUDA, max_skipped_updates=0)
        for _ in range(10):
            one = torch.ones((), device=CUDA)
            reducer.add(Update({"loss": one}, one), 5)
        reducer.agree(stop=0.0)
        assert reducer.mean_losses() == {"loss": pytest.approx(0.2)}


def test_positions_cross_in_half_the_bytes_and_are_whole_there(small):
    batch = small.batch
    with StandIn():
        found = batch.to(CUDA)
        assert found.item_N.dtype == torch.int64
        assert torch.equal(found.item_N.cpu(), batch.item_N)
    assert batch.to("cpu").item_N is batch.item_N
