"""Layers that at least two models use."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from distrib.batch import Batch
from distrib.models.base import Opinion


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


def log_odds(output_BIC: Tensor) -> Tensor:
    """Return the log-odds of any interaction from logits of outcomes, ``[B, I]``.

    Sorts like the probability, without its ties near 0 and 1.
    """
    return torch.logsumexp(output_BIC[..., 1:], dim=-1) - output_BIC[..., 0]


def opinion_of(output_BIC: Tensor, levels: Sequence[float]) -> Opinion:
    """Read logits of outcomes as probability, expected rating and its distribution."""
    level_BIL = torch.softmax(output_BIC[..., 1:], dim=-1)
    value_L = torch.tensor(levels, dtype=level_BIL.dtype, device=output_BIC.device)
    return Opinion(torch.sigmoid(log_odds(output_BIC)), level_BIL @ value_L, level_BIL)
