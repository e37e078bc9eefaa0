"""BPR-max and TOP1-max: the next item above the best-scored of sampled ones."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from distrib.batch import Batch
from distrib.config import Config
from distrib.objectives.base import Defaults, LossContext, ObjectiveSpec
from distrib.objectives.decoder import Decoder, Tensors
from distrib.objectives.sampling import ItemSampler
from distrib.vocabulary import Catalog


class RanksAboveSampled(Config):
    """Fields of both losses."""

    num_sampled: PositiveInt = 2048
    """Items drawn for each update, the same for all users."""

    sampling_power: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Items are drawn in proportion to this power of 1 + their interactions; 0 is uniform."""


class BprMaxConfig(RanksAboveSampled):
    """Settings of BPR-max."""

    name: Literal["bpr_max"] = "bpr_max"

    spec: ClassVar[ObjectiveSpec] = ObjectiveSpec(
        "scores", needs_whole_catalog=True, model_scheme="next_item"
    )

    score_penalty: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the squared scores of sampled items, ``bpreg`` in the source."""

    elu: Annotated[float, Field(ge=0.0)] = 1.0
    """Scores below 0 are bounded by minus this number (ELU) in the loss; 0 leaves scores alone."""

    def build(self, catalog: Catalog) -> "BprMax":
        """Make the objective."""
        return BprMax(self, catalog)


class Top1MaxConfig(RanksAboveSampled):
    """Settings of TOP1-max."""

    name: Literal["top1_max"] = "top1_max"

    spec: ClassVar[ObjectiveSpec] = ObjectiveSpec(
        "scores", needs_whole_catalog=True, model_scheme="next_item"
    )

    def build(self, catalog: Catalog) -> "Top1Max":
        """Make the objective."""
        return Top1Max(self, catalog)


class BprMax(Defaults):
    """-log sum_j w_j sigmoid(s - s_j) + penalty sum_j w_j s_j^2, w the softmax of sampled scores.

    Source: Hidasi, Karatzoglou, "Recurrent Neural Networks with Top-k Gains for Session-based
    Recommendations", CIKM 2018, eq. 10. Differs from the source: sampled items only, not the
    targets of other users; computed from logarithms, so that it stays finite.
    """

    terms = ("bpr_max", "score_penalty")

    def __init__(self, config: BprMaxConfig, catalog: Catalog) -> None:
        self.config = config
        self.sampler = ItemSampler(config.num_sampled, config.sampling_power, catalog)

    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Compute the loss and the penalty; see `Objective`."""
        score_R1, score_RJ, log_weight_RJ = _scores(
            self.sampler, model, users, target, context, elu=self.config.elu
        )
        above_RJ = log_weight_RJ + F.logsigmoid(score_R1 - score_RJ)
        has_any_R = log_weight_RJ.amax(1) > torch.finfo(above_RJ.dtype).min
        rank_R = torch.where(has_any_R, -torch.logsumexp(above_RJ, 1), 0.0)
        penalty_R = (log_weight_RJ.exp() * score_RJ.square()).sum(1)
        return torch.stack([rank_R, self.config.score_penalty * penalty_R])


class Top1Max(Defaults):
    """sum_j w_j (sigmoid(s_j - s) + sigmoid(s_j^2)), w the softmax of sampled scores.

    Source: see `BprMax`, eq. 9.
    """

    terms = ("top1_max",)

    def __init__(self, config: Top1MaxConfig, catalog: Catalog) -> None:
        self.sampler = ItemSampler(config.num_sampled, config.sampling_power, catalog)

    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Compute the loss; see `Objective`."""
        score_R1, score_RJ, log_weight_RJ = _scores(
            self.sampler, model, users, target, context, elu=0.0
        )
        below_RJ = torch.sigmoid(score_RJ - score_R1) + torch.sigmoid(score_RJ.square())
        return (log_weight_RJ.exp() * below_RJ).sum(1)[None]


def _scores(
    sampler: ItemSampler,
    model: Decoder,
    users: Tensors,
    target: Batch,
    context: LossContext,
    *,
    elu: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores of the targets and of the drawn items, and log-weights of the latter.

    An item that was drawn several times has as many times the weight; a user's own target has none.
    """
    item_J, times_J = sampler.items(context.rng, context.step, target.item_N.device)
    tables = model.item_tables()
    score_RJ = model.decode_rows(users, tuple(table[item_J] for table in tables)).float()
    score_R1 = model.score_pairs(users, target).float()[:, None]
    if elu:
        score_RJ, score_R1 = F.elu(score_RJ, elu), F.elu(score_R1, elu)
    is_target_RJ = item_J == target.item_N[:, None]
    never = torch.finfo(score_RJ.dtype).min
    weighted_RJ = (score_RJ + times_J.log()).masked_fill(is_target_RJ, never)
    # Masked again: of equal ones, as when nothing but the target was drawn, each has a share.
    log_weight_RJ = torch.log_softmax(weighted_RJ, dim=1).masked_fill(is_target_RJ, never)
    return score_R1, score_RJ, log_weight_RJ
