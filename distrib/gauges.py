"""Numbers that jobs show to Prometheus, through Ray's metrics port on each node."""

from functools import cache

import ray
from ray.util.metrics import Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distrib.capacity import is_fixed

_KEEPER = "distrib-gauges"


def show(name: str, description: str, value: float, **tags: str) -> None:
    """Set a gauge; Prometheus sees it as ``ray_distrib_<name>`` while this process lives.

    Args:
        name: What is measured, with its unit.
        description: For people.
        value: How it stands.
        **tags: Of few different values; never ids of users or items.
    """
    _gauge(name, description, tuple(sorted(tags))).set(value, tags)


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
    ray.get(keeper.remote().show.remote(name, description, value))


class _Keeper:
    """An actor of the cluster that holds last values; it takes no core."""

    def show(self, name: str, description: str, value: float) -> None:
        """Set a gauge."""
        show(name, description, value)


@cache
def _gauge(name: str, description: str, tags: tuple[str, ...]) -> Gauge:
    return Gauge(f"distrib_{name}", description, tag_keys=tags)
