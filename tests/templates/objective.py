"""Template of an objective: copy it into `distrib/objectives/`, then add it to the union."""

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from distrib.batch import Batch
from distrib.config import Config
from distrib.objectives.base import Defaults, LossContext, ObjectiveSpec
from distrib.objectives.decoder import Decoder, Tensors
from distrib.vocabulary import Catalog


class LikedConfig(Config):
    """Settings of the logistic loss of likes."""

    name: Literal["liked"] = "liked"

    spec: ClassVar[ObjectiveSpec] = ObjectiveSpec("scores")

    least: float = 4.0
    """Ratings from here on are likes."""

    def build(self, catalog: Catalog) -> "Liked":
        """Make the objective."""
        del catalog
        return Liked(self.least)


class Liked(Defaults):
    """Sum over a user's ratings of the logistic loss of like or dislike.

    Only observed pairs are decoded. They may lie on several ranks; `LossContext.complete` adds up.
    """

    terms = ("liked",)
    decodes_pairs = True

    def __init__(self, least: float) -> None:
        self.least = least

    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Compute the loss from the observed pairs; see `Objective`."""
        logit_N = model.score_pairs(users, target)
        is_liked_N = (target.value_N >= self.least).to(logit_N.dtype)
        loss_N = F.binary_cross_entropy_with_logits(logit_N, is_liked_N, reduction="none")
        loss_B = loss_N.new_zeros(target.num_users).index_add(0, target.row_N, loss_N)
        return context.complete(loss_B[None])
