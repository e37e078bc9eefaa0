"""Tables of predicted ratings: which level for which, and how far probabilities hold."""

import numpy as np
import torch
from torch import Tensor

from distrib.metrics import FloatArray
from distrib.scoring.results import PairPredictions

CONFUSION = "confusion"
"""Table ``[L, L]``: pairs by true level and by the level nearest to the expected rating."""

RELIABILITY = "reliability"
"""Table ``[10, 3]``: for the probabilities of rating levels in ten bins of equal width, their
number, their sum, and how many of the levels were the true ones."""

_BINS = 10


def rating_tables(
    predicted: PairPredictions, value_N: Tensor, levels: tuple[float, ...]
) -> dict[str, FloatArray]:
    """Count pairs by true and predicted rating.

    Args:
        predicted: Predictions of N pairs.
        value_N: Their true ratings.
        levels: The L ratings that there are, ascending.

    Returns:
        `CONFUSION`, and `RELIABILITY` of a model that predicts how likely each level is.
    """
    level_L = torch.tensor(levels, dtype=torch.float64)
    true_N = _nearest(value_N, level_L)
    places_N = true_N * len(levels) + _nearest(predicted.rating_N, level_L)
    counts = torch.bincount(places_N, minlength=len(levels) ** 2).double()
    tables = {CONFUSION: counts.view(len(levels), -1).numpy()}
    if predicted.level_NL is not None:
        share_NL = predicted.level_NL.double()
        is_true_NL = torch.zeros_like(share_NL)
        is_true_NL[torch.arange(len(true_N)), true_N] = 1.0
        tables[RELIABILITY] = _binned(share_NL.flatten(), is_true_NL.flatten())
    return tables


def calibration_error(table: FloatArray) -> float:
    """Return the expected calibration error of `RELIABILITY`.

    Source: Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI
    2015. Differs from the source: the probabilities of all levels, not of the likeliest one.

    Args:
        table: The table.

    Returns:
        Mean difference between probability and frequency, 0..1.
    """
    number_B, total_B, true_B = table.T
    return float(np.abs(total_B - true_B).sum() / max(number_B.sum(), 1.0))


def _nearest(value_N: Tensor, level_L: Tensor) -> Tensor:
    return (value_N.double()[:, None] - level_L).abs().argmin(1)


def _binned(share_N: Tensor, is_true_N: Tensor) -> FloatArray:
    bin_N = (share_N * _BINS).long().clamp(max=_BINS - 1)
    columns = [torch.ones_like(share_N), share_N, is_true_N]
    zeros = share_N.new_zeros(_BINS)
    return torch.stack([zeros.index_add(0, bin_N, column) for column in columns], dim=1).numpy()
