"""The single ranking step: the best K of a stream of item blocks, ties to the lower item."""

import torch
from torch import Tensor

UNWANTED = -(1 << 63)
"""Key of an item that must not be recommended; below the key of any score."""

_LOW_32 = (1 << 32) - 1


def rank_keys(score_BI: Tensor, first_item: int) -> Tensor:
    """Turn scores into unique integers that sort like (score descending, item ascending).

    Args:
        score_BI: float32 scores of a block of items; no NaN.
        first_item: Position of the block's first item.

    Returns:
        int64 ``[B, I]``; a larger key is better.
    """
    bits_BI = (score_BI.to(torch.float32) + 0.0).contiguous().view(torch.int32)  # -0.0 becomes 0.0
    ordered_BI = torch.where(bits_BI >= 0, bits_BI, bits_BI ^ 0x7FFFFFFF).to(torch.int64)
    item_I = torch.arange(first_item, first_item + score_BI.shape[1], device=score_BI.device)
    return (ordered_BI << 32) | (_LOW_32 - item_I)


def items_of(key_BK: Tensor) -> Tensor:
    """Return the items that rank keys belong to, int64; -1 for `UNWANTED`."""
    return torch.where(key_BK == UNWANTED, -1, _LOW_32 - (key_BK & _LOW_32))


def merge(best_BK: Tensor, key_BI: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the best ``k`` keys of those kept so far and a new block's, best first.

    Args:
        best_BK: Keys kept so far, ``[B, 0]`` to begin with.
        key_BI: Keys of the block; `UNWANTED` for an item that must not come up.
        k: How many to keep.

    Returns:
        The keys, int64 ``[B, min(k, seen so far)]``, and for each its column in the two put side
        by side.
    """
    both = torch.cat([best_BK, key_BI], dim=1)
    return torch.topk(both, min(k, both.shape[1]), dim=1)
