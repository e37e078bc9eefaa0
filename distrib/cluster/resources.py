"""What the cluster has, and waiting for what an autoscaler, or somebody, may bring."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence

import ray
from ray.autoscaler.sdk import request_resources

from distrib.events import Interval, emit

ON_CPU = {
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    # Freed memory stays with the process: fresh pages for its tensors take a third of a step.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}
"""Environment of workers without a GPU."""


ROOM_S = 1200.0
"""How long nodes may take to come."""

_POLL_S, _TOLD_S = 1.0, 30.0


def present() -> Mapping[str, float]:
    """Return the resources of all living nodes, by Ray's names."""
    found: Mapping[str, float] = ray.cluster_resources()
    return found


def is_fixed() -> bool:
    """Tell whether this process started the cluster, which then never grows."""
    node = ray._private.worker._global_node
    return node is not None and bool(node.head)


def short_of(bundles: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Return what the cluster lacks now, wanted and there, by Ray's names."""
    wanted: Counter[str] = Counter()
    for bundle in bundles:
        wanted.update(bundle)
    have = present()
    return {
        name: (count, have.get(name, 0.0))
        for name, count in wanted.items()
        if have.get(name, 0.0) < count
    }


def await_room(
    bundles: Sequence[Mapping[str, float]], limit_s: float = ROOM_S
) -> dict[str, tuple[float, float]]:
    """Ask the autoscaler for what is wanted, and wait until it is there.

    A cluster that scales from zero has next to nothing when a job begins, and Ray does not say what
    it may grow to. A cluster of our own is not waited for.

    Args:
        bundles: Resources of each worker.
        limit_s: For how long.

    Returns:
        What is still lacking, as `short_of`; nothing where there is room.
    """
    lacking = short_of(bundles)
    if not lacking or is_fixed():
        return lacking
    deadline, interval = time.monotonic() + limit_s, Interval(_TOLD_S)
    emit("waiting_for_room", lacking=_amounts(lacking), limit_s=limit_s)
    request_resources(bundles=[dict(bundle) for bundle in bundles])
    try:
        while lacking and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            lacking = short_of(bundles)
            if lacking and interval.due():
                emit("waiting_for_room", lacking=_amounts(lacking))
    finally:
        request_resources(bundles=[])  # what is asked for so stays, busy or not
    return lacking


def _amounts(lacking: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    return {name: wanted - have for name, (wanted, have) in lacking.items()}
