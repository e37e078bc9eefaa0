"""Metrics of how a model ranks likes above dislikes, on labeled pairs alone.

Ties count as the mean over all orders of the tied pairs, so that no metric depends on the order of
items. Per-user metrics are over users with both likes and dislikes.

Source: the protocol of "Inverse Learning with Extremely Sparse Feedback for Recommendation" (arXiv
2311.08302). Differs from the source: its released code computes the reciprocal rank of the labels
themselves, which is the same for every model.
"""

import numpy as np
import numpy.typing as npt

from distrib.metrics import FloatArray, Summary

AUC, GAUC, NDCG, MRR = "auc", "gauc", "labeled_ndcg@10", "labeled_mrr"
LOG_LOSS = "log_loss"
"""Mean cross-entropy of labeled pairs, nats, for models of log-odds."""

LABELED_METRICS = (AUC, GAUC, NDCG, MRR, LOG_LOSS)

_CUTOFF = 10

BoolArray = npt.NDArray[np.bool_]


def area_under_curve(score_N: npt.NDArray[np.float32], is_like_N: BoolArray) -> Summary | None:
    """Return the area under the ROC curve of all pairs at once.

    The standard error is that of DeLong et al., "Comparing the Areas under Two or More Correlated
    Receiver Operating Characteristic Curves", Biometrics 44(3), 1988, for independent pairs.

    Args:
        score_N: Score of each pair.
        is_like_N: Label of each pair.

    Returns:
        The area, 0..1; None if there is only one label.
    """
    likes, dislikes = score_N[is_like_N], score_N[~is_like_N]
    if not len(likes) or not len(dislikes):
        return None
    # For a like: the share of dislikes below it. For a dislike: the share of likes above it.
    below = _share_below(np.sort(dislikes), likes)
    above = 1.0 - _share_below(np.sort(likes), dislikes)
    variance = sum(float(part.var(ddof=1)) / len(part) for part in (below, above) if len(part) > 1)
    return Summary(
        mean=float(below.mean()), standard_error=variance**0.5, num_observations=len(score_N)
    )


def metrics_by_user(
    score_N: npt.NDArray[np.float32],
    is_like_N: BoolArray,
    row_N: npt.NDArray[np.int64],
    num_users: int,
) -> dict[str, FloatArray]:
    """Measure the labeled pairs of each user.

    Args:
        score_N: Score of each pair.
        is_like_N: Label of each pair.
        row_N: Row of each pair's user.
        num_users: Rows.

    Returns:
        By name, ``[B]``: `GAUC`, the area under the user's ROC curve; `NDCG`, with binary gain and
        discount 1 / log2(rank + 1); `MRR`, the mean of 1 / rank over the likes. NaN for users
        without both labels.
    """
    order = np.lexsort((-score_N, row_N))
    row_N, score_N, is_like_N = row_N[order], score_N[order], is_like_N[order]
    length_B = np.bincount(row_N, minlength=num_users)
    start_B = length_B.cumsum() - length_B
    is_first_N = np.ones(len(row_N), dtype=bool)
    is_first_N[1:] = (row_N[1:] != row_N[:-1]) | (score_N[1:] != score_N[:-1])
    first_G = np.flatnonzero(is_first_N)
    size_G = np.diff(np.append(first_G, len(row_N)))
    before_G = first_G - start_B[row_N[first_G]]  # pairs of the user above the group of ties
    group_N = is_first_N.cumsum() - 1
    rank = np.arange(1, length_B.max(initial=0) + 1)
    gain = np.concatenate([[0.0], np.where(rank <= _CUTOFF, 1 / np.log2(rank + 1), 0.0).cumsum()])
    reciprocal = np.concatenate([[0.0], (1 / rank).cumsum()])

    def sum_over_likes(value_G: FloatArray) -> FloatArray:
        found = np.bincount(row_N, weights=value_G[group_N] * is_like_N, minlength=num_users)
        return found.astype(np.float64)

    likes_B = np.bincount(row_N, weights=is_like_N, minlength=num_users)
    dislikes_B = length_B - likes_B
    above_G = before_G + (size_G + 1) / 2  # mean rank of the group
    with np.errstate(invalid="ignore", divide="ignore"):
        beaten_B = likes_B * (length_B + 1) - sum_over_likes(above_G) - likes_B * (likes_B + 1) / 2
        after_G = before_G + size_G
        found = {
            GAUC: beaten_B / (likes_B * dislikes_B),
            NDCG: sum_over_likes((gain[after_G] - gain[before_G]) / size_G)
            / gain[likes_B.astype(np.int64)],
            MRR: sum_over_likes((reciprocal[after_G] - reciprocal[before_G]) / size_G) / likes_B,
        }
    is_mixed_B = (likes_B > 0) & (dislikes_B > 0)
    return {name: np.where(is_mixed_B, value_B, np.nan) for name, value_B in found.items()}


def _share_below(sorted_M: npt.NDArray[np.float32], score_N: npt.NDArray[np.float32]) -> FloatArray:
    """Return the share of some scores below each other score; equal ones count by half."""
    low = np.searchsorted(sorted_M, score_N, side="left")
    high = np.searchsorted(sorted_M, score_N, side="right")
    return np.asarray((low + high) / (2.0 * len(sorted_M)))
