"""Cluster resources, and waiting for nodes that an autoscaler or an operator adds."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence

import ray
from ray.autoscaler.sdk import request_resources

from distrib.events import Interval, emit

OWN_CLUSTER = "distrib-own-cluster"
"""Ray namespace of a cluster that the driver has started for itself; workers see it, too."""

ON_CPU = {
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    # Keep freed memory in the process: new pages for tensors cost a third of a step.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}
"""Environment of workers without a GPU."""


ROOM_S = 1200.0
"""Default time limit for new nodes."""

_POLL_S, _REPORT_S = 1.0, 30.0


def present() -> Mapping[str, float]:
    """Return the resources of all live nodes, by Ray resource name."""
    found: Mapping[str, float] = ray.cluster_resources()
    return found


def is_fixed() -> bool:
    """Return whether the driver started the cluster; such a cluster never grows."""
    node = ray._private.worker._global_node
    is_driver = node is not None and bool(node.head)
    is_ours = ray.is_initialized() and ray.get_runtime_context().namespace == OWN_CLUSTER
    return is_driver or is_ours


def short_of(bundles: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Return (required, available) for each resource that is short, by Ray resource name."""
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
    """Request resources from the autoscaler, and wait until they are available.

    A cluster that scales from zero has few resources when a job starts, and Ray does not report
    what it can grow to. A local cluster cannot grow, so there is no wait.

    Args:
        bundles: Resources of each worker.
        limit_s: Time limit in seconds.

    Returns:
        What is still missing, see `short_of`; empty if all resources are available.
    """
    lacking = short_of(bundles)
    if not lacking or is_fixed():
        return lacking
    deadline, interval = time.monotonic() + limit_s, Interval(_REPORT_S)
    emit("waiting_for_room", lacking=_amounts(lacking), limit_s=limit_s)
    request_resources(bundles=[dict(bundle) for bundle in bundles])
    try:
        while lacking and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            lacking = short_of(bundles)
            if lacking and interval.due():
                emit("waiting_for_room", lacking=_amounts(lacking))
    finally:
        request_resources(bundles=[])  # a request persists and keeps idle nodes up
    return lacking


def _amounts(lacking: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    return {name: wanted - have for name, (wanted, have) in lacking.items()}
