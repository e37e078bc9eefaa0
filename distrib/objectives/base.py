"""What is asked of an objective: a loss per user that can be summed block by block of items."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from distrib.batch import Batch, Cells
from distrib.rng import Noise

Carry = tuple[Tensor, ...]
"""What an objective remembers from block to block: tensors whose last dimension is B."""

Seen = tuple[Tensor, ...]
"""What an objective makes of one block."""


class Weights(NamedTuple):
    """What the gradient of a block depends on besides the block."""

    learned: Carry
    """From `Objective.finish`."""

    gradient_TB: Tensor
    """Weight of each term of each user, float32."""


class Candidates(NamedTuple):
    """The items that a loss looks at, where these are not all."""

    item_J: Tensor
    """int64, ascending; the observed items of the batch are among them."""

    log_weight_J: Tensor | None = None
    """float32; how many items each stands for, as a logarithm. None: the loss needs none."""


@runtime_checkable
class Objective(Protocol):
    """A loss over all items of each user, computed without ever holding all items at once.

    Going over the blocks once, `observe`, `accumulate`, then `finish` give the loss. The gradient
    takes a second look at each block: `fill_gradient`, given what `finish` learned. Where ranks
    own different items, `merged` joins what they accumulated.
    """

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the T terms."""

    def candidates(self, target: Batch, noise: Noise, step: int) -> Candidates | None:
        """Return the items to decode for a batch; None for all.

        Args:
            target: What should be decoded.
            noise: The epoch's randomness; ranks of one step must draw the same.
            step: Updates made so far.

        Returns:
            Items, or None.
        """

    def observe(self, output: Tensor, cells: Cells) -> Seen:
        """Compute, in float32, what both the loss and its gradient need of a block.

        Args:
            output: The model's output for the block, in the model's precision; not changed.
            cells: The observed cells in the block.

        Returns:
            Tensors, maybe as large as the block.
        """

    def accumulate(self, carry: Carry | None, seen: Seen, cells: Cells) -> Carry:
        """Take one block into account.

        Args:
            carry: What the blocks before gave; None for the first.
            seen: From `observe`.
            cells: The observed cells in the block.

        Returns:
            What the next block needs.
        """

    def merged(self, carries: Sequence[Carry]) -> Carry:
        """Join what was accumulated over disjoint items."""

    def finish(self, carry: Carry, target: Batch) -> tuple[Tensor, Carry]:
        """Return the loss ``[T, B]`` and what `fill_gradient` will need."""

    def fill_gradient(self, out: Tensor, seen: Seen, cells: Cells, weights: Weights) -> None:
        """Compute the gradient of ``sum(loss * gradient_TB)`` by the block's output.

        Args:
            out: Filled; of the shape and precision of the output.
            seen: From `observe`.
            cells: The observed cells in the block.
            weights: What the block alone does not tell.
        """

    def divergence_weight(self, step: int) -> float:
        """Return the weight of the model's divergence after ``step`` updates."""


@runtime_checkable
class CellObjective(Protocol):
    """A loss that looks at observed cells only, so that no block has to be decoded."""

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the T terms."""

    def cell_terms(
        self, output_N: Tensor, target: Batch, variance_N: Tensor | None = None
    ) -> Tensor:
        """Return the loss of each user.

        Args:
            output_N: The model's output for each stored cell of the target.
            target: What should be decoded.
            variance_N: Where the output is the mean of a posterior, its variance.

        Returns:
            float32 ``[T, B]``.
        """

    def divergence_weight(self, step: int) -> float:
        """See `Objective`."""


@runtime_checkable
class FactoredObjective(Protocol):
    """A loss over outcomes that is the sum of one over interactions and one over observed levels.

    Of a model that gives the two by themselves, all items are decoded to one number each.
    """

    @property
    def interactions(self) -> Objective:
        """The part that looks at the log-odds of all items."""

    def level_terms(self, level_NL: Tensor, target: Batch) -> Tensor:
        """Return the other part for each user.

        Args:
            level_NL: Logits of the levels of each stored cell of the target.
            target: What should be decoded.

        Returns:
            float32 ``[T, B]``.
        """

    def divergence_weight(self, step: int) -> float:
        """See `Objective`."""


@runtime_checkable
class CodeObjective(Protocol):
    """A loss that a linear autoencoder's codes tell, so that no item has to be decoded."""

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the T terms."""

    def code_terms(self, code_BZ: Tensor, gram_ZZ: Tensor, target: Batch) -> Tensor:
        """Return the loss of each user.

        Args:
            code_BZ: x A.
            gram_ZZ: A^T A, float32.
            target: The histories; also what was encoded.

        Returns:
            float32 ``[T, B]``.
        """

    def divergence_weight(self, step: int) -> float:
        """See `Objective`."""


def sum_by_row(value_M: Tensor, cells: Cells, num_users: int) -> Tensor:
    """Add up values of cells for each user, ``[B]``."""
    return value_M.new_zeros(num_users).index_add(0, cells.row_M, value_M)


def added_up(carries: Sequence[Carry]) -> Carry:
    """Join carries that are one sum each."""
    return (torch.stack([carry[0] for carry in carries]).sum(0),)


def annealed(cap: float, anneal_steps: int, step: int) -> float:
    """Return a weight that grows with the updates to its cap."""
    return min(cap, step / anneal_steps) if anneal_steps else cap


def add_to_cells(output_BJ: Tensor, cells: Cells, value_M: Tensor) -> None:
    """Add a value to each observed cell, in place."""
    place_M = cells.row_M * output_BJ.shape[1] + cells.column_M
    output_BJ.view(-1).index_add_(0, place_M, value_M.to(output_BJ.dtype))
