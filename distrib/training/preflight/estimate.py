"""Estimates what a run needs from its run file and sizes alone: no data, no cluster.

Memory is counted tensor by tensor. Time comes from the floating-point operations of a real step,
traced at a small size and scaled up, at the speed a worker is assumed to reach, plus gradients sent
over an assumed network; `distrib.training.preflight.doctor` measures where there is a cluster.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch.utils.flop_counter import FlopCounterMode

from distrib.data.dataset import RowCounts
from distrib.data.feeds.collate import gather
from distrib.data.history_arrays import BYTES_PER_INTERACTION, BYTES_PER_USER, HistoryArrays
from distrib.data.schema import Role
from distrib.errors import ConfigError
from distrib.objectives.label_config import ReadsLabels
from distrib.rng import CounterRng
from distrib.training.config import TrainingRun
from distrib.training.engines.deepspeed_config import LARGEST_BUCKET
from distrib.training.engines.local import LocalEngine
from distrib.training.schemes import iterative_scheme_of, scheme_of
from distrib.training.schemes.base import Shape, Sizes
from distrib.vocabulary import Vocabulary

_GB = 2**30
_MOMENTS = {"adamw": 2, "adam": 2, "nadam": 2, "adagrad": 1, "sgd": 1}
_BUFFERS = {2: 2, 3: 1}
"""Of gradients under way, by ZeRO stage."""

_PROCESS_GB = {False: 0.7, True: 3.0}
"""Memory of a worker before it holds data or a model, without and with a CUDA context."""

_TRACED_ROWS, _TRACED_COLUMNS, _TRACED_HISTORY = (16, 32), (256, 512), 8
_LEAST_SHOWN = 0.01
_COPIES_OF_BLOCK = 3
"""Scores of a chunk, their loss and their gradient."""

GPUS: Mapping[str, tuple[float, float]] = {
    "t4": (65e12, 15.0),
    "a10": (125e12, 23.0),
    "l4": (121e12, 23.0),
    "a100-40gb": (312e12, 39.0),
    "a100": (312e12, 79.0),
    "h100": (989e12, 79.0),
    "h200": (989e12, 140.0),
}
"""Dense 16-bit FLOP/s from the data sheet, and GB of memory."""

_SHARE_OF_PEAK = 0.25
_FP32_SHARE = 0.125
_NETWORK = {False: 1.25e9, True: 12.5e9}
"""Bytes per second that a worker sends and receives, without and with GPU: 10 and 100 Gbit/s."""

_FLOPS_OF_CORE = {"fp32": 35e9, "bf16": 100e9, "fp16": 35e9}


def sizes_of_counts(counts: RowCounts) -> Sizes:
    """Return the sizes of prepared data."""
    trained = counts.interactions(Role.INPUT, Role.TRAIN_TARGET)
    return Sizes(counts.training_users, counts.items, trained)


class Estimate(NamedTuple):
    """What a run needs."""

    parameters: int
    histories_gb: float
    state_gb: float
    """Of each worker: model, gradients and optimizer."""

    worker_gb: float
    """Of each worker, in total; of the GPU where there is one."""

    checkpoint_gb: float
    bundle_gb: float
    steps: int
    """Of an epoch."""

    step_s: float | None
    """None where it has to be measured."""

    train_hours: float | None
    gpu_hours: float | None
    score_hours: float | None
    """To score all users on as many workers of the same kind."""

    def lines(self) -> dict[str, str]:
        """Return the lines of a table."""
        return {
            "parameters": f"{self.parameters:,}",
            "histories in memory": _read(self.histories_gb, "GB"),
            "model, gradients and optimizer, each worker": _read(self.state_gb, "GB"),
            "memory of a worker": _read(self.worker_gb, "GB"),
            "checkpoint": _read(self.checkpoint_gb, "GB"),
            "bundle": _read(self.bundle_gb, "GB"),
            "steps of an epoch": f"{self.steps:,}",
            "a step": _read(self.step_s, "s"),
            "training": _read(self.train_hours, "h"),
            "GPUs in training": _read(self.gpu_hours, "GPU h"),
            "scoring everyone": _read(self.score_hours, "h"),
        }


def _read(value: float | None, unit: str) -> str:
    if value is None:
        return "distrib doctor measures it"
    return (
        f"{value:.3g} {unit}" if value >= _LEAST_SHOWN or not value else f"< {_LEAST_SHOWN} {unit}"
    )


def estimate(config: TrainingRun, sizes: Sizes, gpu: str = "h100") -> Estimate:
    """Estimate what a run needs; the hours exclude validation and reading.

    Args:
        config: The run; closed-form models have no steps.
        sizes: Of its log.
        gpu: Which of `GPUS`, where the run uses any.

    Returns:
        The estimate.

    Raises:
        ConfigError: The model is closed-form, a size is 0, or the GPU is unknown.
    """
    scheme = iterative_scheme_of(config)
    small = [name for name, size in sizes._asdict().items() if size < 1]
    if small:
        raise ConfigError(f"sizes: {', '.join(small)} must be 1 or more")
    if config.train.use_gpu and gpu not in GPUS:
        raise ConfigError(f"gpu {gpu!r}: unknown; use one of {', '.join(GPUS)}")
    steps, train = scheme.steps_per_epoch(config, sizes), config.train
    workers = train.max_workers
    parameters, of_items = _parameters(config, sizes)
    state_gb = state_bytes(config, parameters, workers) / _GB
    columns = scheme.shape(config, sizes).columns
    share = -(-train.batch_users // workers)
    flops, reached = _step_flops(config, share, columns), _reached(config, gpu)
    scoring = _extrapolated(partial(_scored, config), sizes.users, sizes.items)
    sent = parameters
    # Of item rows that are read, those that occur in the batch; a table of both is met whole.
    met = min(1.0, train.batch_users * sizes.interactions / sizes.users / sizes.items)
    if config.engine.parallel == "items":
        sent += round(of_items * (met / 2 - 1))
    if config.engine.parallel == "rows" and not config.model.spec.is_tied:
        sent += round(of_items * (met - 1) / 2)
    step_s = None if flops is None else flops / reached + _sending_s(config, sent)
    train_h = None if step_s is None else _hours(step_s * steps * train.num_epochs)
    return Estimate(
        parameters=parameters,
        histories_gb=_histories_bytes(sizes) / _GB,
        state_gb=state_gb,
        worker_gb=_PROCESS_GB[train.use_gpu]
        + state_gb
        + _work_gb(config, sizes, Shape(share, columns), gpu),
        checkpoint_gb=checkpoint_bytes(config, parameters) / _GB,
        bundle_gb=4 * parameters / _GB,
        steps=steps,
        step_s=step_s,
        train_hours=train_h,
        gpu_hours=0.0 if not train.use_gpu else None if train_h is None else train_h * workers,
        score_hours=None if scoring is None else _hours(scoring, reached),
    )


def state_bytes(config: TrainingRun, parameters: int, workers: int) -> int:
    """Return the bytes of a worker's parameters, gradients, optimizer state and buffers."""
    engine = config.engine
    moments = 4 * _MOMENTS[config.optimizer.name]
    uses_deepspeed = engine.needs_deepspeed(workers)
    if engine.precision == "fp32" and not uses_deepspeed and engine.parallel != "items":
        return parameters * (moments + 4 + 4)  # what is updated is what computes
    half = 4 if engine.precision == "fp32" else 2
    sharded = {"data": engine.zero_stage, "rows": 0, "items": 3}[engine.parallel]
    shares = [workers if sharded >= stage else 1 for stage in (1, 2, 3)]
    state = (
        parameters * (moments + 4) // shares[0]
        + parameters * 4 // shares[1]
        + (parameters * half * 2 // shares[2])
    )
    # Nearly all of a model may be one table, and a buffer holds at least a table.
    buffers = _BUFFERS.get(engine.zero_stage, 0) if uses_deepspeed else 0
    return state + buffers * half * min(parameters, LARGEST_BUCKET)


def checkpoint_bytes(config: TrainingRun, parameters: int) -> int:
    """Return the size of a checkpoint: weights and moments in float32."""
    return parameters * 4 * (1 + _MOMENTS[config.optimizer.name])


def _histories_bytes(sizes: Sizes) -> int:
    users = 2 * BYTES_PER_USER * sizes.users  # for training, and for validation
    return BYTES_PER_INTERACTION * sizes.interactions + users


def _hours(amount: float, a_second: float = 1.0) -> float:
    return amount / a_second / 3600


def _sending_s(config: TrainingRun, parameters: int) -> float:
    """Return the seconds of an all-reduce of the gradients over all workers."""
    engine, workers = config.engine, config.train.max_workers
    is_half = engine.gradient_precision == "bf16" or (
        engine.parallel == "items" and engine.precision != "fp32"
    )
    size = 2 if is_half else 4
    passed = 2 * (workers - 1) / workers * parameters * size
    return passed / _NETWORK[config.train.use_gpu]


def _parameters(config: TrainingRun, sizes: Sizes) -> tuple[int, int]:
    """Count parameters, in total and of items, at small sizes; extrapolate linearly."""
    low, high = _TRACED_COLUMNS

    def count(items: int, users: int) -> int:
        model = scheme_of(config).build(config.model, _small(items, users))
        return sum(tensor.numel() for tensor in model.state_dict().values())

    first = count(low, low)
    per_item = (count(high, low) - first) / (high - low)
    per_user = (count(low, high) - first) / (high - low)
    all_in_all = first + per_item * (sizes.items - low) + per_user * (sizes.users - low)
    return round(all_in_all), round(per_item * sizes.items)


def _step_flops(config: TrainingRun, rows: int, columns: int) -> float | None:
    """Return the FLOPs of an update, extrapolated from traces in rows and columns.

    None where matrix products do not dominate: two-sided models, and histories of which pairs are
    decoded one by one.
    """
    assert config.objective is not None  # every iterative model has one
    objective, scheme = config.objective.build(_small(1, 1).catalog), iterative_scheme_of(config)
    if not scheme.extrapolates or (objective.decodes_pairs and scheme.decodes_inputs):
        return None
    return _extrapolated(partial(_traced, config), rows, columns)


def _extrapolated(trace: Callable[[int, int], float], rows: int, columns: int) -> float | None:
    """Extrapolate FLOPs that are linear in rows and in columns; None where none are counted."""
    (few, many), (narrow, wide) = _TRACED_ROWS, _TRACED_COLUMNS
    x, y = (rows - few) / (many - few), (columns - narrow) / (wide - narrow)
    corner = {(r, c): trace(r, c) for r in _TRACED_ROWS for c in _TRACED_COLUMNS}
    found = (
        corner[few, narrow] * (1 - x) * (1 - y)
        + corner[many, narrow] * x * (1 - y)
        + corner[few, wide] * (1 - x) * y
        + corner[many, wide] * x * y
    )
    return found if found > 0.0 else None


def _traced(config: TrainingRun, rows: int, columns: int) -> float:
    """Count the FLOPs of a real update of a few rows."""
    scheme = iterative_scheme_of(config)
    vocabulary = _small(*((rows, columns) if scheme.reads == "items" else (columns, rows)))
    model = scheme.build(config.model, vocabulary)
    assert config.objective is not None  # every iterative model has one
    objective = config.objective
    if isinstance(objective, ReadsLabels):
        objective = objective.without_files()
    loss = objective.build(vocabulary.catalog)
    engine_config = config.engine.model_copy(update={"block_items": columns})
    step = scheme.step(model, loss, engine_config)
    engine = LocalEngine(step, config.optimizer)
    train = config.train.model_copy(update={"batch_users": rows})
    small = config.model_copy(update={"train": train})
    histories = _some_histories(rows, columns)
    batch = next(scheme.sample_batches(small, histories, vocabulary, 1))
    with FlopCounterMode(display=False) as counter:
        engine.begin_epoch(0)
        engine.train_batch(batch, CounterRng.of(0, 0), step=0)
    return float(counter.get_total_flops())


@torch.inference_mode()
def _scored(config: TrainingRun, users: int, items: int) -> float:
    """Count the FLOPs of scoring all items for a few users that training has seen."""
    model = config.model.build(_small(items, users).catalog)
    batch, _ = gather(_some_histories(users, items), np.arange(users))
    with FlopCounterMode(display=False) as counter:
        model.decode(model.encode(batch), slice(None))
    return float(counter.get_total_flops())


def _some_histories(rows: int, columns: int) -> HistoryArrays:
    rng = np.random.default_rng(0)
    item_N = np.concatenate(
        [np.sort(rng.choice(columns, _TRACED_HISTORY, replace=False)) for _ in range(rows)]
    )
    return HistoryArrays(
        np.arange(rows),
        np.arange(rows + 1) * _TRACED_HISTORY,
        item_N.astype(np.int32),
        np.ones(len(item_N), dtype=np.float32),
        np.full(len(item_N), Role.INPUT, dtype=np.int8),
    )


def _small(items: int, users: int) -> Vocabulary:
    """Return a vocabulary of five levels with one interaction for each item and level."""
    levels = (1.0, 2.0, 3.0, 4.0, 5.0)
    counts = np.ones((items, len(levels)), dtype=np.int64)
    return Vocabulary(pa.array(range(items)), levels, counts, users, users)


def _work_gb(config: TrainingRun, sizes: Sizes, shape: Shape, gpu: str) -> float:
    """Return the memory of the scores and the histories of a worker's share of a batch."""
    engine, (share, columns) = config.engine, shape
    rows = min(engine.micro_batch_users or share, share)
    width = 6 if config.model.spec.output == "rating_classes" else 1
    size = 4 if engine.precision == "fp32" else 2
    kept = min(engine.kept_mb << 20, rows * columns * width * size)
    block = _COPIES_OF_BLOCK * 4 * width * rows * min(engine.chunk_items, columns)
    if config.train.use_gpu:  # a quarter of its memory each, at most, where they are left open
        room = GPUS[gpu][1] * _GB / 4
        if engine.keep_output_mb == "auto":
            kept = round(min(room, rows * columns * width * size))
        if engine.block_items == "auto":
            block = round(min(room, _COPIES_OF_BLOCK * 4 * width * rows * columns))
    history = 16.0 * rows * sizes.interactions / max(sizes.users, 1)
    return (kept + block + history) / _GB


def _reached(config: TrainingRun, gpu: str) -> float:
    """Return the FLOP/s that a worker is assumed to reach."""
    precision = config.engine.precision
    if config.train.use_gpu:
        share = _SHARE_OF_PEAK * (_FP32_SHARE if precision == "fp32" else 1.0)
        return GPUS[gpu][0] * share
    return _FLOPS_OF_CORE[precision] * config.train.cpus_per_worker
