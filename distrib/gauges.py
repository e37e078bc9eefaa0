"""Numbers that a job shows to Prometheus while it runs, through Ray's metrics port on each node."""

from functools import cache

from ray.util.metrics import Gauge


def show(name: str, description: str, value: float, **tags: str) -> None:
    """Set a gauge; Prometheus sees it as ``ray_distrib_<name>``.

    Args:
        name: What is measured, with its unit.
        description: For people.
        value: How it stands.
        **tags: Of few different values; never ids of users or items.
    """
    _gauge(name, description, tuple(sorted(tags))).set(value, tags)


@cache
def _gauge(name: str, description: str, tags: tuple[str, ...]) -> Gauge:
    return Gauge(f"distrib_{name}", description, tag_keys=tags)
