"""The loss of Conv4Rec: each user-item pair is "not observed" or has one of the rating levels."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt
from torch import Tensor
from typing_extensions import override

from distrib.batch import Batch, ChunkEntries, level_index
from distrib.config import Config
from distrib.objectives.base import (
    Candidates,
    Carry,
    LossContext,
    ObjectiveSpec,
    added_up,
    sum_by_row,
)
from distrib.objectives.binary import Binary
from distrib.objectives.chunked import (
    ChunkDecoder,
    ChunkedObjective,
    Observed,
    Weights,
    chunked_terms,
)
from distrib.objectives.decoder import Decoder, Tensors, interaction_head
from distrib.rng import CounterRng
from distrib.vocabulary import Catalog


class RatingClassesConfig(Config):
    """Settings of the rating-class objective."""

    name: Literal["rating_classes"] = "rating_classes"

    spec: ClassVar[ObjectiveSpec] = ObjectiveSpec("rating_classes")

    rating_weight: Annotated[float, Field(gt=0.0)] = 1.0
    """Weight of the rating given an interaction; 1 is the plain cross-entropy of the paper."""

    num_sampled: NonNegativeInt = 0
    """Items drawn per update for the pairs that were not observed, without bias, for very large
    catalogs; 0 takes all."""

    sampling_power: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Items are drawn in proportion to this power of 1 + their interactions; 0 is uniform."""

    def build(self, catalog: Catalog) -> "RatingClasses":
        """Make the objective."""
        return RatingClasses(self, catalog)


class RatingClasses(ChunkedObjective):
    """Cross-entropy over C classes, nats, summed over all items, in two exact parts.

    With s the log-odds of an interaction, -log p(class) is softplus(s) - s [observed], plus, if
    observed, the cross-entropy of the level. This form keeps its precision although nearly every
    pair is "not observed" and a log-softmax would round to 0. A model that decodes the two parts
    separately decodes levels of observed pairs only (`InteractionHead`): for it `__call__` computes
    the loss, for others `accumulate`, with its gradient in `fill_gradient`.

    Source: "Conv4Rec", IEEE TNNLS 36(12), 2025 (arXiv 2509.07499). Differs from the source: the
    rating part has a weight, 1 in the paper; pairs that were not observed can be sampled.
    """

    terms = ("interaction", "rating")

    def __init__(self, config: RatingClassesConfig, catalog: Catalog) -> None:
        self.config = config
        self.levels = catalog.levels
        self.interactions = Binary(catalog, config.num_sampled, config.sampling_power)
        self.is_by_row = self.interactions.is_by_row

    @override
    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Decode one number per item, and levels of observed pairs only, if the model can.

        A model that decodes both at once is decoded by chunks; see `ChunkedObjective`.
        """
        head = interaction_head(model)
        if head is None:
            return super().__call__(model, users, target, context)
        decoder = ChunkDecoder(head.tables, head.decode_rows)
        by_item_TB = chunked_terms(decoder, self.interactions, users, target, context)
        levels_TB = self.level_terms(head.rating_logits(users, target), target)
        return torch.cat([by_item_TB, context.complete(levels_TB)])

    def candidates(self, target: Batch, rng: CounterRng, step: int) -> Candidates | None:
        """Draw items if sampling is on; see `ChunkedObjective`."""
        return self.interactions.candidates(target, rng, step)

    def observe(self, output: Tensor, entries: ChunkEntries) -> Observed:
        """Return the output in float32, and the log-sum-exp over the rating levels."""
        del entries
        exact = output.float()
        return exact, torch.logsumexp(exact[..., 1:], dim=-1)

    def accumulate(self, carry: Carry | None, observed: Observed, entries: ChunkEntries) -> Carry:
        """Add a chunk's loss; items do not compete, so this is a plain sum."""
        output, rated_BI = observed
        logit_BI = rated_BI - output[..., 0]
        (interaction_B,) = self.interactions.accumulate(None, (logit_BI,), entries)
        row_M, column_M = entries.row_M, entries.column_M
        level_M = level_index(entries.value_M, self.levels) + 1
        # -log p(level | interaction) = lse_k(y_k) - y_level
        surprise_M = rated_BI[row_M, column_M] - output[row_M, column_M, level_M]
        rating_B = self.config.rating_weight * sum_by_row(surprise_M, entries, output.shape[0])
        block = (torch.stack([interaction_B, rating_B]),)
        return block if carry is None else self.merged([carry, block])

    def merged(self, carries: Sequence[Carry]) -> Carry:
        """Sum the losses."""
        return added_up(carries)

    def finish(self, carry: Carry, target: Batch) -> tuple[Tensor, Carry]:
        """Return the sums."""
        del target
        return carry[0], ()

    def fill_gradient(
        self, out: Tensor, observed: Observed, entries: ChunkEntries, weights: Weights
    ) -> None:
        """Fill in the gradients of both parts; that of the rating is 0 if not observed."""
        output, rated_BI = observed
        row_M, column_M = entries.row_M, entries.column_M
        interaction_B = weights.gradient_TB[0]
        rating_B = self.config.rating_weight * weights.gradient_TB[1]
        # s = lse - y_0, lse over levels k, so ds/dy_0 = -1 and ds/dy_k = exp(y_k - lse) = share_k.
        # The level's cross-entropy lse - y_level of an observed pair adds share_k - [k = level].
        logit_BI = rated_BI - output[..., 0]
        by_logit_BI = self.interactions.by_logit(logit_BI, entries, interaction_B)
        out[..., 0] = -by_logit_BI
        level_M = level_index(entries.value_M, self.levels)
        share_ML = (output[row_M, column_M, 1:] - rated_BI[row_M, column_M, None]).exp_()
        by_level_ML = share_ML * (by_logit_BI[row_M, column_M] + rating_B[row_M])[:, None]
        by_level_ML[torch.arange(len(level_M), device=level_M.device), level_M] -= rating_B[row_M]
        share_BIL = (output[..., 1:] - rated_BI[..., None]).exp_()
        torch.mul(share_BIL, by_logit_BI[..., None], out=out[..., 1:])
        out[..., 1:][row_M, column_M] = by_level_ML.to(out.dtype)

    def level_terms(self, level_NL: Tensor, target: Batch) -> Tensor:
        """Return the weighted cross-entropy of the levels of observed pairs, ``[1, B]``."""
        level_N = level_index(target.value_N, self.levels)
        surprise_N = F.cross_entropy(level_NL.float(), level_N, reduction="none")
        rating_B = surprise_N.new_zeros(target.num_users).index_add(0, target.row_N, surprise_N)
        return self.config.rating_weight * rating_B[None]
