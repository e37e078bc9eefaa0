"""The k-core of a log: users and items that all have enough interactions with each other.

The k-core is unique, so each round can process shards independently: the remaining items determine
the remaining users, and only item counts are exchanged.
"""

import numpy as np
import numpy.typing as npt

from distrib.data.config import CleaningConfig
from distrib.data.schema import Status

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


def item_counts(
    user_N: IntArray, item_N: IntArray, is_alive_I: BoolArray, min_user_items: int
) -> IntArray:
    """Count the interactions of each remaining item with remaining users.

    Args:
        user_N: User of each interaction, from 0; all interactions of these users.
        item_N: Item of each interaction, an index into ``is_alive_I``.
        is_alive_I: Whether each item remains.
        min_user_items: Users with fewer remaining items are removed.

    Returns:
        ``[I]``.
    """
    is_left_N = is_alive_I[item_N]
    is_left_N &= _lengths(user_N, is_left_N) >= min_user_items
    return np.bincount(item_N[is_left_N], minlength=len(is_alive_I)).astype(np.int64)


def next_alive(is_alive_I: BoolArray, count_I: IntArray, config: CleaningConfig) -> BoolArray:
    """Return which items remain after a round."""
    return np.asarray(is_alive_I & (count_I >= config.min_item_users))


def row_status(
    user_N: IntArray, is_alive_N: BoolArray, min_user_items: int
) -> npt.NDArray[np.int8]:
    """Return the `Status` of each interaction once the remaining items are final.

    Args:
        user_N: User of each interaction, from 0; all interactions of these users.
        is_alive_N: Whether its item remains.
        min_user_items: Users with fewer remaining interactions are removed.

    Returns:
        Kept, item too rare, or user too short.
    """
    is_short_N = is_alive_N & (_lengths(user_N, is_alive_N) < min_user_items)
    status_N = np.where(is_short_N, np.int8(Status.USER_TOO_SHORT), np.int8(Status.KEPT))
    return np.where(is_alive_N, status_N, np.int8(Status.ITEM_TOO_RARE)).astype(np.int8)


def _lengths(user_N: IntArray, counts_N: BoolArray) -> IntArray:
    """Return, for each interaction, the number of its user's interactions that count."""
    length_B = np.bincount(user_N, weights=counts_N, minlength=1)
    return length_B[user_N].astype(np.int64)
