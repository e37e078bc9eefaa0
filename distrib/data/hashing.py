"""Hashes of ids that are stable across machines and versions."""

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

HashArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]


def hash_ids(ids: pa.Array, use: int, seed: int = 0) -> HashArray:
    """Hash ids to 64 bits; equal ids of equal type hash alike on every machine.

    Args:
        ids: Integers or text.
        use: Makes different uses of the same ids independent.
        seed: Random seed.

    Returns:
        One hash per id.
    """
    if pa.types.is_integer(ids.type):
        base = ids.to_numpy(zero_copy_only=False).astype(np.int64).view(np.uint64)
    else:
        base = pd.util.hash_array(ids.to_numpy(zero_copy_only=False).astype(object))
    return mixed(base + mixed(np.asarray([seed * 1_000_003 + use], dtype=np.int64).view(np.uint64)))


def hash_pairs(users: pa.Array, items: pa.Array, use: int, seed: int = 0) -> HashArray:
    """Hash pairs of a user's and an item's id; see `hash_ids`."""
    return mixed(hash_ids(users, use, seed) ^ mixed(hash_ids(items, use, seed)))


def sampled(position_B: IntArray, share: float) -> IntArray:
    """Return a share of some positions, the same on every machine."""
    if share >= 1.0:
        return position_B
    return position_B[mixed(position_B.astype(np.uint64)) < np.uint64(share * 2.0**64)]


def mixed(state: HashArray) -> HashArray:
    """Mix 64-bit numbers with a bijection: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))
