"""Exact top-K ranking over a stream of item chunks; ties go to the lower item."""

import torch
from torch import Tensor

UNWANTED = -(1 << 63)
"""Key of an item that must not be recommended; below the key of any score."""

_GROUP = 8
_LOW_32 = (1 << 32) - 1


def rank_keys(score_BI: Tensor, item_BI: Tensor) -> Tensor:
    """Turn scores into unique integers that sort like (score descending, item ascending).

    Args:
        score_BI: float32; no NaN; ``-inf`` for items that must not be recommended.
        item_BI: Position of each item, broadcast to the scores.

    Returns:
        int64 ``[B, I]``; a larger key is better, `UNWANTED` where the score is ``-inf``.
    """
    bits_BI = (score_BI.to(torch.float32) + 0.0).contiguous().view(torch.int32)  # -0.0 becomes 0.0
    ordered_BI = torch.where(bits_BI >= 0, bits_BI, bits_BI ^ 0x7FFFFFFF).to(torch.int64)
    key_BI = (ordered_BI << 32) | (_LOW_32 - item_BI)
    return torch.where(score_BI == -torch.inf, UNWANTED, key_BI)


def items_of(key_BK: Tensor) -> Tensor:
    """Return the items that rank keys belong to, int64; -1 for `UNWANTED`."""
    return torch.where(key_BK == UNWANTED, -1, _LOW_32 - (key_BK & _LOW_32))


def scores_of(key_BK: Tensor) -> Tensor:
    """Return the scores that rank keys encode, float32; ``-inf`` for `UNWANTED`."""
    ordered_BK = (key_BK >> 32).to(torch.int32)
    bits_BK = torch.where(ordered_BK >= 0, ordered_BK, ordered_BK ^ 0x7FFFFFFF)
    return torch.where(key_BK == UNWANTED, -torch.inf, bits_BK.view(torch.float32))


def best_keys(score_BI: Tensor, first_item: int, k: int, *, breaks_ties: bool = True) -> Tensor:
    """Return the keys of a chunk's best ``k`` items, best first.

    Selection by score alone is the fast path: it is exact except for the choice among ties at the
    cutoff, so rows with such ties are selected again by key.

    Args:
        score_BI: float32 scores of a chunk of items; no NaN; ``-inf`` as in `rank_keys`.
        first_item: Position of the chunk's first item.
        k: Number of items.
        breaks_ties: False if the choice among ties at the cutoff does not matter.

    Returns:
        int64 ``[B, min(k, I)]``.
    """
    item_count = score_BI.shape[1]
    if k >= item_count:
        item_I = torch.arange(first_item, first_item + item_count, device=score_BI.device)
        return rank_keys(score_BI, item_I).sort(dim=1, descending=True).values
    score_BK, column_BK = _largest(score_BI, k + 1)
    last_B, next_B = score_BK[:, k - 1], score_BK[:, k]
    key_BK = rank_keys(score_BK[:, :k], column_BK[:, :k] + first_item)
    key_BK = key_BK.sort(dim=1, descending=True).values
    if not breaks_ties:
        return key_BK
    tied_R = torch.nonzero((last_B == next_B) & (last_B > -torch.inf)).flatten()
    if len(tied_R):
        item_I = torch.arange(first_item, first_item + item_count, device=score_BI.device)
        key_BK[tied_R] = torch.topk(rank_keys(score_BI[tied_R], item_I), k, dim=1).values
    return key_BK


def _largest(score_BI: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest scores and their columns, any of those that tie for the last place.

    On a CPU selection costs more than reading: most items are passed over by the largest score of
    each group. The k largest are in the k groups with the largest ones.
    """
    num_rows, item_count = score_BI.shape
    num_groups = item_count // _GROUP
    if score_BI.device.type != "cpu" or num_groups < 2 * k:
        return torch.topk(score_BI, k, dim=1)
    whole = num_groups * _GROUP
    # Group g has the columns g, g + num_groups, ...: a maximum over rows of memory is fastest.
    most_BG = score_BI[:, :whole].unflatten(1, (_GROUP, num_groups)).amax(1)
    group_BK = torch.topk(most_BG, k, dim=1, sorted=False).indices
    first_S = torch.arange(0, whole, num_groups)
    column_BJ = (group_BK[:, None, :] + first_S[:, None]).flatten(1)
    rest_J = torch.arange(whole, item_count).expand(num_rows, -1)
    column_BJ = torch.cat([column_BJ, rest_J], dim=1)
    score_BK, place_BK = torch.topk(score_BI.gather(1, column_BJ), k, dim=1)
    return score_BK, column_BJ.gather(1, place_BK)


def merge(best_BK: Tensor, key_BK: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the best ``k`` keys of those kept so far and a new chunk's, best first.

    Args:
        best_BK: Keys kept so far, ``[B, 0]`` to begin with.
        key_BK: Keys of the chunk.
        k: Number of keys to keep.

    Returns:
        The keys, int64 ``[B, min(k, seen so far)]``, and the column of each in the concatenation
        of the two inputs.
    """
    both = torch.cat([best_BK, key_BK], dim=1)
    return torch.topk(both, min(k, both.shape[1]), dim=1)
