"""Distributed selection of the k-th smallest key, by radix histograms."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

KeyArray = npt.NDArray[np.uint64]
Histograms = dict[int, Counter[int]]

_DIGIT_BITS = 16
_SHIFTS = tuple(range(64 - _DIGIT_BITS, -1, -_DIGIT_BITS))


def digit_counts(key_N: KeyArray, prefixes: Sequence[int], shift: int) -> Histograms:
    """Count the digits at ``shift`` of the keys that begin with each prefix."""
    rest_N = key_N >> np.uint64(shift)
    counts: Histograms = {}
    for prefix in set(prefixes):
        mine_N = rest_N[(rest_N >> np.uint64(_DIGIT_BITS)) == np.uint64(prefix)]
        digits, numbers = np.unique(mine_N & np.uint64(2**_DIGIT_BITS - 1), return_counts=True)
        counts[prefix] = Counter(dict(zip(digits.tolist(), numbers.tolist(), strict=True)))
    return counts


def added(parts: Sequence[Histograms]) -> Histograms:
    """Add up results of `digit_counts`."""
    return {prefix: sum((part[prefix] for part in parts), Counter()) for prefix in parts[0]}


def smallest(ranks: Sequence[int], count: Callable[[Sequence[int], int], Histograms]) -> list[int]:
    """Return the keys of the given ranks, from 0.

    Args:
        ranks: Ranks, each less than the number of keys.
        count: `digit_counts` over all keys, as a function of prefixes and shift.

    Returns:
        One key per rank.
    """
    prefixes, left = [0] * len(ranks), list(ranks)
    for shift in _SHIFTS:
        histograms = count(prefixes, shift)
        for place, prefix in enumerate(prefixes):
            digit, left[place] = _reached(histograms[prefix], left[place])
            prefixes[place] = (prefix << _DIGIT_BITS) | digit
    return prefixes


def _reached(counts: Counter[int], rank: int) -> tuple[int, int]:
    """Return the digit that contains a rank, and the rank within it."""
    digits = sorted(counts)
    before = np.cumsum([0] + [counts[digit] for digit in digits])
    place = int(np.searchsorted(before, rank, side="right")) - 1
    return digits[place], rank - int(before[place])
