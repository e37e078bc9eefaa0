"""Actor pools for Ray Data that grow with the free resources of the cluster."""

import ray.data

from distrib.cluster.resources import await_room, is_fixed, present
from distrib.errors import ConfigError


def actor_pool(gpus_per_actor: float, num_pieces: int) -> ray.data.ActorPoolStrategy:
    """Return a pool of as many actors as fit; the input is in memory, so read tasks need no CPUs.

    Args:
        gpus_per_actor: GPUs per actor; may be a fraction.
        num_pieces: Work items; upper bound on the number of actors.

    Returns:
        A strategy with at least one actor.

    Raises:
        ConfigError: The resources for one actor did not appear; Ray would wait forever.
    """
    actor = {"CPU": 1.0} | ({"GPU": gpus_per_actor} if gpus_per_actor else {})
    lacking = await_room([actor])
    if lacking:
        listing = ", ".join(f"{there:g} {name}" for name, (_, there) in lacking.items())
        raise ConfigError(
            f"gpus_per_actor = {gpus_per_actor}, but the cluster has {listing}; set it to 0, or "
            "add nodes"
        )
    have = present()
    now = int(min(have[name] / share for name, share in actor.items()))
    most = max(1, min(now, num_pieces) if is_fixed() else num_pieces)
    return ray.data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=min(now, most))
