"""Ranking and rating metrics: arrays of users in, one number per user out."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distrib.batch import Batch
from distrib.config import Record

SQUARED_ERROR_UNCUT = "squared_error_uncut"
"""Squared error of unclipped ratings, which may lie outside the scale."""

ROOTS = {"squared_error": "rmse", SQUARED_ERROR_UNCUT: "rmse_uncut"}
"""Metrics that are roots of means, by what the mean is of."""

FloatArray = npt.NDArray[np.float64]


def hits(item_BK: Tensor, target: Batch, item_count: int) -> Tensor:
    """Mark the recommended items that are among each user's targets.

    Args:
        item_BK: int64 recommended items, -1 where a user has fewer than K.
        target: The held-out interactions of the same users; no item twice in a row.
        item_count: Size of the catalog.

    Returns:
        bool ``[B, K]``.
    """
    wanted_N = target.row_N * item_count + target.item_N
    row_B1 = torch.arange(target.num_users, device=item_BK.device)[:, None]
    asked_BK = row_B1 * item_count + item_BK
    return torch.isin(asked_BK, wanted_N) & (item_BK >= 0)


def recall(hit_BK: Tensor, length_B: Tensor, cutoff: int) -> Tensor:
    """Recall@N as Liang et al. define it: hits in the first N over min(N, targets).

    Source: Liang et al., "Variational Autoencoders for Collaborative Filtering", WWW 2018, 4.2.

    Args:
        hit_BK: bool, from `hits`; K at least the cutoff.
        length_B: Targets of each user.
        cutoff: N.

    Returns:
        float64 ``[B]``, 0..1; NaN for a user without targets.
    """
    found_B = hit_BK[:, :cutoff].sum(1).to(torch.float64)
    return found_B / length_B.clamp(max=cutoff).to(torch.float64)


def ndcg(hit_BK: Tensor, length_B: Tensor, cutoff: int) -> Tensor:
    """NDCG@N with binary gain, discount 1 / log2(rank + 1), ideal over min(N, targets) ranks.

    Source: Liang et al., "Variational Autoencoders for Collaborative Filtering", WWW 2018, 4.2.

    Args:
        hit_BK: bool, from `hits`, best first.
        length_B: Targets of each user.
        cutoff: N.

    Returns:
        float64 ``[B]``, 0..1; NaN for a user without targets.
    """
    rank_N = torch.arange(2, cutoff + 2, dtype=torch.float64, device=hit_BK.device)
    discount_N = 1.0 / torch.log2(rank_N)
    within = min(cutoff, hit_BK.shape[1])
    gained_B = (hit_BK[:, :within].to(torch.float64) * discount_N[:within]).sum(1)
    ideal_N = torch.cat([discount_N.new_zeros(1), discount_N.cumsum(0)])
    return gained_B / ideal_N[length_B.clamp(max=cutoff)]


def hit_rate(hit_BK: Tensor, length_B: Tensor, cutoff: int) -> Tensor:
    """Hit rate@N: 1 for a user with a target in the first N, else 0; Recall@N with one target.

    Args:
        hit_BK: bool, from `hits`; K at least the cutoff.
        length_B: Targets of each user.
        cutoff: N.

    Returns:
        float64 ``[B]``; NaN for a user without targets.
    """
    found_B = hit_BK[:, :cutoff].any(1).to(torch.float64)
    return found_B.masked_fill(length_B == 0, torch.nan)


def precision(hit_BK: Tensor, length_B: Tensor, cutoff: int) -> Tensor:
    """Precision@N: hits in the first N over N.

    Args:
        hit_BK: bool, from `hits`; K at least the cutoff.
        length_B: Targets of each user.
        cutoff: N.

    Returns:
        float64 ``[B]``, 0..1; NaN for a user without targets.
    """
    found_B = hit_BK[:, :cutoff].sum(1).to(torch.float64) / cutoff
    return found_B.masked_fill(length_B == 0, torch.nan)


def average_precision(hit_BK: Tensor, length_B: Tensor, cutoff: int) -> Tensor:
    """AP@N: the precision at the rank of each hit in the first N, summed, over min(N, targets).

    Its mean over users is MAP@N.

    Args:
        hit_BK: bool, from `hits`, best first; K at least the cutoff.
        length_B: Targets of each user.
        cutoff: N.

    Returns:
        float64 ``[B]``, 0..1; NaN for a user without targets.
    """
    hit_BN = hit_BK[:, :cutoff].to(torch.float64)
    rank_N = torch.arange(1, hit_BN.shape[1] + 1, device=hit_BK.device)
    gained_B = (hit_BN * hit_BN.cumsum(1) / rank_N).sum(1)
    return gained_B / length_B.clamp(max=cutoff).to(torch.float64)


def mrr(hit_BK: Tensor, length_B: Tensor, cutoff: int) -> Tensor:
    """MRR@N: 1 / rank of the first target in the first N, 0 if there is none.

    Args:
        hit_BK: bool, from `hits`, best first; K at least the cutoff.
        length_B: Targets of each user.
        cutoff: N.

    Returns:
        float64 ``[B]``, 0..1; NaN for a user without targets.
    """
    rank_N = torch.arange(1, hit_BK[:, :cutoff].shape[1] + 1, device=hit_BK.device)
    best_B = (hit_BK[:, :cutoff].to(torch.float64) / rank_N).amax(1)
    return best_B.masked_fill(length_B == 0, torch.nan)


def weighted_recall(
    hit_BK: Tensor, item_BK: Tensor, target: Batch, weight_I: Tensor, cutoff: int
) -> Tensor:
    """Recall@N where targets have weights: weight of those in the first N over that of all.

    With weights of 0 and 1 it is the recall of some items, with inverse propensities the
    self-normalized estimate of the recall if all interactions were observed alike.

    Source: Yang et al., "Unbiased Offline Recommender Evaluation for Missing-Not-At-Random Implicit
    Feedback", RecSys 2018, eq. 8.

    Args:
        hit_BK: bool, from `hits`, best first; K at least the cutoff.
        item_BK: int64 recommended items.
        target: The held-out interactions of the same users.
        weight_I: float64 weight of each item, not negative.
        cutoff: N.

    Returns:
        float64 ``[B]``, 0..1; NaN for a user whose targets have no weight.
    """
    weight_BN = weight_I[item_BK[:, :cutoff].clamp(min=0)] * hit_BK[:, :cutoff]
    total_B = weight_I.new_zeros(target.num_users)
    total_B.index_add_(0, target.row_N, weight_I[target.item_N])
    return weight_BN.sum(1) / total_B


def gini(count_I: FloatArray) -> float:
    """Return the Gini index of how often items are shown: 0 for all alike, near 1 for one item.

    Args:
        count_I: Times that each item of the catalog is shown.

    Returns:
        0..1; 0 where nothing is shown.
    """
    total, num_items = float(count_I.sum()), len(count_I)
    if not total:
        return 0.0
    place_I = np.arange(1, num_items + 1)
    return float(((2 * place_I - num_items - 1) * np.sort(count_I)).sum() / (num_items * total))


def effective_rank(moments_ZZ: FloatArray) -> float:
    """Return how many directions some vectors use: exp of the entropy of the normalized spectrum.

    Source: Roy, Vetterli, "The Effective Rank: A Measure of Effective Dimensionality", EUSIPCO
    2007, of the singular values of the centered vectors.

    Args:
        moments_ZZ: Sum of the outer products of the vectors, each followed by a 1.

    Returns:
        1..Z; 0 for vectors that are all the same.
    """
    number = float(moments_ZZ[-1, -1])
    if not number:
        return 0.0
    mean_Z = moments_ZZ[:-1, -1] / number
    covariance_ZZ = moments_ZZ[:-1, :-1] / number - np.outer(mean_Z, mean_Z)
    singular_Z = np.sqrt(np.clip(np.linalg.eigvalsh(covariance_ZZ), 0.0, None))
    total = float(singular_Z.sum())
    if total <= 0.0:
        return 0.0
    share_Z = singular_Z[singular_Z > 0] / total
    return float(np.exp(-(share_Z * np.log(share_Z)).sum()))


class Summary(Record):
    """A mean with its standard error."""

    mean: float
    standard_error: float
    num_observations: int


class Sums(NamedTuple):
    """Sums that merge over batches, ranks and shards: count, sum and sum of squares by metric."""

    totals: dict[str, tuple[float, float, float]]

    def merged(self, other: "Sums") -> "Sums":
        """Add two."""
        names = {**self.totals, **other.totals}
        zero = (0.0, 0.0, 0.0)
        return Sums(
            {
                name: tuple(  # type: ignore[misc]
                    a + b
                    for a, b in zip(
                        self.totals.get(name, zero), other.totals.get(name, zero), strict=True
                    )
                )
                for name in names
            }
        )

    def summaries(self) -> dict[str, Summary]:
        """Turn sums into means with errors; squared errors become RMSE (delta method)."""
        result: dict[str, Summary] = {}
        for name, (count, total, squares) in self.totals.items():
            if count == 0:
                continue
            mean = total / count
            variance = max(squares / count - mean * mean, 0.0)
            error = (variance / max(count - 1.0, 1.0)) ** 0.5
            if name in ROOTS:
                root = mean**0.5
                half = error / (2 * root) if root > 0 else 0.0
                result[ROOTS[name]] = Summary(
                    mean=root, standard_error=half, num_observations=int(count)
                )
            else:
                result[name] = Summary(mean=mean, standard_error=error, num_observations=int(count))
        return result


def sums_of(values: Mapping[str, Tensor]) -> Sums:
    """Reduce one number per user (or per pair) to mergeable sums; NaN entries do not count."""
    totals: dict[str, tuple[float, float, float]] = {}
    for name, value in values.items():
        kept = value[~value.isnan()].to(torch.float64)
        totals[name] = (float(kept.numel()), float(kept.sum()), float((kept * kept).sum()))
    return Sums(totals)


def total_variation(p: FloatArray, q: FloatArray) -> FloatArray:
    """Return half the sum of absolute differences over the last axis, 0..1 for distributions."""
    return np.asarray(0.5 * np.abs(p - q).sum(-1))
