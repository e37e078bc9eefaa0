"""Non-negative positive-unlabeled risk: unlabeled pairs are a mixture of likes and dislikes."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from distrib.batch import Batch
from distrib.feedback import Feedback
from distrib.objectives.base import Defaults, LossContext, ObjectiveSpec
from distrib.objectives.decoder import Decoder, Tensors
from distrib.objectives.signed_pairs import SamplesUnlabeled, signed_pairs
from distrib.vocabulary import Catalog


class PositiveUnlabeledConfig(SamplesUnlabeled):
    """Settings of the positive-unlabeled risk."""

    name: Literal["positive_unlabeled"] = "positive_unlabeled"

    spec: ClassVar[ObjectiveSpec] = ObjectiveSpec("log_odds", needs_whole_catalog=True)

    prior: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    """Share of likes among the unlabeled pairs."""

    def build(self, catalog: Catalog) -> "PositiveUnlabeled":
        """Make the objective."""
        return PositiveUnlabeled(self.prior, catalog.feedback)


class PositiveUnlabeled(Defaults):
    """Cross-entropy of labeled pairs, plus the non-negative risk of the unlabeled ones.

    With mean losses l+ and l- over likes (P) and over unlabeled pairs (U), and prior pi, the risk
    of U is pi l+_P + max(0, l-_U - pi l-_P). Where the second part is negative, only its gradient
    is followed, reversed. The risk is scaled by the number of unlabeled pairs, to weigh as much as
    a loss of each of them would. Means are over all ranks.

    Source: Kiryo et al., "Positive-Unlabeled Learning with Non-Negative Risk Estimator", NeurIPS
    2017, eq. 6 and algorithm 1. Differs from the source: dislikes are known, too, and enter by
    their cross-entropy.
    """

    terms = ("labeled", "unlabeled")
    decodes_pairs = True

    def __init__(self, prior: float, feedback: Feedback | None) -> None:
        self.prior, self.feedback = prior, feedback

    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Compute both parts; see `Objective`."""
        pairs = signed_pairs(model, users, target, self.feedback)
        is_like_N, is_unlabeled_N = pairs.is_like_N, pairs.is_unlabeled_N
        loss_N = pairs.dislike_loss_N
        mine = torch.stack(
            [is_like_N.sum(), is_unlabeled_N.sum(), (loss_N * is_like_N).sum().detach(),
             (loss_N * is_unlabeled_N).sum().detach()]
        )  # fmt: skip
        sums = context.gather(mine.double()[None]).sum(0)
        num_likes, num_unlabeled, of_likes, of_unlabeled = sums.tolist()
        weight = self.prior * num_unlabeled / max(num_likes, 1.0)
        is_negative = of_unlabeled < weight * of_likes
        context.record("share of steps with a negative risk", loss_N.new_tensor([is_negative]))
        mixed_N = loss_N * is_unlabeled_N - weight * loss_N * is_like_N
        of_likes_N = weight * pairs.like_loss_N * is_like_N
        risk_N = of_likes_N + mixed_N
        if is_negative:  # the value of the first part, and the reversed gradient of the second
            risk_N = of_likes_N.detach() + mixed_N.detach() - mixed_N
        labeled_B = pairs.sum_by_user(pairs.cross_entropy() * ~is_unlabeled_N)
        return torch.stack([labeled_B, pairs.sum_by_user(risk_N)])
