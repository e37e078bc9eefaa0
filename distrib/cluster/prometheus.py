"""Prometheus gauges of jobs, exported through Ray's metrics port on each node.

Ray drops a gauge that is not set again within seconds, so gauges of a hung job would disappear
instead of staying constant. A thread sets the last values again while the process lives.
"""

import threading
import time
from functools import cache

import ray
from ray.util.metrics import Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distrib.cluster.resources import is_fixed

_KEEPER = "distrib-gauges"
_AGAIN_S = 5.0
_PATIENCE_S = 30.0
_LAST: dict[tuple[str, tuple[tuple[str, str], ...]], tuple[Gauge, float]] = {}


def show(name: str, description: str, value: float, **tags: str) -> None:
    """Set a gauge, exported as ``ray_distrib_<name>`` while this process lives.

    Args:
        name: Metric name, with its unit.
        description: Help text of the metric.
        value: Current value.
        **tags: Low-cardinality labels; never ids of users or items.
    """
    gauge = _gauge(name, description, tuple(sorted(tags)))
    gauge.set(value, tags)
    _LAST[name, tuple(sorted(tags.items()))] = (gauge, value)
    _begin_to_repeat()


def hide(name: str) -> None:
    """Stop exporting a gauge; Ray drops it within seconds.

    Args:
        name: See `show`.
    """
    for key in [key for key in _LAST if key[0] == name]:
        del _LAST[key]


def keep(name: str, description: str, value: float) -> None:
    """Set a gauge that outlives the job, which may end before Prometheus scrapes it.

    A local cluster ends with the job, so this is `show` there.

    Args:
        name: See `show`.
        description: See `show`.
        value: Current value.
    """
    if is_fixed() or not ray.is_initialized():
        show(name, description, value)
        return
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    keeper = ray.remote(_Keeper).options(
        name=_KEEPER,
        namespace=_KEEPER,
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,
        scheduling_strategy=here,  # the driver's node: on another node it would block scale-down
    )
    try:
        ray.get(keeper.remote().show.remote(name, description, value), timeout=_PATIENCE_S)
    except ray.exceptions.RayError:
        show(name, description, value)  # a metric must not fail the job


class _Keeper:
    """Detached actor that holds last values; it reserves no CPU."""

    def show(self, name: str, description: str, value: float) -> None:
        """Set a gauge."""
        show(name, description, value)


@cache
def _begin_to_repeat() -> None:
    threading.Thread(target=_repeat, name="distrib-gauges", daemon=True).start()


def _repeat() -> None:
    while True:
        time.sleep(_AGAIN_S)
        if ray.is_initialized():
            for (_, tags), (gauge, value) in list(_LAST.items()):
                gauge.set(value, dict(tags))


@cache
def _gauge(name: str, description: str, tags: tuple[str, ...]) -> Gauge:
    return Gauge(f"distrib_{name}", description, tag_keys=tags)
