"""Expand a real log to any size and keep its distribution: a randomized Kronecker product.

Source: Belletti, Lakshmanan, Krichene, Chen, Anderson, "Scalable Realistic Recommendation Datasets
through Fractal Expansions", arXiv:1901.08910, and its randomized form, arXiv:1905.09874. Every
interaction of the log becomes a submatrix of user copies x item copies; the probability that an
entry is an interaction comes from a small matrix that resembles the log itself. Differs from the
source: that matrix holds the log's density between groups of users and groups of items, of equal
size and ordered by activity and popularity, instead of a reduction of its singular vectors; rows
and columns of the submatrix are rotated by a hash of the interaction's item and user instead of
shuffled; entries are sampled, never thresholded, and keep the interaction's rating.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distrib.data.arrow import dense_ids, to_numpy
from distrib.data.hashing import mixed
from distrib.data.logs.config import ExpandedLog
from distrib.data.logs.synthetic import Interactions

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_HALF_A_DAY_S = 12 * 3600
_ROTATE_USER, _ROTATE_ITEM, _DRAW, _TIME = 1, 2, 3, 4


class Expansion(NamedTuple):
    """A log in memory, and the matrix of its Kronecker product."""

    user_N: IntArray
    item_N: IntArray
    rating_N: npt.NDArray[np.float32]
    time_N: IntArray
    chance_UI: FloatArray
    """Probability of an interaction for each user copy and item copy."""

    num_items: int
    num_users: int
    seed: int

    def draw(self, copy: int) -> Interactions:
        """Draw the interactions of one copy of all users, deterministically.

        Args:
            copy: 0..user_copies-1.

        Returns:
            Users ``copy * num_users + user`` and items ``item_copy * num_items + item``, from 0.
        """
        num_copies, item_copies = self.chance_UI.shape
        row_N = (copy + self._uniform(_ROTATE_USER, self.item_N, 0) * num_copies).astype(np.int64)
        shift_N = (self._uniform(_ROTATE_ITEM, self.user_N, 0) * item_copies).astype(np.int64)
        parts = []
        for item_copy in range(item_copies):
            chance_N = self.chance_UI[row_N % num_copies, (item_copy + shift_N) % item_copies]
            pair_N = np.flatnonzero(self._draws(copy, item_copy) < chance_N)
            parts.append((pair_N, np.full(len(pair_N), item_copy)))
        pair_N, item_copy_N = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        jitter_N = self._uniform(_TIME, pair_N, copy * item_copies + item_copy_N) - 0.5
        return Interactions(
            copy * self.num_users + self.user_N[pair_N],
            item_copy_N * self.num_items + self.item_N[pair_N],
            self.rating_N[pair_N],
            self.time_N[pair_N] + (jitter_N * 2 * _HALF_A_DAY_S).astype(np.int64),
        )

    def _draws(self, copy: int, item_copy: int) -> FloatArray:
        number_N = np.arange(len(self.user_N))
        return self._uniform(_DRAW, number_N, copy * self.chance_UI.shape[1] + item_copy)

    def _uniform(self, use: int, number_N: IntArray, other: int | IntArray) -> FloatArray:
        """Return numbers in [0, 1), a pure function of the arguments and the seed."""
        key = np.asarray(self.seed * 8 + use, dtype=np.uint64)
        state = mixed(
            number_N.astype(np.uint64) ^ mixed(np.asarray(other, dtype=np.uint64) ^ mixed(key))
        )
        return np.asarray((state >> np.uint64(11)).astype(np.float64) / 2.0**53)


def expansion_of(kept: pa.Table, source: ExpandedLog) -> Expansion:
    """Prepare the expansion of a log.

    Args:
        kept: `schema.interactions` of the whole log.
        source: The expansion settings.

    Returns:
        The expansion, to draw from.
    """
    user_N, item_N = dense_ids(kept["user"]), dense_ids(kept["item"])
    chance = chances(user_N, item_N, source.user_copies, source.item_copies, source.growth)
    return Expansion(
        user_N,
        item_N,
        to_numpy(kept["rating"]),
        to_numpy(kept["time"]),
        chance,
        int(item_N.max()) + 1,
        int(user_N.max()) + 1,
        source.seed,
    )


def chances(
    user_N: IntArray, item_N: IntArray, user_copies: int, item_copies: int, growth: float
) -> FloatArray:
    """Reduce a log to the density between groups of its users and items.

    Args:
        user_N: User of each interaction, from 0.
        item_N: Item of each interaction, from 0.
        user_copies: Groups of users.
        item_copies: Groups of items.
        growth: Sum of the probabilities; at most their number.

    Returns:
        ``[user_copies, item_copies]``, each at most 1.
    """
    groups = [
        _group(np.bincount(part), count)[part]
        for part, count in ((user_N, user_copies), (item_N, item_copies))
    ]
    size = user_copies * item_copies
    density = np.bincount(groups[0] * item_copies + groups[1], minlength=size) / len(user_N)
    density = density.reshape(user_copies, item_copies) + 1e-9
    low, high = 0.0, size / density.min()
    for _ in range(200):  # clipping at 1 lowers the sum; the other entries compensate
        middle = (low + high) / 2
        is_low = np.minimum(density * middle, 1.0).sum() < growth
        low, high = (middle, high) if is_low else (low, middle)
    return np.asarray(np.minimum(density * high, 1.0))


def _group(count_I: IntArray, num_groups: int) -> IntArray:
    """Split users or items into equally large groups by number of interactions."""
    rank_I = np.empty(len(count_I), dtype=np.int64)
    rank_I[np.argsort(-count_I, kind="stable")] = np.arange(len(count_I))
    return rank_I * num_groups // len(count_I)
