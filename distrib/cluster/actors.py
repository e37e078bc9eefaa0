"""Pools of actors that Ray Data grows as far as the cluster has room."""

import ray.data

from distrib.cluster.resources import await_room, is_fixed, present
from distrib.errors import ConfigError


def actor_pool(gpus_per_actor: float, num_pieces: int) -> ray.data.ActorPoolStrategy:
    """Return as many actors as fit; nothing is left to read tasks, since work comes from memory.

    Args:
        gpus_per_actor: GPUs, or the share of one, that each takes.
        num_pieces: Of work; more actors would have nothing to do.

    Returns:
        One actor at least.

    Raises:
        ConfigError: There is no room for one, and none came; Ray would wait for ever.
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
