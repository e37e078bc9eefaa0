"""The last layer and the loss by chunks of items, recomputed in the backward pass.

With a catalog of I items and B users, the output ``[B, I]`` would be by far the largest tensor of
a step. A `ChunkedObjective` visits each chunk twice instead: once to accumulate what the loss is
made of (a log-sum-exp, or a sum), and once in the backward pass, where the gradient of the chunk
follows from the chunk and from what was accumulated over all of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from distrib.batch import Batch, ChunkEntries, entries_by_chunk, item_chunks
from distrib.objectives.base import Candidates, Carry, Defaults, LossContext
from distrib.objectives.decoder import Decoder, Tensors
from distrib.parameters import roles_of
from distrib.rng import CounterRng

Observed = tuple[Tensor, ...]
"""What an objective computes from one chunk."""


class Weights(NamedTuple):
    """What the gradient of a chunk depends on, apart from the chunk."""

    learned: Carry
    """From `ChunkedObjective.finish`."""

    gradient_TB: Tensor
    """Weight of each term of each user, float32."""


class ChunkDecoder(NamedTuple):
    """A function that decodes a chunk, and the parameters that it uses."""

    tables: Tensors
    decode_rows: Callable[[Tensors, Tensors], Tensor]
    shared: Tensors = ()
    """Parameters that `decode_rows` uses for all items alike."""

    @classmethod
    def of(cls, model: Decoder) -> "ChunkDecoder":
        """Return the whole last layer of a model."""
        assert isinstance(model, nn.Module)  # a trained model has parameters
        return cls(model.item_tables(), model.decode_rows, tuple(roles_of(model).shared.values()))


class ChunkedObjective(Defaults, ABC):
    """A loss over all items of each user, computed without ever holding all items at once.

    The forward pass calls `observe` and `accumulate` on each chunk, then `finish`. The backward
    pass visits each chunk again and calls `fill_gradient` with what `finish` returned. If ranks
    hold different items, `merged` joins what they accumulated.
    """

    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Compute the loss by chunks; see `Objective`."""
        return chunked_terms(ChunkDecoder.of(model), self, users, target, context)

    @abstractmethod
    def candidates(self, target: Batch, rng: CounterRng, step: int) -> Candidates | None:
        """Return the items to decode for a batch; None for all.

        Args:
            target: What to decode.
            rng: The epoch's randomness; ranks of one step must draw the same.
            step: Updates made so far.

        Returns:
            Items, or None.
        """

    @abstractmethod
    def observe(self, output: Tensor, entries: ChunkEntries) -> Observed:
        """Compute, in float32, what both the loss and its gradient need of a chunk.

        Args:
            output: The model's output for the chunk, in the model's precision; not changed.
            entries: The observed entries in the chunk.

        Returns:
            Tensors, possibly as large as the chunk.
        """

    @abstractmethod
    def accumulate(self, carry: Carry | None, observed: Observed, entries: ChunkEntries) -> Carry:
        """Accumulate one chunk.

        Args:
            carry: From the chunks before; None for the first.
            observed: From `observe`.
            entries: The observed entries in the chunk.

        Returns:
            The new carry.
        """

    @abstractmethod
    def merged(self, carries: Sequence[Carry]) -> Carry:
        """Join what was accumulated over disjoint items."""

    @abstractmethod
    def finish(self, carry: Carry, target: Batch) -> tuple[Tensor, Carry]:
        """Return the loss ``[T, B]`` and what `fill_gradient` needs."""

    @abstractmethod
    def fill_gradient(
        self, out: Tensor, observed: Observed, entries: ChunkEntries, weights: Weights
    ) -> None:
        """Compute the gradient of ``sum(loss * gradient_TB)`` with respect to the chunk's output.

        Args:
            out: Filled; of the shape and precision of the output.
            observed: From `observe`.
            entries: The observed entries in the chunk.
            weights: What the gradient depends on, apart from the chunk.
        """


class _Task(NamedTuple):
    """Constants of one forward and backward pass."""

    decode_rows: Callable[[Tensors, Tensors], Tensor]
    objective: ChunkedObjective
    target: Batch
    chunks: Sequence[tuple[int, int]]
    entries: Sequence[ChunkEntries]
    candidates: Candidates | None
    context: LossContext
    keep_bytes: int
    num_state: int
    num_tables: int


def chunked_terms(
    decoder: ChunkDecoder,
    objective: ChunkedObjective,
    users: Tensors,
    target: Batch,
    context: LossContext,
) -> Tensor:
    """Return the objective's terms for each user without holding the output of all items.

    Equal to decoding all items at once, value and gradient, up to rounding. Peak memory grows with
    users x chunk, at the price of decoding each chunk a second time in the backward pass; below
    ``context.chunks.keep_bytes`` the chunks are kept instead.

    Args:
        decoder: Decodes the chunks.
        objective: Turns them into terms.
        users: From the model's ``encode``.
        target: What to decode.
        context: Chunk size, randomness, and the other ranks if this one holds only some items.

    Returns:
        float32 ``[T, B]``.
    """
    shard, tables = context.shard, decoder.tables
    if not context.trains_items:
        tables = tuple(table.detach() for table in tables)
    whole = target if shard is None else shard.target
    candidates = objective.candidates(whole, context.rng, context.step)
    if shard is not None:
        candidates = shard.own(candidates)
    if candidates is None:
        item_count = tables[0].shape[0]
    else:
        item_count = candidates.item_J.shape[0]
        place_N = torch.searchsorted(candidates.item_J, target.item_N)
        target = target._replace(item_N=place_N)
    chunks = item_chunks(item_count, context.chunks.chunk_items) or [(0, 0)]
    entries = [
        _with_weights(found, candidates, chunk)
        for found, chunk in zip(entries_by_chunk(target, chunks), chunks, strict=True)
    ]
    keep_bytes = context.chunks.keep_bytes if torch.is_grad_enabled() else 0
    sizes = (keep_bytes, len(users), len(tables))
    fixed = (decoder.decode_rows, objective, target, chunks, entries, candidates, context)
    task = _Task(*fixed, *sizes)
    result: Tensor = _ChunkedLoss.apply(task, *users, *tables, *decoder.shared)  # type: ignore[no-untyped-call]
    return result


class _ChunkedLoss(torch.autograd.Function):
    """Inputs after the task: the state's tensors, the item tables, the shared parameters."""

    @staticmethod
    def forward(ctx: Any, task: _Task, *tensors: Tensor) -> Tensor:
        state, tables = tensors[: task.num_state], tensors[task.num_state :][: task.num_tables]
        state = tuple(_leaf(tensor) for tensor in state)
        carry, kept = None, []
        is_kept = task.keep_bytes > 0
        for position, entries in enumerate(task.entries):
            rows = _leaves(task, tables, position)
            with torch.set_grad_enabled(is_kept):
                output = task.decode_rows(state, rows)
            observed = task.objective.observe(output.detach(), entries)
            size = output.nbytes + sum(part.nbytes for part in observed)
            is_kept = is_kept and size * len(task.chunks) <= task.keep_bytes
            kept.append((rows, output, observed))
            if not is_kept:
                kept.clear()
            carry = task.objective.accumulate(carry, observed, entries)
        assert carry is not None  # there is at least one chunk, possibly without items
        shard = task.context.shard
        if shard is not None:
            carry = task.objective.merged(shard.gather(carry))
        whole = task.target if shard is None else shard.target
        terms_TB, ctx.learned = task.objective.finish(carry, whole)
        ctx.task, ctx.state, ctx.kept = task, state, kept
        ctx.save_for_backward(*tensors)
        return terms_TB

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_TB: Tensor) -> tuple[Tensor | None, ...]:
        task: _Task = ctx.task
        stays = task.context.repeats_backward
        tensors = ctx.saved_tensors
        tables = tensors[task.num_state :][: task.num_tables]
        shared = tensors[task.num_state + task.num_tables :]
        wanted_state = [tensor for tensor in ctx.state if tensor.requires_grad]
        is_wanted = ctx.needs_input_grad[1 + task.num_state :][: task.num_tables]
        inner = [*wanted_state, *shared]
        weights = Weights(ctx.learned, gradient_TB)
        summed: list[Tensor | None] = [None] * len(inner)
        # Without sampling, the chunks cover all rows of a table, so `_put` sets every one of them.
        fresh = torch.empty_like if task.candidates is None else torch.zeros_like
        table_grads = [
            fresh(table) if wanted else None
            for table, wanted in zip(tables, is_wanted, strict=True)
        ]
        for position, entries in enumerate(task.entries):
            if ctx.kept:
                rows, output, observed = ctx.kept[position]
                if not stays:
                    ctx.kept[position] = None
            else:
                rows = _leaves(task, tables, position)
                with torch.enable_grad():
                    output = task.decode_rows(ctx.state, rows)
                observed = task.objective.observe(output.detach(), entries)
            # With L = sum(terms_TB * gradient_TB) and y = decode(theta): by_output = dL/dy, and
            # autograd returns dL/dy dy/dtheta. A table row is in one chunk only; the state and the
            # shared parameters are in all chunks, so that their gradients are sums over chunks.
            by_output = torch.empty_like(output)
            task.objective.fill_gradient(by_output, observed, entries, weights)
            del observed
            trained = [row for row, wanted in zip(rows, is_wanted, strict=True) if wanted]
            grads: tuple[Tensor | None, ...] = torch.autograd.grad(
                output,
                [*trained, *inner],
                by_output,
                retain_graph=stays and bool(ctx.kept),
                allow_unused=True,
            )
            wanted_grads = (grad for grad in table_grads if grad is not None)
            for table_grad, grad in zip(wanted_grads, grads, strict=False):
                _put(task, table_grad, position, grad)
            summed = [_added(*pair) for pair in zip(summed, grads[len(trained) :], strict=True)]
        if not stays:
            ctx.kept = None
        of_state = iter(summed[: len(wanted_state)])
        state_grads = [_like(next(of_state), t) if t.requires_grad else None for t in ctx.state]
        shared_grads = [
            _like(g, t) for g, t in zip(summed[len(wanted_state) :], shared, strict=True)
        ]
        return (None, *state_grads, *table_grads, *shared_grads)


def _leaves(task: _Task, tables: Tensors, position: int) -> Tensors:
    """Return the rows of a chunk as leaves of their own autograd graph."""
    return tuple(_leaf(table) for table in _rows(task, tables, position))


def _rows(task: _Task, tables: Tensors, position: int) -> Tensors:
    """Return the rows of a chunk."""
    low, high = task.chunks[position]
    if task.candidates is None:
        return tuple(table[low:high] for table in tables)
    return tuple(table[task.candidates.item_J[low:high]] for table in tables)


def _put(task: _Task, table_grad: Tensor, position: int, grad: Tensor | None) -> None:
    """Write the gradient of a chunk's rows to their places in the table's gradient."""
    low, high = task.chunks[position]
    part = slice(low, high) if task.candidates is None else task.candidates.item_J[low:high]
    table_grad[part] = 0.0 if grad is None else grad


def _with_weights(
    entries: ChunkEntries, candidates: Candidates | None, chunk: tuple[int, int]
) -> ChunkEntries:
    if candidates is None or candidates.log_weight_J is None:
        return entries
    return entries._replace(log_weight_J=candidates.log_weight_J[chunk[0] : chunk[1]])


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point())


def _added(total: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    """Sum in float32; None is an empty sum."""
    if gradient is None:
        return total
    return gradient.float() if total is None else total.add_(gradient)


def _like(gradient: Tensor | None, tensor: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.to(tensor.dtype)
