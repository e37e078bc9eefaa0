"""The order in which an epoch reads users.

The resident feed permutes all users; the streaming feed permutes shards, then the users of a
window. The feed of tiles draws its own groups of users and items.
"""

import numpy as np

from distrib.data.history_arrays import IntArray


def epoch_order(count: int, seed: int, epoch: int, *more: int) -> IntArray:
    """Return a permutation that is a pure function of the arguments, so that resumed runs agree.

    Args:
        count: Users, or shards of them.
        seed: Of the run.
        epoch: From 0.
        *more: Further keys, e.g. the number of a window of users.

    Returns:
        The permutation of ``range(count)``.
    """
    return np.random.default_rng([seed, epoch, *more]).permutation(count)
