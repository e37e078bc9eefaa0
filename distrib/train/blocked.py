"""The last layer and the loss by blocks of items, computed again in the backward pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distrib.batch import Batch, cells_by_block, item_blocks
from distrib.models.base import Model, State
from distrib.objectives import Objective


def blocked_terms(
    model: Model, objective: Objective, state: State, target: Batch, block_items: int
) -> Tensor:
    """Return the objective's terms for each user without holding the output of all items.

    Equal to decoding all items at once, value and gradient, up to rounding. Peak memory grows with
    users x block, at the price of decoding each block a second time in the backward pass.

    Args:
        model: Decodes the blocks.
        objective: Turns them into terms.
        state: Users, from ``model.encode``.
        target: What they should be decoded to.
        block_items: Items in a block.

    Returns:
        float32 ``[T, B]``.
    """
    tables, shared = model.item_tables(), model.shared_parameters()
    blocks = item_blocks(tables[0].shape[0], block_items)
    sizes = (len(state), len(tables))
    result: Tensor = _Blocked.apply(  # type: ignore[no-untyped-call]
        model, objective, target, blocks, sizes, *state, *tables, *shared
    )
    return result


class _Blocked(torch.autograd.Function):
    """Inputs after ``sizes``: the state's tensors, the item tables, the shared parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        model: Model,
        objective: Objective,
        target: Batch,
        blocks: Sequence[tuple[int, int]],
        sizes: tuple[int, int],
        *tensors: Tensor,
    ) -> Tensor:
        state, tables = tensors[: sizes[0]], tensors[sizes[0] : sum(sizes)]
        carry = None
        for (low, high), cells in zip(blocks, cells_by_block(target, blocks), strict=True):
            output = model.decode_rows(state, tuple(table[low:high] for table in tables))
            carry = objective.accumulate(carry, output.float(), cells)
        terms_TB, ctx.learned = objective.finish(carry, target)
        ctx.model, ctx.objective, ctx.target, ctx.blocks, ctx.sizes = (
            model,
            objective,
            target,
            blocks,
            sizes,
        )
        ctx.save_for_backward(*tensors)
        return terms_TB

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_TB: Tensor) -> tuple[Tensor | None, ...]:
        num_state, num_tables = ctx.sizes
        tensors = ctx.saved_tensors
        tables = tensors[num_state : num_state + num_tables]
        shared = tensors[num_state + num_tables :]
        state = tuple(_leaf(tensor) for tensor in tensors[:num_state])
        table_grads = [torch.empty_like(table) for table in tables]
        wanted_state = [tensor for tensor in state if tensor.requires_grad]
        summed: list[Tensor | None] = [None] * (len(wanted_state) + len(shared))
        for (low, high), cells in zip(
            ctx.blocks, cells_by_block(ctx.target, ctx.blocks), strict=True
        ):
            rows = tuple(_leaf(table[low:high]) for table in tables)
            with torch.enable_grad():
                output = ctx.model.decode_rows(state, rows).float()
                terms_TB = ctx.objective.block_terms(output, cells, ctx.learned)
            grads: tuple[Tensor | None, ...] = torch.autograd.grad(
                terms_TB, [*rows, *wanted_state, *shared], gradient_TB, allow_unused=True
            )
            for table_grad, grad in zip(table_grads, grads, strict=False):
                table_grad[low:high] = 0.0 if grad is None else grad
            summed = [_added(*pair) for pair in zip(summed, grads[num_tables:], strict=True)]
        of_state = iter(summed[: len(wanted_state)])
        state_grads = [_like(next(of_state), t) if t.requires_grad else None for t in state]
        shared_grads = [
            _like(g, t) for g, t in zip(summed[len(wanted_state) :], shared, strict=True)
        ]
        return (None, None, None, None, None, *state_grads, *table_grads, *shared_grads)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point())


def _added(total: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    """Add up in float32; None stands for nothing yet."""
    if gradient is None:
        return total
    return gradient.float() if total is None else total.add_(gradient)


def _like(gradient: Tensor | None, tensor: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.to(tensor.dtype)
