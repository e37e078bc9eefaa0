"""Updates of a few shapes equal those of any shape, also when they are recorded and run again."""

import contextlib
import json

import pytest
import torch

from distrib.models import (
    BiasedMfConfig,
    ElsaConfig,
    MultDaeConfig,
    MultVaeConfig,
    RecVaeConfig,
    VaeBmfConfig,
)
from distrib.objectives import BinaryConfig, MultinomialConfig, SquaredErrorConfig
from distrib.rng import CounterRng, signed
from distrib.training.build import build_engine
from distrib.training.engines import graphs
from distrib.training.engines.config import EngineConfig
from distrib.training.engines.graphs import Eager, Graphs, filled_size
from distrib.training.optimizer import OptimizerConfig
from distrib.training.schemes import iterative_scheme_of
from tests.conftest import Small
from tests.device.cases import PAIRS
from tests.device.stand_in import CUDA, StandIn, values_of
from tests.in_process import CPU, feed_of, run_of, vocabulary_of
from tests.training.graph_runs import reason_against, trained
from tests.training.recorded import Recorded

SGD = OptimizerConfig(name="sgd", learning_rate=3e-3, momentum=0.9, gradient_clipping=0.5)
"""Adam divides by gradients, so that it makes much of what is rounded differently."""


def recorded(*arguments, **settings):
    """As `trained`, by what CUDA would record."""
    with StandIn():
        runner = Recorded()
        updates, weights = trained(*arguments, runner, device=CUDA, **settings)
        return updates, values_of(weights), runner.replays


def assert_alike(one, other, **tolerance):
    """Compare lists of updates."""
    assert len(one) == len(other) > 0
    for update, same in zip(one, other, strict=True):
        assert {*update} == {*same}
        for name, value in update.items():
            torch.testing.assert_close(same[name], value, **tolerance)


every_pair = pytest.mark.parametrize(
    ("config", "objective"),
    [(c, o) for c, o in PAIRS if not reason_against(c, o, Small())],
    ids=repr,
)


@every_pair
def test_updates_of_a_few_shapes_equal_those_of_any_shape(config, objective, small):
    plain, weights = trained(config, objective, small, None, SGD)
    filled, own = trained(config, objective, small, Eager(), SGD)
    assert_alike(plain, filled, rtol=1e-4, atol=1e-5)
    for name, value in weights.items():
        torch.testing.assert_close(own[name], value, rtol=1e-4, atol=1e-5)


@every_pair
def test_recorded_updates_equal_others(config, objective, small):
    plain, weights = trained(config, objective, small, None)
    again, own, replays = recorded(config, objective, small)
    assert replays > len(plain) / 3
    assert_alike(plain, again, rtol=1e-3, atol=1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(own[name], value, rtol=1e-3, atol=1e-3)


def test_a_recording_that_waits_for_the_host_is_noticed(small):
    """Else the test above would hold for anything."""
    with pytest.raises(RuntimeError, match="a graph cannot hold"):
        recorded(BiasedMfConfig(latent_width=4), SquaredErrorConfig(), small)


def test_in_bf16_too(small):
    config, objective = MultVaeConfig(hidden_width=8, latent_width=4), MultinomialConfig()
    plain, _ = trained(config, objective, small, None, dtype=torch.bfloat16)
    again, _, _ = recorded(config, objective, small, dtype=torch.bfloat16)
    assert_alike(plain, again, rtol=3e-2, atol=2e-3)


def test_what_changes_between_updates_is_not_recorded(small):
    """The weight of the KL term grows with each update, and the random key with each epoch."""
    config = MultVaeConfig(hidden_width=8, latent_width=4)
    objective = MultinomialConfig(anneal_steps=10, kl_weight=1.0)
    plain, _ = trained(config, objective, small, None)
    again, _, _ = recorded(config, objective, small)
    shares = [float(update["divergence"]) for update in again]
    assert shares == pytest.approx([float(update["divergence"]) for update in plain], rel=1e-3)
    assert shares[0] == 0.0 < shares[1]


def test_a_number_of_interactions_is_filled_up_by_an_eighth_at_most():
    sizes = [filled_size(count) for count in range(200_000)]
    assert all(count < size for count, size in enumerate(sizes))
    assert all(size <= 1.125 * count + 1 for count, size in enumerate(sizes) if count >= 1024)
    assert sizes == sorted(sizes)
    assert len({size for size in sizes if 65536 < size <= 131072}) == 8


def test_which_models_are_recorded(small):
    names = {
        config.name
        for config, objective in PAIRS
        if not reason_against(config, objective, small, on_gpu=True)
    }
    assert names >= {"mult_vae", "mult_dae", "conv4rec", "elsa", "autorec"}
    vae = MultVaeConfig(hidden_width=8, latent_width=4)
    likelihood = MultinomialConfig()
    for text, config, objective, settings in (
        ("does not predict what it reads", VaeBmfConfig(), VaeBmfConfig().spec.objective, {}),
        ("has rows of users", BiasedMfConfig(), SquaredErrorConfig(), {}),
        ("trained in phases", RecVaeConfig(), RecVaeConfig().spec.objective, {}),
        ("more than each user", vae, MultinomialConfig(num_sampled=5), {}),
        ("more than each user", vae, BinaryConfig(num_sampled=5), {}),
        ("micro_batch_users", vae, likelihood, {"num_parts": 2}),
        ("optimizer.name = 'sgd', use one of", vae, likelihood, {"rule": "sgd", "on_gpu": True}),
        ("block_items = 20, set it to 50", vae, likelihood, {"items": 20, "on_gpu": True}),
    ):
        assert text in reason_against(config, objective, small, **settings)
    assert not reason_against(vae, likelihood, small, rule="sgd", items=20)  # of graphs alone
    assert not reason_against(ElsaConfig(), ElsaConfig().spec.objective, small)
    assert not reason_against(MultDaeConfig(), likelihood, small)


class Stream:
    def wait_stream(self, other):
        del other


class Graph:
    """Records nothing; its replay counts."""

    replays = 0

    def replay(self):
        Graph.replays += 1


@pytest.fixture
def cuda(monkeypatch):
    """CUDA's streams and graphs, as far as `Graphs` uses them."""
    recording = []

    @contextlib.contextmanager
    def graph(_, **places):
        assert {*places} == {"pool", "stream", "capture_error_mode"}
        assert places["capture_error_mode"] == "thread_local"  # others may allocate meanwhile
        recording.append(1)
        try:
            yield
        finally:
            recording.pop()

    cuda = torch.cuda
    monkeypatch.setattr(cuda, "Stream", Stream)
    monkeypatch.setattr(cuda, "current_stream", Stream)
    monkeypatch.setattr(cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(cuda, "graph", graph)
    monkeypatch.setattr(Graph, "replays", 0)
    return recording


def test_a_shape_is_recorded_after_two_updates(cuda):
    run, computed = Graphs(), []

    def compute():
        computed.append(len(cuda))
        return torch.tensor(float(len(computed)))

    for _ in range(5):
        run("a", compute)
    assert computed == [0, 0, 1]
    assert Graph.replays == 3
    run("b", compute)
    assert computed == [0, 0, 1, 0]
    run.forget()
    run("a", compute)
    assert computed == [0, 0, 1, 0, 1]


def test_what_cannot_be_recorded_runs_as_it_is_and_says_why(cuda, capsys):
    run, computed = Graphs(), []

    def compute():
        if cuda:
            raise RuntimeError("operation not permitted when stream is capturing")
        computed.append(1)
        return torch.ones(())

    for _ in range(5):
        run("a", compute)
    assert len(computed) == 5
    assert Graph.replays == 0
    (line,) = capsys.readouterr().err.splitlines()
    event = json.loads(line)
    assert (event["event"], event["captured"]) == ("graphs", False)
    assert "not permitted" in event["reason"]


def test_memory_of_graphs_has_a_bound(cuda):
    run = Graphs()
    for shape in range(graphs._MOST_GRAPHS + 5):
        for _ in range(4):
            run(shape, lambda: torch.ones(()))
    assert len(run._recorded) == graphs._MOST_GRAPHS


def test_a_random_key_may_be_a_tensor():
    rng, users = CounterRng.of(3, 4), torch.arange(5)
    held = CounterRng(torch.tensor(signed(rng.key)))
    for stream in (0, 1, 77):
        torch.testing.assert_close(held.uniform(stream, users), rng.uniform(stream, users))
        torch.testing.assert_close(held.normal(stream, users), rng.normal(stream, users))


@pytest.mark.parametrize(
    ("config", "engine", "reason"),
    [
        (MultVaeConfig(), {}, "only GPUs have them"),
        (VaeBmfConfig(), {}, "VaeBmf does not predict what it reads"),
        (MultVaeConfig(), {"parallel": "items"}, "one worker without DeepSpeed"),
    ],
)
def test_an_event_says_why_there_are_no_graphs(
    config, engine, reason, small, process_group, capsys
):
    settings = EngineConfig(precision="fp32", graphs=True, **engine)
    run = run_of(config).model_copy(update={"engine": settings})
    built = build_engine(run, vocabulary_of(small), CPU)
    event = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert event["captured"] is False
    assert reason in event["reason"]
    batch = next(feed_of(iterative_scheme_of(run), run, small).batches(0))
    built.begin_epoch(0)
    assert built.train_batch(batch, CounterRng.of(0, 0), step=0).gradient_norm > 0
