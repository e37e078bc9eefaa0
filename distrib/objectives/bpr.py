"""Bayesian personalized ranking: liked items above sampled ones of the same user."""

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from distrib.batch import Batch
from distrib.feedback import Feedback
from distrib.objectives.base import Defaults, LossContext, ObjectiveSpec
from distrib.objectives.decoder import Decoder, Tensors
from distrib.objectives.signed_pairs import SamplesUnlabeled, signed_pairs
from distrib.vocabulary import Catalog


class BprConfig(SamplesUnlabeled):
    """Settings of Bayesian personalized ranking."""

    name: Literal["bpr"] = "bpr"

    spec: ClassVar[ObjectiveSpec] = ObjectiveSpec("log_odds", needs_whole_catalog=True)

    def build(self, catalog: Catalog) -> "Bpr":
        """Make the objective."""
        return Bpr(catalog.feedback)


class Bpr(Defaults):
    """Sum over likes i and the items j sampled for them of -log sigmoid(s_i - s_j), nats.

    Dislikes are not used, as in the source.

    Source: Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009,
    section 4.1.
    """

    terms = ("ranking",)
    decodes_pairs = True

    def __init__(self, feedback: Feedback | None) -> None:
        self.feedback = feedback

    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Compare each sampled pair with the like in its row; see `Objective`."""
        del context
        pairs = signed_pairs(model, users, target, self.feedback)
        like_B = pairs.sum_by_user(pairs.logit_N * pairs.is_like_N)  # a row has one labeled pair
        has_like_B = pairs.sum_by_user(pairs.is_like_N.to(like_B.dtype))
        row_N = pairs.row_N
        loss_N = F.softplus(pairs.logit_N - like_B[row_N]) * has_like_B[row_N]
        return pairs.sum_by_user(loss_N * pairs.is_unlabeled_N)[None]
