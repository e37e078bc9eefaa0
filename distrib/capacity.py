"""What the cluster has, and what its autoscaler may still bring."""

from collections.abc import Mapping

import ray


def present() -> Mapping[str, float]:
    """Return the resources of all living nodes, by Ray's names."""
    found: Mapping[str, float] = ray.cluster_resources()
    return found


def reachable() -> Mapping[str, float]:
    """Return the resources at the cluster's largest: what is there, or what may be added.

    A cluster that scales from zero has next to nothing when a job begins; what it can never hold
    is what must be refused.
    """
    found = dict(present())
    limits = ray._private.state.state.get_max_resources_from_cluster_config()
    for name, most in (limits or {}).items():
        found[name] = max(found.get(name, 0.0), float(most))
    return found
