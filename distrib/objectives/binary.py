"""Binary cross-entropy over all user-item pairs: interaction or none."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt
from torch import Tensor

from distrib.batch import Batch, ChunkEntries
from distrib.config import Config
from distrib.objectives.base import (
    Candidates,
    Carry,
    ObjectiveSpec,
    add_to_entries,
    added_up,
    sum_by_row,
)
from distrib.objectives.chunked import ChunkedObjective, Observed, Weights
from distrib.objectives.sampling import ItemSampler
from distrib.rng import CounterRng
from distrib.vocabulary import Catalog


class BinaryConfig(Config):
    """Settings of the binary cross-entropy."""

    name: Literal["binary"] = "binary"

    spec: ClassVar[ObjectiveSpec] = ObjectiveSpec("scores")

    num_sampled: NonNegativeInt = 0
    """Items drawn per update for the pairs without an interaction; 0 takes all."""

    sampling_power: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Items are drawn in proportion to this power of 1 + their interactions; 0 is uniform."""

    def build(self, catalog: Catalog) -> "Binary":
        """Make the objective."""
        return Binary(catalog, self.num_sampled, self.sampling_power)


class Binary(ChunkedObjective):
    """Sum over all items of softplus(s) - s [observed], nats, where s are log-odds.

    Items do not compete, so a sum over chunks is exact, and one over drawn items is unbiased: a
    user's own items have weight 1, drawn ones the number of items that they represent.

    Source: the interaction part of "Conv4Rec" (arXiv 2509.07499); sampling: ours.
    """

    terms = ("interaction",)

    def __init__(self, catalog: Catalog, num_sampled: int = 0, sampling_power: float = 0.5) -> None:
        self.sampler = ItemSampler(num_sampled, sampling_power, catalog) if num_sampled else None
        self.is_by_row = self.sampler is None

    def candidates(self, target: Batch, rng: CounterRng, step: int) -> Candidates | None:
        """Draw items if sampling is on; see `ChunkedObjective`."""
        return None if self.sampler is None else self.sampler.draw(target, rng, step)

    def observe(self, output: Tensor, entries: ChunkEntries) -> Observed:
        """Return the log-odds in float32."""
        del entries
        return (output.float(),)

    def accumulate(self, carry: Carry | None, observed: Observed, entries: ChunkEntries) -> Carry:
        """Add a chunk's loss."""
        logit_BI = observed[0]
        loss_BI, logit_M = F.softplus(logit_BI), logit_BI[entries.row_M, entries.column_M]
        own_M = -logit_M
        if entries.log_weight_J is not None:
            # Own items have weight 1: w softplus(s) + (1 - w) softplus(s) - s = softplus(s) - s.
            weight_J = entries.log_weight_J.exp()
            own_M = own_M + (1.0 - weight_J[entries.column_M]) * F.softplus(logit_M)
            loss_BI = loss_BI * weight_J
        block = (loss_BI.sum(1) + sum_by_row(own_M, entries, len(logit_BI)),)
        return block if carry is None else self.merged([carry, block])

    def merged(self, carries: Sequence[Carry]) -> Carry:
        """Sum the losses."""
        return added_up(carries)

    def finish(self, carry: Carry, target: Batch) -> tuple[Tensor, Carry]:
        """Return the sums."""
        del target
        return carry[0][None], ()

    def fill_gradient(
        self, out: Tensor, observed: Observed, entries: ChunkEntries, weights: Weights
    ) -> None:
        """Fill in the weighted sigmoid(s) - [observed]."""
        out.copy_(self.by_logit(observed[0], entries, weights.gradient_TB[0]))

    def by_logit(self, logit_BI: Tensor, entries: ChunkEntries, gradient_B: Tensor) -> Tensor:
        """Return the gradient with respect to the log-odds, float32."""
        # d/ds [w softplus(s) - s [observed]] = w sigmoid(s) - [observed], with w = 1 if observed.
        by_logit_BI = torch.sigmoid(logit_BI)
        if entries.log_weight_J is not None:
            own_M = by_logit_BI[entries.row_M, entries.column_M]
            by_logit_BI *= entries.log_weight_J.exp()
            by_logit_BI[entries.row_M, entries.column_M] = own_M
        by_logit_BI *= gradient_B[:, None]
        add_to_entries(by_logit_BI, entries, -gradient_B[entries.row_M])
        return by_logit_BI
