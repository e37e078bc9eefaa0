"""Binary cross-entropy: for every user and item, whether they met."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
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
    sum_by_row,
)
from distrib.objectives.sampling import ItemSampler
from distrib.rng import Noise
from distrib.vocabulary import Catalogue


class BinaryConfig(Config):
    """Settings of the binary cross-entropy."""

    name: Literal["binary"] = "binary"

    accepts: ClassVar[str] = "scores"

    num_sampled: NonNegativeInt = 0
    """Items drawn per update for the cells without an interaction; 0 takes all."""

    sampling_power: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Items are drawn in proportion to this power of 1 + their interactions; 0 is uniform."""

    def build(self, catalogue: Catalogue) -> "Binary":
        """Make the objective."""
        return Binary(catalogue, self.num_sampled, self.sampling_power)


class Binary:
    """Sum over all items of softplus(s) - s [met], nats, where s are log-odds.

    Items do not compete, so a sum over blocks is exact, and over drawn items unbiased: a user's own
    items count as they are, the others by what each drawn one stands for.

    Source: the interaction part of "Conv4Rec" (arXiv 2509.07499); sampling: ours.
    """

    term_names = ("interaction",)

    def __init__(
        self, catalogue: Catalogue, num_sampled: int = 0, sampling_power: float = 0.5
    ) -> None:
        self.sampler = ItemSampler(num_sampled, sampling_power, catalogue) if num_sampled else None

    def candidates(self, target: Batch, noise: Noise, step: int) -> Candidates | None:
        """Draw items where that is asked for; see `Objective`."""
        return None if self.sampler is None else self.sampler.draw(target, noise, step)

    def observe(self, output: Tensor, cells: Cells) -> Seen:
        """Return the log-odds in float32."""
        del cells
        return (output.float(),)

    def accumulate(self, carry: Carry | None, seen: Seen, cells: Cells) -> Carry:
        """Add a block's loss."""
        odds_BI = seen[0]
        loss_BI, odds_M = F.softplus(odds_BI), odds_BI[cells.row_M, cells.column_M]
        own_M = -odds_M
        if cells.log_weight_J is not None:
            weight_J = cells.log_weight_J.exp()
            own_M = own_M + (1.0 - weight_J[cells.column_M]) * F.softplus(odds_M)
            loss_BI = loss_BI * weight_J
        block = (loss_BI.sum(1) + sum_by_row(own_M, cells, len(odds_BI)),)
        return block if carry is None else self.merged([carry, block])

    def merged(self, carries: Sequence[Carry]) -> Carry:
        """Add up."""
        return added_up(carries)

    def finish(self, carry: Carry, target: Batch) -> tuple[Tensor, Carry]:
        """Return the sums."""
        del target
        return carry[0][None], ()

    def fill_gradient(self, out: Tensor, seen: Seen, cells: Cells, weights: Weights) -> None:
        """Fill in sigmoid(s) - [met], weighted."""
        out.copy_(self.by_odds(seen[0], cells, weights.gradient_TB[0]))

    def by_odds(self, odds_BI: Tensor, cells: Cells, gradient_B: Tensor) -> Tensor:
        """Return the gradient by the log-odds, float32."""
        by_odds_BI = torch.sigmoid(odds_BI)
        if cells.log_weight_J is not None:
            own_M = by_odds_BI[cells.row_M, cells.column_M]
            by_odds_BI *= cells.log_weight_J.exp()
            by_odds_BI[cells.row_M, cells.column_M] = own_M
        by_odds_BI *= gradient_B[:, None]
        add_to_cells(by_odds_BI, cells, -gradient_B[cells.row_M])
        return by_odds_BI

    def divergence_weight(self, step: int) -> float:
        """Return 1: a divergence, where the model has one, is taken as it is."""
        del step
        return 1.0
