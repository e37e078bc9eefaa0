"""Checks cluster and run file before training: can it train, and at what cost?"""

import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
import uuid
from typing import Any

import psutil
import ray
import torch
import torch.distributed
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distrib.cluster.resources import ON_CPU
from distrib.config import Record
from distrib.data.dataset import Dataset
from distrib.data.feeds.base import Reads
from distrib.data.feeds.loader import expected_bytes, kind_of
from distrib.data.history_arrays import HistoryArrays
from distrib.errors import ConfigError, DataError, MemoryLimitError, causes
from distrib.events import table
from distrib.rng import CounterRng
from distrib.storage import Folder
from distrib.training.build import build_engine
from distrib.training.config import TrainingRun
from distrib.training.oom import advice, is_of_memory
from distrib.training.preflight.checks import preflight, require_room
from distrib.training.preflight.estimate import (
    checkpoint_bytes,
    estimate,
    sizes_of_counts,
    state_bytes,
)
from distrib.training.schemes import iterative_scheme_of

_PACKAGES = ("distrib", "ray", "torch", "deepspeed", "pyarrow", "numpy")
_WARM_UP_STEPS, _TIMED_STEPS = 2, 3
_GB = 2**30


class NodeFacts(Record):
    """What a node reports about itself."""

    node: str
    python: str
    distrib: str
    ray: str
    torch: str
    deepspeed: str
    pyarrow: str
    numpy: str
    cores: int
    memory_gb: float
    free_disk_gb: float
    gpus: tuple[str, ...]
    fault: str = ""
    """Why it cannot write into the run folder."""


class Report(Record):
    """What `examine` found."""

    nodes: tuple[NodeFacts, ...]
    estimate: dict[str, str | int]
    """Memory per worker and time."""


def examine(config: TrainingRun) -> Report:
    """Check every node, and estimate memory and time of the run.

    Every node writes a file into the run folder, reads those of all others, and removes its own:
    a folder that is not shared fails here rather than at the first checkpoint. A single worker
    makes a few updates on real histories.

    Args:
        config: The run.

    Returns:
        What every node reports, and the estimate.

    Raises:
        ConfigError: Something will not work, all faults at once; or the model is closed-form.
    """
    dataset = preflight(config)
    iterative_scheme_of(config)  # closed-form models have no updates to try
    require_room(config)
    config = config.absolute()
    nodes, faults = _nodes(config)
    faults += _differences(nodes)
    _show_nodes(nodes)
    if faults:
        raise ConfigError("\n  ".join([f"{len(faults)} fault(s)", *faults]))
    measured = _estimate(config, dataset)
    table("Estimate for this run file", ["", ""], [[k, v] for k, v in measured.items()])
    return Report(nodes=tuple(nodes), estimate=measured)


def _nodes(config: TrainingRun) -> tuple[list[NodeFacts], list[str]]:
    """Collect the facts of every live node, and check the run folder from each."""
    token = uuid.uuid4().hex[:8]
    alive = [node for node in ray.nodes() if node["Alive"]]
    names = [f"_doctor-{token}-{node['NodeID'][:8]}" for node in alive]
    look, read, clean = (_on_every(task, alive) for task in (_looked, _read_all, _removed))
    found = look([(config.run, name) for name in names])
    faults = [f"{node.node}: {node.fault}" for node in found if node.fault]
    try:
        if not faults:
            unread = read([(config.run, names)] * len(alive))
            pairs = zip(found, unread, strict=True)
            faults = [f"{node.node}: {fault}" for node, fault in pairs if fault]
    finally:
        clean([(config.run, [name]) for name in names])
    return found, faults


def _on_every(task: Any, nodes: list[Any]) -> Any:
    """Return a function that runs ``task`` once on each node, with arguments for each."""
    there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]

    def run(arguments: list[tuple[Any, ...]]) -> list[Any]:
        remote = ray.remote(task)
        calls = [
            remote.options(num_cpus=0, scheduling_strategy=place).remote(*given)
            for place, given in zip(there, arguments, strict=True)
        ]
        return list(ray.get(calls))

    return run


def _looked(run: str, name: str) -> NodeFacts:
    """Describe this node, and write a file into the run folder."""
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    address, fault = ray.util.get_node_ip_address(), ""
    try:
        Folder(run).write(name, address.encode())
    except DataError as error:
        fault = f"cannot write into the run folder: {error}"
    return NodeFacts(
        node=address,
        python=platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        cores=os.cpu_count() or 0,
        memory_gb=round(psutil.virtual_memory().total / _GB, 1),
        free_disk_gb=round(shutil.disk_usage(tempfile.gettempdir()).free / _GB, 1),
        gpus=tuple(f"{gpu.name}, {gpu.total_memory / _GB:.0f} GB" for gpu in gpus),
        fault=fault,
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _read_all(run: str, names: list[str]) -> str:
    """Read the files of all nodes; return what is wrong."""
    try:
        for name in names:
            Folder(run).read(name)
    except DataError as error:
        return (
            f"does not see what another node wrote ({error}); put run on storage that all nodes "
            "share, e.g. s3://"
        )
    return ""


def _removed(run: str, names: list[str]) -> None:
    for name in names:
        Folder(run).remove(name)


def _differences(nodes: list[NodeFacts]) -> list[str]:
    """Return the packages that differ between nodes."""
    versions = {
        package: {node.node: getattr(node, package) for node in nodes}
        for package in ("python", *_PACKAGES)
    }
    return [
        f"{package} differs between nodes: {found}"
        for package, found in versions.items()
        if len(set(found.values())) > 1
    ]


def _show_nodes(nodes: list[NodeFacts]) -> None:
    keys = ["node", "python", "torch", "ray", "deepspeed", "cores", "memory_gb", "free_disk_gb"]
    rows = [
        [*(getattr(node, key) for key in keys), ", ".join(node.gpus) or "none"] for node in nodes
    ]
    table("Nodes", [*keys, "gpus"], rows)


def _estimate(config: TrainingRun, dataset: Dataset) -> dict[str, str | int]:
    """Make some updates with a worker's resources, and extrapolate from them."""
    train = config.train
    workers = train.max_workers
    resources = {"num_cpus": train.cpus_per_worker, "num_gpus": int(train.use_gpu)}
    variables = {"LOCAL_RANK": "0", "RANK": "0", **({} if train.use_gpu else ON_CPU)}
    environment = {"env_vars": variables}
    trial = ray.remote(max_calls=1, runtime_env=environment, **resources)(_tried)
    try:
        measured = ray.get(trial.remote(config.model_dump_json(), dataset, workers))
    except ray.exceptions.RayError as error:
        if any(is_of_memory(cause) for cause in causes(error)):
            raise MemoryLimitError(advice(config, "a worker's share of a batch")) from error
        raise
    manifest = dataset.manifest
    sizes = sizes_of_counts(manifest.counts)
    scheme = iterative_scheme_of(config)
    steps = scheme.steps_per_epoch(config, sizes)
    planned = estimate(config, sizes)
    kind = kind_of(train.feed, manifest)
    rows_gb = expected_bytes(manifest) / _GB
    state_gb = state_bytes(config, measured["parameters"], workers) / _GB
    minutes = train.num_epochs * steps * measured["step_s"] / 60
    return {
        "parameters": f"{measured['parameters']:,}",
        "feed": f"{kind}, {rows_gb:.2f} GB of histories"
        + (" on every node" if kind == "resident" else " in the prepared folder"),
        "model, gradients and optimizer": f"{state_gb:.2f} GB a worker on {workers}",
        "planned memory of a worker": f"{planned.worker_gb:.2f} GB",
        "measured peak, one worker alone": f"{measured['peak_gb']:.2f} GB",
        "seconds a step, without communication": f"{measured['step_s']:.3f}",
        "steps an epoch": steps,
        "epoch": f"{steps * measured['step_s']:.0f} s",
        f"{train.num_epochs} epochs": f"{minutes:.1f} min, plus validation",
        "checkpoint": f"{checkpoint_bytes(config, measured['parameters']) / _GB:.2f} GB, "
        f"{train.checkpoint.keep} kept",
    }


def _tried(config_json: str, dataset: Dataset, workers: int) -> dict[str, float]:
    """Time a few updates on one worker's share of a batch, in a process of its own."""
    config = TrainingRun.model_validate_json(config_json)
    device = torch.device("cuda" if config.train.use_gpu else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group(
            "nccl" if config.train.use_gpu else "gloo", f"file://{folder}/m", rank=0, world_size=1
        )
        torch.set_num_threads(config.train.cpus_per_worker)
        scheme = iterative_scheme_of(config)
        rows = _some_rows(dataset, scheme.reads)
        vocabulary = dataset.vocabulary
        engine = build_engine(config, vocabulary, device)
        batches = scheme.sample_batches(config, rows, vocabulary, workers)
        started_s = 0.0
        for step in range(_WARM_UP_STEPS + _TIMED_STEPS):
            if step == _WARM_UP_STEPS:
                started_s = time.perf_counter()
            update = engine.train_batch(next(batches), CounterRng.of(0, 0), step=step)
            float(update.gradient_norm)
        step_s = (time.perf_counter() - started_s) / _TIMED_STEPS
        peak = torch.cuda.max_memory_allocated() if config.train.use_gpu else _peak_bytes()
        parameters = sum(tensor.numel() for tensor in engine.weights().values())
    return {"step_s": step_s, "peak_gb": peak / _GB, "parameters": parameters}


def _some_rows(dataset: Dataset, reads: Reads) -> HistoryArrays:
    """Return the training histories of the largest shard, of users or of items, that has any."""
    manifest = dataset.manifest
    if reads == "items":
        for part in sorted(manifest.item_histories or (), key=lambda part: -part.interactions):
            return dataset.item_training(part)
    for entry in sorted(manifest.shards, key=lambda entry: -entry.interactions):
        rows = dataset.training(entry)
        if rows.num_users:
            return rows
    raise DataError(f"{dataset.folder}: no shard has a training user; run prepare again")


def _peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
