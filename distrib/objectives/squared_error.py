"""Squared error on observed entries: what was not rated is unknown, not zero."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from distrib.batch import Batch, Cells
from distrib.config import Config
from distrib.noise import Noise
from distrib.objectives.base import Candidates, Carry, Seen, Weights, add_to_cells
from distrib.vocabulary import Catalogue


class SquaredErrorConfig(Config):
    """Settings of the squared error."""

    name: Literal["squared_error"] = "squared_error"

    accepts: ClassVar[str] = "scores"

    divergence_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the model's divergence, where it has one."""

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
        return (torch.stack([carry[0] for carry in carries]).sum(0),)

    def finish(self, carry: Carry, target: Batch) -> tuple[Tensor, Carry]:
        """Return the sums."""
        del target
        return carry[0][None], ()

    def fill_gradient(self, out: Tensor, seen: Seen, cells: Cells, weights: Weights) -> None:
        """Fill in 2 (score - rating) at the observed cells, 0 elsewhere."""
        out.zero_()
        add_to_cells(out, cells, 2.0 * seen[0] * weights.gradient_TB[0][cells.row_M])

    def divergence_weight(self, step: int) -> float:
        """Return the weight."""
        del step
        return self.config.divergence_weight
