"""Numbers that jobs show to Prometheus, through Ray's metrics port on each node.

Ray forgets a gauge that is not set again within seconds, so that a job that hangs would vanish from
sight instead of standing still; last values are set again while their process lives.
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
    """Set a gauge; Prometheus sees it as ``ray_distrib_<name>`` while this process lives.

    Args:
        name: What is measured, with its unit.
        description: For people.
        value: How it stands.
        **tags: Of few different values; never ids of users or items.
    """
    gauge = _gauge(name, description, tuple(sorted(tags)))
    gauge.set(value, tags)
    _LAST[name, tuple(sorted(tags.items()))] = (gauge, value)
    _begin_to_repeat()


def hide(name: str) -> None:
    """Let a gauge go; Ray forgets it within seconds.

    Args:
        name: As of `show`.
    """
    for key in [key for key in _LAST if key[0] == name]:
        del _LAST[key]


def keep(name: str, description: str, value: float) -> None:
    """Set a gauge that outlives the job, for it may end before Prometheus has looked.

    A cluster of our own ends with the job, so this is `show` there.

    Args:
        name: As of `show`.
        description: As of `show`.
        value: How it stands.
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
        scheduling_strategy=here,  # beside the driver: any other node could not go while idle
    )
    try:
        ray.get(keeper.remote().show.remote(name, description, value), timeout=_PATIENCE_S)
    except ray.exceptions.RayError:
        show(name, description, value)  # a number is no reason for a job to fail


class _Keeper:
    """An actor of the cluster that holds last values; it takes no core."""

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
