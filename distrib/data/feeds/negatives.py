"""Items without an interaction, sampled for users: the same on any rank, in any batch."""

import numpy as np
import numpy.typing as npt
import torch

from distrib.data.history_arrays import HistoryArrays, IntArray
from distrib.rng import CounterRng

_STREAM = 111  # random stream
_ATTEMPTS = 16
_STEPS = 1 << 24  # of a uniform number


class UnlabeledSampler:
    """Draws items that a user has no training interaction with.

    A draw is a pure function of the epoch, the user, and what it is drawn for, so it does not
    depend on ranks. Held-out interactions can be drawn: training does not know them.

    Args:
        rows: Training histories.
        item_count: Items of the catalog.
        power: Items are drawn in proportion to this power of 1 + their training interactions.
    """

    def __init__(self, rows: HistoryArrays, item_count: int, power: float) -> None:
        self._item_count = item_count
        self._pointer_P = rows.pointer_P
        row_N = np.repeat(np.arange(rows.num_users), np.diff(rows.pointer_P))
        self._item_N = rows.item_N[np.lexsort((rows.item_N, row_N))]
        mass_I = (1.0 + np.bincount(rows.item_N, minlength=item_count)) ** power
        self._below_I = mass_I.cumsum() / mass_I.sum() if power else None

    def draw(
        self, rng: CounterRng, row_M: IntArray, number_M: IntArray, item_M: IntArray, num: int
    ) -> IntArray:
        """Draw items for some labeled pairs.

        Args:
            rng: The epoch's randomness.
            row_M: Row of each pair's user.
            number_M: Number of the user, and
            item_M: the pair's item, which are the keys of the draw.
            num: Items to draw for each pair, with replacement.

        Returns:
            int64 ``[M, num]``, -1 for users that have an interaction with every item.
        """
        row_S, user_S, item_S = (np.repeat(part, num) for part in (row_M, number_M, item_M))
        place_S = np.tile(np.arange(num), len(row_M))
        drawn_S = np.full(len(row_S), -1, dtype=np.int64)
        left = np.arange(len(row_S))
        for attempt in range(_ATTEMPTS):
            share = _uniform(rng, attempt, user_S[left], item_S[left], place_S[left])
            drawn_S[left] = self._item_at(share)
            left = left[self._is_known(row_S[left], drawn_S[left])]
            if not len(left):
                break
        share = _uniform(rng, _ATTEMPTS, user_S[left], item_S[left], place_S[left])
        for each, place in zip(share, left, strict=True):  # users who know nearly everything
            drawn_S[place] = self._from_rest(row_S[place], each)
        return drawn_S.reshape(len(row_M), num)

    def _item_at(self, share_S: npt.NDArray[np.float64]) -> IntArray:
        """Return the item at a share of all mass, 0..1."""
        if self._below_I is None:
            return (share_S * self._item_count).astype(np.int64)
        found = np.searchsorted(self._below_I, share_S, side="right")
        return found.clip(max=self._item_count - 1)

    def _is_known(self, row_S: IntArray, item_S: IntArray) -> npt.NDArray[np.bool_]:
        """Return which pairs have a training interaction, by binary search in each history."""
        low_S, end_S = self._pointer_P[row_S], self._pointer_P[row_S + 1]
        high_S = end_S.copy()
        last = max(len(self._item_N) - 1, 0)
        while (low_S < high_S).any():
            middle_S = (low_S + high_S) // 2
            is_below_S = (low_S < high_S) & (self._item_N[middle_S.clip(max=last)] < item_S)
            high_S = np.where(is_below_S, high_S, np.minimum(middle_S, high_S))
            low_S = np.where(is_below_S, middle_S + 1, low_S)
        return np.asarray((low_S < end_S) & (self._item_N[low_S.clip(max=last)] == item_S))

    def _from_rest(self, row: int, share: float) -> int:
        """Return an item at a share of the mass of those that a user has no interaction with."""
        known = self._item_N[self._pointer_P[row] : self._pointer_P[row + 1]]
        rest = np.setdiff1d(np.arange(self._item_count), known)
        if not len(rest):
            return -1
        mass = 1.0 if self._below_I is None else np.diff(self._below_I, prepend=0.0)[rest]
        below = np.broadcast_to(mass, len(rest)).cumsum()
        place = np.searchsorted(below, share * below[-1], side="right")
        return int(rest[min(place, len(rest) - 1)])


def _uniform(
    rng: CounterRng, attempt: int, user_S: IntArray, item_S: IntArray, place_S: IntArray
) -> npt.NDArray[np.float64]:
    """Draw from [0, 1) in steps fine enough for a million items."""
    keys = [torch.from_numpy(part) for part in (user_S, item_S, place_S)]
    high, low = (
        rng.uniform(_STREAM, *keys, torch.tensor(2 * attempt + half)).double() for half in (0, 1)
    )
    return np.asarray((high + low / _STEPS).numpy())
