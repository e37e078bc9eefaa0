"""Rating classes: for every user and item, which of "none" and the rating levels it is."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distrib.batch import Batch, Cells, level_index
from distrib.config import Config
from distrib.objectives.base import sum_by_row


class RatingClassesConfig(Config):
    """Settings of the rating-class objective."""

    name: Literal["rating_classes"] = "rating_classes"

    accepts: ClassVar[str] = "outcomes"

    rating_weight: Annotated[float, Field(gt=0.0)] = 1.0
    """Weight of the rating given an interaction; 1 is the plain cross-entropy of the paper."""

    def build(self, levels: tuple[float, ...]) -> "RatingClasses":
        """Make the objective."""
        return RatingClasses(self, levels)


class RatingClasses:
    """Cross-entropy over C outcomes of all items, nats, summed over items, in two exact parts.

    With s the log-odds of an interaction, -log p(outcome) is softplus(s) - s [interacted], plus,
    where interacted, the cross-entropy of the level. This form keeps its precision where nearly
    every cell is "none" and a log-softmax would round to 0.

    Source: "Conv4Rec", IEEE TNNLS 36(12), 2025 (arXiv 2509.07499). Differs from the source: the
    rating part has a weight, 1 in the paper.
    """

    term_names = ("interaction", "rating")

    def __init__(self, config: RatingClassesConfig, levels: tuple[float, ...]) -> None:
        self.config = config
        self.levels = levels

    def accumulate(self, carry: Tensor | None, output: Tensor, cells: Cells) -> Tensor:
        """Add a block's loss."""
        terms_TB = self.block_terms(output, cells, None)
        return terms_TB if carry is None else carry + terms_TB

    def finish(self, carry: Tensor, target: Batch) -> tuple[Tensor, None]:
        """Return the sums."""
        del target
        return carry, None

    def block_terms(self, output: Tensor, cells: Cells, learned: None) -> Tensor:
        """Return the block's loss itself: items do not compete, so it is a plain sum."""
        del learned
        num_users = output.shape[0]
        rated_BI = torch.logsumexp(output[..., 1:], dim=-1)
        odds_BI = rated_BI - output[..., 0]
        interaction_B = F.softplus(odds_BI).sum(1)
        row_M, column_M = cells.row_M, cells.column_M
        observed_M = odds_BI[row_M, column_M]
        level_M = level_index(cells.value_M, self.levels) + 1
        surprise_M = rated_BI[row_M, column_M] - output[row_M, column_M, level_M]
        interaction_B = interaction_B - sum_by_row(observed_M, cells, num_users)
        rating_B = self.config.rating_weight * sum_by_row(surprise_M, cells, num_users)
        return torch.stack([interaction_B, rating_B])

    def divergence_weight(self, step: int) -> float:
        """Return 1: a divergence, where the model has one, is taken as it is."""
        del step
        return 1.0
