"""The last layer and the loss by blocks of items, computed again in the backward pass."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distrib.batch import Batch, Cells, cells_by_block, item_blocks
from distrib.models.base import Model, Odds, Rows, State
from distrib.objectives import Objective
from distrib.objectives.base import Candidates, Carry, Weights


class Blocks(NamedTuple):
    """How the last layer is cut."""

    block_items: int
    """Items decoded at a time."""

    keep_bytes: int = 0
    """Size of all decoded blocks up to which they are kept rather than computed again."""

    candidates: Candidates | None = None
    """The items that count, as positions in the model's tables; all without it."""


class Share(NamedTuple):
    """What a rank knows besides its own items, where ranks own different ones."""

    target: Batch
    """The users with the items of all ranks."""

    join: Callable[[Carry], Carry]
    """Completes what was accumulated over this rank's items."""


class _Task(NamedTuple):
    """All that is fixed in one forward and backward pass."""

    model: Model | Odds
    objective: Objective
    target: Batch
    blocks: Sequence[tuple[int, int]]
    cells: Sequence[Cells]
    candidates: Candidates | None
    share: Share | None
    keep_bytes: int
    num_state: int
    num_tables: int


def blocked_terms(
    model: Model | Odds,
    objective: Objective,
    state: State,
    target: Batch,
    blocks: Blocks,
    *,
    share: Share | None = None,
) -> Tensor:
    """Return the objective's terms for each user without holding the output of all items.

    Equal to decoding all items at once, value and gradient, up to rounding. Peak memory grows with
    users x block, at the price of decoding each block a second time in the backward pass; below
    ``blocks.keep_bytes`` the blocks are kept instead.

    Args:
        model: Decodes the blocks.
        objective: Turns them into terms.
        state: Users, from ``model.encode``.
        target: What they should be decoded to.
        blocks: Which items, and how they are cut.
        share: The rest, where ``model`` and ``target`` hold one rank's items only.

    Returns:
        float32 ``[T, B]``.
    """
    tables, shared = model.item_tables(), model.shared_parameters()
    if not model.trains_items():
        tables = tuple(table.detach() for table in tables)
    candidates = blocks.candidates
    if candidates is None:
        item_count = tables[0].shape[0]
    else:
        item_count = candidates.item_J.shape[0]
        place_N = torch.searchsorted(candidates.item_J, target.item_N)
        target = target._replace(item_N=place_N)
    cuts = item_blocks(item_count, blocks.block_items) or [(0, 0)]
    cells = [
        _with_weights(found, candidates, cut)
        for found, cut in zip(cells_by_block(target, cuts), cuts, strict=True)
    ]
    keep_bytes = blocks.keep_bytes if torch.is_grad_enabled() else 0
    sizes = (keep_bytes, len(state), len(tables))
    task = _Task(model, objective, target, cuts, cells, candidates, share, *sizes)
    result: Tensor = _Blocked.apply(task, *state, *tables, *shared)  # type: ignore[no-untyped-call]
    return result


class _Blocked(torch.autograd.Function):
    """Inputs after the task: the state's tensors, the item tables, the shared parameters."""

    @staticmethod
    def forward(ctx: Any, task: _Task, *tensors: Tensor) -> Tensor:
        state, tables = tensors[: task.num_state], tensors[task.num_state :][: task.num_tables]
        state = tuple(_leaf(tensor) for tensor in state)
        carry, kept = None, []
        is_kept = task.keep_bytes > 0
        for position, cells in enumerate(task.cells):
            rows = _leaves(task, tables, position)
            with torch.set_grad_enabled(is_kept):
                output = task.model.decode_rows(state, rows)
            seen = task.objective.observe(output.detach(), cells)
            size = output.nbytes + sum(part.nbytes for part in seen)
            is_kept = is_kept and size * len(task.blocks) <= task.keep_bytes
            kept.append((rows, output, seen))
            if not is_kept:
                kept.clear()
            carry = task.objective.accumulate(carry, seen, cells)
        assert carry is not None  # there is at least one block, maybe without items
        if task.share is not None:
            carry = task.share.join(carry)
        whole = task.target if task.share is None else task.share.target
        terms_TB, ctx.learned = task.objective.finish(carry, whole)
        ctx.task, ctx.state, ctx.kept = task, state, kept
        ctx.save_for_backward(*tensors)
        return terms_TB

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_TB: Tensor) -> tuple[Tensor | None, ...]:
        task: _Task = ctx.task
        tensors = ctx.saved_tensors
        tables = tensors[task.num_state :][: task.num_tables]
        shared = tensors[task.num_state + task.num_tables :]
        wanted_state = [tensor for tensor in ctx.state if tensor.requires_grad]
        is_wanted = ctx.needs_input_grad[1 + task.num_state :][: task.num_tables]
        inner = [*wanted_state, *shared]
        weights = Weights(ctx.learned, gradient_TB)
        summed: list[Tensor | None] = [None] * len(inner)
        fresh = torch.empty_like if task.candidates is None else torch.zeros_like
        table_grads = [
            fresh(table) if wanted else None
            for table, wanted in zip(tables, is_wanted, strict=True)
        ]
        for position, cells in enumerate(task.cells):
            if ctx.kept:
                rows, output, seen = ctx.kept[position]
                ctx.kept[position] = None
            else:
                rows = _leaves(task, tables, position)
                with torch.enable_grad():
                    output = task.model.decode_rows(ctx.state, rows)
                seen = task.objective.observe(output.detach(), cells)
            by_output = torch.empty_like(output)
            task.objective.fill_gradient(by_output, seen, cells, weights)
            del seen
            trained = [row for row, wanted in zip(rows, is_wanted, strict=True) if wanted]
            grads: tuple[Tensor | None, ...] = torch.autograd.grad(
                output, [*trained, *inner], by_output, allow_unused=True
            )
            wanted_grads = (grad for grad in table_grads if grad is not None)
            for table_grad, grad in zip(wanted_grads, grads, strict=False):
                _put(task, table_grad, position, grad)
            summed = [_added(*pair) for pair in zip(summed, grads[len(trained) :], strict=True)]
        ctx.kept = None
        of_state = iter(summed[: len(wanted_state)])
        state_grads = [_like(next(of_state), t) if t.requires_grad else None for t in ctx.state]
        shared_grads = [
            _like(g, t) for g, t in zip(summed[len(wanted_state) :], shared, strict=True)
        ]
        return (None, *state_grads, *table_grads, *shared_grads)


def _leaves(task: _Task, tables: Rows, position: int) -> Rows:
    """Return the rows of a block as leaves of a graph of their own."""
    return tuple(_leaf(table) for table in _rows(task, tables, position))


def _rows(task: _Task, tables: Rows, position: int) -> Rows:
    """Return the rows of a block."""
    low, high = task.blocks[position]
    if task.candidates is None:
        return tuple(table[low:high] for table in tables)
    return tuple(table[task.candidates.item_J[low:high]] for table in tables)


def _put(task: _Task, table_grad: Tensor, position: int, grad: Tensor | None) -> None:
    """Write the gradient of a block's rows to where they stand in the table."""
    low, high = task.blocks[position]
    part = slice(low, high) if task.candidates is None else task.candidates.item_J[low:high]
    table_grad[part] = 0.0 if grad is None else grad


def _with_weights(cells: Cells, candidates: Candidates | None, cut: tuple[int, int]) -> Cells:
    if candidates is None or candidates.log_weight_J is None:
        return cells
    return cells._replace(log_weight_J=candidates.log_weight_J[cut[0] : cut[1]])


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point())


def _added(total: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    """Add up in float32; None stands for nothing yet."""
    if gradient is None:
        return total
    return gradient.float() if total is None else total.add_(gradient)


def _like(gradient: Tensor | None, tensor: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.to(tensor.dtype)
