"""Squared error on observed entries: what was not rated is unknown, not zero."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from distrib.batch import Batch, Cells
from distrib.config import Config
from distrib.objectives.base import (
    Candidates,
    Carry,
    Seen,
    Weights,
    add_to_cells,
    added_up,
    annealed,
)
from distrib.rng import Noise
from distrib.vocabulary import Catalogue


class SquaredErrorConfig(Config):
    """Settings of the squared error."""

    name: Literal["squared_error"] = "squared_error"

    accepts: ClassVar[str] = "ratings"

    divergence_cap: Annotated[float, Field(ge=0.0)] = 0.2
    """Weight that the model's divergence ends at, where it has one."""

    anneal_steps: NonNegativeInt = 0
    """Updates over which the weight would grow from 0 to 1; it stops at the cap."""

    def build(self, catalogue: Catalogue) -> "SquaredError":
        """Make the objective."""
        del catalogue
        return SquaredError(self)


class SquaredError:
    """Sum over a user's ratings of (score - rating)^2; only items of the batch are decoded.

    Source: Sedhain et al., "AutoRec: Autoencoders Meet Collaborative Filtering", WWW 2015, eq. 2
    (its data term).
    """

    term_names = ("squared_error",)

    def __init__(self, config: SquaredErrorConfig) -> None:
        self.config = config

    def candidates(self, target: Batch, noise: Noise, step: int) -> Candidates | None:
        """Return the observed items; see `Objective`."""
        del noise, step
        return Candidates(torch.unique(target.item_N))

    def cell_terms(
        self, output_N: Tensor, target: Batch, variance_N: Tensor | None = None
    ) -> Tensor:
        """Return the sums of (expected) squared errors, ``[1, B]``; see `CellObjective`."""
        output_N = output_N.to(torch.promote_types(output_N.dtype, torch.float32))
        square_N = (output_N - target.value_N).square()
        if variance_N is not None:
            square_N = square_N + variance_N
        return square_N.new_zeros(target.num_users).index_add(0, target.row_N, square_N)[None]

    def observe(self, output: Tensor, cells: Cells) -> Seen:
        """Return the errors, and for each user nothing yet."""
        error_M = output[cells.row_M, cells.column_M].float() - cells.value_M
        return error_M, error_M.new_zeros(output.shape[0])

    def accumulate(self, carry: Carry | None, seen: Seen, cells: Cells) -> Carry:
        """Add a block's errors."""
        error_M, nothing_B = seen
        block = (nothing_B.index_add(0, cells.row_M, error_M.square()),)
        return block if carry is None else self.merged([carry, block])

    def merged(self, carries: Sequence[Carry]) -> Carry:
        """Add up."""
        return added_up(carries)

    def finish(self, carry: Carry, target: Batch) -> tuple[Tensor, Carry]:
        """Return the sums."""
        del target
        return carry[0][None], ()

    def fill_gradient(self, out: Tensor, seen: Seen, cells: Cells, weights: Weights) -> None:
        """Fill in 2 (score - rating) at the observed cells, 0 elsewhere."""
        out.zero_()
        add_to_cells(out, cells, 2.0 * seen[0] * weights.gradient_TB[0][cells.row_M])

    def divergence_weight(self, step: int) -> float:
        """Return min(cap, step / anneal_steps)."""
        return annealed(self.config.divergence_cap, self.config.anneal_steps, step)
