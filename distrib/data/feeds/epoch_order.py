"""The order in which an epoch reads users.

The resident feed permutes all users; the streaming feed permutes shards, then the users of a
window. The feed of tiles draws its own groups of users and items.
"""

import numpy as np

from distrib.data.hashing import HashArray, mixed
from distrib.data.history_arrays import IntArray

_ROUNDS = 4


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


class LazyOrder:
    """A permutation of which only the parts that are read are computed.

    For more elements than an array should hold. A Feistel network permutes a power of four; values
    beyond the count are permuted again until they are inside (cycle walking).

    Source: Black, Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002.

    Args:
        count: Elements.
        *keys: What the permutation is a pure function of, e.g. seed and epoch.
    """

    def __init__(self, count: int, *keys: int) -> None:
        self.count = count
        half_bits = max(1, ((max(count, 2) - 1).bit_length() + 1) // 2)
        self._bits, self._mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
        self._keys = np.random.default_rng(keys).integers(0, 1 << 63, _ROUNDS).astype(np.uint64)

    def part(self, start: int, stop: int) -> IntArray:
        """Return elements start to stop, at most to the end."""
        place_N = np.arange(start, min(stop, self.count), dtype=np.uint64)
        is_out_N = np.ones(len(place_N), dtype=bool)
        while is_out_N.any():
            place_N[is_out_N] = self._permuted(place_N[is_out_N])
            is_out_N = place_N >= self.count
        return place_N.astype(np.int64)

    def _permuted(self, value_N: HashArray) -> HashArray:
        high_N, low_N = value_N >> self._bits, value_N & self._mask
        for key in self._keys:
            high_N, low_N = low_N, high_N ^ (mixed(low_N ^ key) & self._mask)
        return (high_N << self._bits) | low_N
