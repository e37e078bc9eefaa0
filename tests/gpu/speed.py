"""How fast a device trains and scores at MovieLens-20M's size, beside a bare loop of PyTorch."""

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch.profiler import ProfilerActivity, profile

from distrib.batch import Batch
from distrib.data.feeds.base import BatchSharding, RankBatch
from distrib.data.feeds.resident import ResidentFeed
from distrib.data.history_arrays import HistoryArrays
from distrib.models import Conv4RecConfig, ModelConfig, MultVaeConfig
from distrib.rng import CounterRng
from distrib.scoring.scorer import Scorer
from distrib.training.engines.blocks import with_blocks
from distrib.training.engines.config import EngineConfig
from distrib.training.engines.graphs import Graphs, runner_on
from distrib.training.engines.local import LocalEngine
from distrib.training.optimizer import OptimizerConfig
from distrib.training.schemes import iterative_scheme_of
from distrib.vocabulary import Vocabulary
from tests.benchmarks.training import BareMultVae
from tests.in_process import run_of

LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0)
_WARM_UP = 3
_PROFILED = 4
_LAUNCHES = (
    *("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx"),
    "cudaGraphLaunch",
)
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
_LIST = 50


class World(NamedTuple):
    """Histories of the size of a log."""

    rows: HistoryArrays
    vocabulary: Vocabulary
    models: dict[str, ModelConfig]
    faults: list[str]
    """What could not be measured, such as a batch that the device has no memory for."""

    @contextlib.contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """Note an error of one measurement, so that the others are made and kept."""
        try:
            yield
        except RuntimeError as error:
            self.faults.append(f"{what}: {str(error).splitlines()[0]}")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def world_of(num_users: int, num_items: int, *, mean_length: int, is_small: bool) -> World:
    """Draw histories: lengths geometric, items by a power law."""
    rng = np.random.default_rng(0)
    length_B = np.minimum(4 + rng.geometric(1.0 / mean_length, num_users), num_items // 4)
    row_N = np.repeat(np.arange(num_users), length_B)
    item_N = (num_items * rng.random(len(row_N)) ** 3).astype(np.int64)
    key_N = np.unique(row_N * num_items + item_N)  # sorted by user, then by item
    row_N, item_N = key_N // num_items, key_N % num_items
    value_N = rng.integers(1, 6, len(item_N)).astype(np.float32)
    pointer_P = np.searchsorted(row_N, np.arange(num_users + 1))
    roles_N = np.zeros(len(item_N), np.int8)
    rows = HistoryArrays(np.arange(num_users), pointer_P, item_N.astype(np.int32), value_N, roles_N)
    count_IL = np.zeros((num_items, len(LEVELS)), dtype=np.int64)
    np.add.at(count_IL, (item_N, value_N.astype(int) - 1), 1)
    vocabulary = Vocabulary(pa.array(range(num_items)), LEVELS, count_IL, num_users, num_users)
    models: dict[str, ModelConfig] = {
        "Mult-VAE": MultVaeConfig(),
        "Conv4Rec": Conv4RecConfig(),
    }
    if is_small:
        models = {
            "Mult-VAE": MultVaeConfig(hidden_width=16, latent_width=8),
            "Conv4Rec": Conv4RecConfig(latent_width=8, rating_width=4),
        }
    return World(rows, vocabulary, models, [])


class Trained(NamedTuple):
    """Speed of training with one size of batch."""

    model: str
    batch: int
    graphs: bool
    """Whether updates are of a few shapes, which a GPU runs as graphs."""

    users_per_s: float
    bare_users_per_s: float | None
    step_ms: float
    launches: float
    """Kernels of an update; on a CPU, operations."""

    waits: float
    """Of the host for the device, in an update."""

    memory_gb: float
    block_items: int


def training(
    world: World, device: torch.device, batches: list[int], until_s: float
) -> list[Trained]:
    """Train as the jobs do on one worker, in bf16, from histories on the device.

    Args:
        world: The histories.
        device: Where.
        batches: Users of a batch.
        until_s: Of `time.monotonic`; what comes later is left out.

    Returns:
        A row for each model and size, without graphs and with them.
    """
    found = []
    for users, name, graphs in itertools.product(batches, world.models, (False, True)):
        what = f"training {name}, {users:,} users{', graphs' * graphs}"
        if time.monotonic() < until_s:
            with world.noting(what):
                found.append(_trained(world, device, name, users, graphs=graphs))
    return found


def _feed(world: World, device: torch.device, users: int) -> Iterator[RankBatch]:
    on_device = device if device.type == "cuda" else None
    feed = ResidentFeed(world.rows, world.rows, BatchSharding(users, 0, 0, 1), on_device)
    whole = itertools.chain.from_iterable(feed.batches(epoch) for epoch in itertools.count())
    return (batch for batch in whole if batch.size == users)


def _trained(world: World, device: torch.device, name: str, users: int, *, graphs: bool) -> Trained:
    config = world.models[name]
    torch.manual_seed(0)
    scheme = iterative_scheme_of(run := run_of(config))
    model = scheme.build(config, world.vocabulary)
    items = len(world.vocabulary)
    settings = with_blocks(EngineConfig(), device, users, items, model)
    assert run.objective is not None
    step = scheme.step(model, run.objective.build(world.vocabulary.catalog), settings)
    runner = runner_on(device) if graphs else None
    engine = LocalEngine(step.to(device), OptimizerConfig(), dtype=torch.bfloat16, runner=runner)
    engine.begin_epoch(0)
    rng, numbers = CounterRng.of(0, 0), itertools.count()

    def update(batch: RankBatch) -> None:
        engine.train_batch(batch, rng, step=next(numbers))

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    step_s = _timed(update, _feed(world, device, users), device)
    counts = _profiled(update, _feed(world, device, users), device)
    if isinstance(runner, Graphs) and runner.fault:
        raise RuntimeError(f"not captured: {runner.fault}")
    bare_s = None
    if name == "Mult-VAE" and not graphs:
        bare_s = _timed(_bare_update(config, items, device), _feed(world, device, users), device)
    return Trained(
        model=name,
        batch=users,
        graphs=graphs,
        users_per_s=users / step_s,
        bare_users_per_s=None if bare_s is None else users / bare_s,
        step_ms=1e3 * step_s,
        launches=counts["launches"] / _PROFILED,
        waits=counts["waits"] / _PROFILED,
        memory_gb=torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0,
        block_items=settings.chunk_items,
    )


def _bare_update(
    config: ModelConfig, items: int, device: torch.device
) -> Callable[[RankBatch], None]:
    assert isinstance(config, MultVaeConfig)
    model = BareMultVae(items, config.hidden_width, config.latent_width).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def update(batch: RankBatch) -> None:
        target = batch.to(device).target
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(target) / batch.size
        loss.backward()
        optimizer.step()

    return update


def _timed(
    update: Callable[[RankBatch], None],
    batches: Iterator[RankBatch],
    device: torch.device,
    least_s: float = 1.0,
) -> float:
    """Return the seconds of an update, over a second or more."""
    for batch in itertools.islice(batches, _WARM_UP):
        update(batch)
    _sync(device)
    started_s, number = time.perf_counter(), 0
    while time.perf_counter() - started_s < least_s:
        for batch in itertools.islice(batches, 5):
            update(batch)
            number += 1
        _sync(device)
    return (time.perf_counter() - started_s) / number


def _sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _profiled(
    update: Callable[[RankBatch], None], batches: Iterator[RankBatch], device: torch.device
) -> Counter[str]:
    """Count what some updates launch, and how often they wait."""
    chosen = list(itertools.islice(batches, _PROFILED))
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as seen:
        for batch in chosen:
            update(batch)
    counts: Counter[str] = Counter(launches=0, waits=0)
    for event in seen.key_averages():
        is_launch = event.key in _LAUNCHES if device.type == "cuda" else event.key[:6] == "aten::"
        counts["launches"] += event.count * is_launch
        counts["waits"] += event.count * (event.key in _WAITS)
    return counts


class Scored(NamedTuple):
    """Speed of scoring with one size of batch."""

    model: str
    batch: int
    precision: str
    users_per_s: float
    bare_users_per_s: float


def scoring(world: World, device: torch.device, batches: list[int], until_s: float) -> list[Scored]:
    """Make lists of 50 for users with their histories, without what they know.

    Args:
        world: The histories.
        device: Where.
        batches: Users of a batch.
        until_s: Of `time.monotonic`; what comes later is left out.

    Returns:
        A row for each model, size and precision.
    """
    found = []
    for users, (name, config), precision in itertools.product(
        batches, world.models.items(), ("fp32", "bf16")
    ):
        if time.monotonic() > until_s:
            continue
        model = config.build(world.vocabulary.catalog).eval().requires_grad_(False)
        scorer = Scorer(model, world.vocabulary, device=device, precision=precision)

        def recommend(batch: RankBatch, scorer: Scorer = scorer) -> None:
            scorer.recommend(batch.target, batch.target, _LIST)

        def bare(batch: RankBatch, scorer: Scorer = scorer) -> None:
            _bare_lists(scorer, batch.to(device).target)

        host = torch.device("cpu")
        with world.noting(f"scoring by {name}, {users:,} users, {precision}"):
            speed = [
                users / _timed(update, _feed(world, host, users), device)
                for update in (recommend, bare)
            ]
            found.append(Scored(name, users, precision, *speed))
    return found


@torch.inference_mode()
def _bare_lists(scorer: Scorer, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Rank all items at once; what one writes without a framework."""
    output = scorer.model.decode(scorer.model.encode(batch), slice(None))
    score_BI = output if output.dim() == 2 else -output.log_softmax(-1)[..., 0]
    score_BI[batch.row_N, batch.item_N] = -torch.inf
    values, items = score_BI.topk(_LIST)
    return values.cpu(), items.cpu()
