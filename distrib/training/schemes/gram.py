"""Gram matrices of interactions: partial sums over users that add up to the whole."""

import numpy as np
from scipy.sparse import csr_array

from distrib.data.history_arrays import HistoryArrays


def partial_gram(rows: HistoryArrays, item_count: int) -> csr_array:
    """Count, for each pair of items, the users in ``rows`` who have both: X^T X of binary X.

    Args:
        rows: Histories; an item that occurs twice in one counts once.
        item_count: Size of the catalog.

    Returns:
        int32 ``[I, I]``, sparse, symmetric; its diagonal counts the users of each item.
    """
    ones_N = np.ones(len(rows.item_N), dtype=np.int32)
    met = csr_array((ones_N, rows.item_N, rows.pointer_P), shape=(rows.num_users, item_count))
    met.sum_duplicates()
    met.data[:] = 1
    return csr_array(met.T @ met)


def added(one: csr_array, other: csr_array) -> csr_array:
    """Add the Gram matrices of different users."""
    return csr_array(one + other)
