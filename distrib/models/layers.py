"""Layers that at least two models use."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from distrib.batch import Batch
from distrib.models.base import Opinion


def history_sum(table: Tensor, index_N: Tensor, weight_N: Tensor, pointer_P: Tensor) -> Tensor:
    """Sum weighted rows of a table over each history; the sparse first layer.

    Equals a multi-hot matrix times the table, in time and memory of the interactions only. The
    gradient of the table is the same sum, over the users of each row: no two threads add to one
    place, so it is deterministic, and popular rows add up in float32 in any precision.

    Args:
        table: ``[rows, H]``.
        index_N: int64 row of each entry.
        weight_N: Weight of each entry; differentiable.
        pointer_P: int64 bounds of each history's entries.

    Returns:
        ``[B, H]``, zero for an empty history.
    """
    result: Tensor = _HistorySum.apply(table, index_N, weight_N.to(table.dtype), pointer_P)  # type: ignore[no-untyped-call]
    return result


class _HistorySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, table: Tensor, index_N: Tensor, weight_N: Tensor, pointer_P: Tensor
    ) -> Tensor:
        ctx.save_for_backward(table, index_N, weight_N, pointer_P)
        return _bag(table, index_N, weight_N, pointer_P)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BH: Tensor) -> tuple[Tensor | None, ...]:
        table, index_N, weight_N, pointer_P = ctx.saved_tensors
        num_users = pointer_P.shape[0] - 1
        row_N = torch.arange(num_users, device=index_N.device).repeat_interleave(
            pointer_P.diff(), output_size=index_N.shape[0]
        )
        by_table = by_weight = None
        if ctx.needs_input_grad[0]:
            order_N = torch.argsort(index_N, stable=True)
            counts = torch.bincount(index_N, minlength=table.shape[0])
            bounds = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            by_table = _bag(gradient_BH, row_N[order_N], weight_N[order_N], bounds)
        if ctx.needs_input_grad[2]:
            sum_mode, no_padding = 0, -1
            by_weight = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                gradient_BH.contiguous(), table, index_N, pointer_P, row_N, sum_mode, no_padding
            )
        return by_table, None, by_weight, None


def _bag(table: Tensor, index_N: Tensor, weight_N: Tensor, pointer_P: Tensor) -> Tensor:
    return F.embedding_bag(
        index_N,
        table,
        pointer_P,
        mode="sum",
        per_sample_weights=weight_N,
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
