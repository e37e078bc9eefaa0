"""What soft labels take, from sizes alone."""

from distrib.distill.config import SoftenConfig

_NEAR_S = 4e-8
"""Seconds of a core for each pair of users in a cluster; measured."""

_SPREAD_S = 1.2e-6
"""Seconds of a core for each neighbor in each round; measured."""

_ENTRY = 8
"""Bytes of an item and its weight."""

_HOUR_S, _GB = 3600.0, 2**30


def core_hours(config: SoftenConfig, num_users: int) -> float:
    """Estimate the time of one core; as many cores as there are shards share it.

    Args:
        config: Settings.
        num_users: Training users.

    Returns:
        Hours.
    """
    a_cluster = num_users / config.clusters_of(num_users)
    rounds = config.needed_rounds if config.method == "propagation" else 1
    spreading_s = _SPREAD_S * min(config.num_neighbors, a_cluster) * rounds
    return num_users * (_NEAR_S * a_cluster + spreading_s) / _HOUR_S


def labels_gb(config: SoftenConfig, num_users: int) -> float:
    """Return the most memory that the labels take in each worker that trains with them."""
    return float(num_users) * (config.max_items + 1) * _ENTRY / _GB


def node_gb(num_users: int, width: int) -> float:
    """Return the memory of the embeddings, which every node reads beside the targets."""
    return 4.0 * num_users * width / _GB
