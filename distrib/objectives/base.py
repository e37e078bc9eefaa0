"""What is asked of an objective: a loss per user that can be summed block by block of items."""

from typing import Any, Protocol

from torch import Tensor

from distrib.batch import Batch, Cells

Carry = Any
"""What an objective remembers from block to block: tensors with B entries."""


class Objective(Protocol):
    """A loss over all items of each user, computed without ever holding all items at once.

    Going over the blocks once, `accumulate` then `finish` give the loss. The gradient needs a
    second look at each block: `block_terms` returns numbers whose sum over blocks has the gradient
    of the loss, given what `finish` learned.
    """

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the T terms."""

    def accumulate(self, carry: Carry | None, output: Tensor, cells: Cells) -> Carry:
        """Take one block into account.

        Args:
            carry: What the blocks before gave; None for the first.
            output: The model's output for the block, float32.
            cells: The observed cells in the block.

        Returns:
            What the next block needs.
        """

    def finish(self, carry: Carry, target: Batch) -> tuple[Tensor, Carry]:
        """Return the loss ``[T, B]`` and what `block_terms` will need."""

    def block_terms(self, output: Tensor, cells: Cells, learned: Carry) -> Tensor:
        """Return ``[T, B]`` with the block's share of the gradient."""

    def divergence_weight(self, step: int) -> float:
        """Return the weight of the model's divergence after ``step`` updates."""


def sum_by_row(value_M: Tensor, cells: Cells, num_users: int) -> Tensor:
    """Add up values of cells for each user, ``[B]``."""
    return value_M.new_zeros(num_users).index_add(0, cells.row_M, value_M)
