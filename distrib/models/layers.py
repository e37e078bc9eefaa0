"""Layers that at least two models use."""

import torch
import torch.nn.functional as F
from torch import Tensor

from distrib.batch import Batch


def history_sum(table: Tensor, index_N: Tensor, weight_N: Tensor, pointer_P: Tensor) -> Tensor:
    """Sum weighted rows of a table over each history; the sparse first layer.

    Equals a multi-hot matrix times the table, in time and memory of the interactions only.

    Args:
        table: ``[rows, H]``.
        index_N: int64 row of each entry.
        weight_N: Weight of each entry; differentiable.
        pointer_P: int64 bounds of each history's entries.

    Returns:
        ``[B, H]``, zero for an empty history.
    """
    return F.embedding_bag(
        index_N,
        table,
        pointer_P,
        mode="sum",
        per_sample_weights=weight_N.to(table.dtype),
        include_last_offset=True,
    )


def inverse_root_length(batch: Batch) -> Tensor:
    """Return 1 / sqrt(number of interactions) for each user, 1 for an empty history, ``[B]``."""
    return batch.length_B.clamp(min=1).to(torch.float32).rsqrt()
