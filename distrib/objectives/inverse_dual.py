"""Inverse dual loss: an unlabeled pair gets both labels, the likelier one more weight."""

from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from distrib.batch import Batch
from distrib.feedback import Feedback
from distrib.objectives.base import Defaults, LossContext, ObjectiveSpec
from distrib.objectives.decoder import Decoder, Tensors
from distrib.objectives.signed_pairs import SamplesUnlabeled, signed_pairs
from distrib.vocabulary import Catalog

MEAN_WEIGHT, SHARE_LIKED = "mean weight of like", "share of unlabeled pairs seen as likes"
WEIGHT_BINS = 10
"""Bins of the histogram of weights that is recorded, over 0..1."""

Power = Annotated[float, Field(ge=0.0)]


def weight_bin(place: int) -> str:
    """Return the name under which the share of weights in a bin is recorded."""
    return f"weight of like from {place / WEIGHT_BINS:.1f}"


class InverseDualConfig(SamplesUnlabeled):
    """Settings of the inverse dual loss on pairs."""

    name: Literal["inverse_dual"] = "inverse_dual"

    spec: ClassVar[ObjectiveSpec] = ObjectiveSpec(
        "log_odds", needs_feedback=True, needs_whole_catalog=True
    )

    power: Power = 2.0
    """Weights are inverse to this power of the losses: 2 as released, 1 as written; 0 weighs both
    labels alike. Above log 2, unlabeled pairs move away from the decision boundary."""

    def build(self, catalog: Catalog) -> "InverseDual":
        """Make the objective."""
        return InverseDual(self.power, catalog.feedback)


class DualLoss(NamedTuple):
    """The inverse dual loss of some pairs."""

    loss_N: Tensor
    """In the unit of the losses."""

    like_weight_N: Tensor
    """Weight of the label "like", 0..1, detached."""


def dual_loss(like_loss_N: Tensor, dislike_loss_N: Tensor, power: float) -> DualLoss:
    """Compute w l+ + (1 - w) l-, with w proportional to l+ to the power of -p.

    No gradient flows through the weights.

    Source: "Inverse Learning with Extremely Sparse Feedback for Recommendation" (arXiv 2311.08302),
    inverse dual loss. Differs from the source: w = sigmoid(p (log l- - log l+)) does not overflow;
    the power is a setting, 2 in the released code.

    Args:
        like_loss_N: Loss of each pair if it is a like, at least 0.
        dislike_loss_N: Loss if it is a dislike, at least 0.
        power: p.

    Returns:
        The loss, and the weight of a like.
    """
    weight_N = torch.sigmoid(power * (_log(dislike_loss_N) - _log(like_loss_N)))
    return DualLoss(weight_N * like_loss_N + (1.0 - weight_N) * dislike_loss_N, weight_N)


def class_weights(loss_NC: Tensor, power: float) -> Tensor:
    """Return weights that are inverse to a power of the losses of C labels, detached.

    Args:
        loss_NC: Loss of each pair for each label, at least 0.
        power: See `dual_loss`, which is the case of two labels.

    Returns:
        Weights, which sum to 1 over the labels.
    """
    return torch.softmax(-power * _log(loss_NC), dim=-1)


def _log(loss: Tensor) -> Tensor:
    return loss.detach().clamp(min=torch.finfo(loss.dtype).tiny).log()


def record_weights(weight_N: Tensor, context: LossContext) -> None:
    """Record the distribution of the weights of "like" over unlabeled pairs."""
    context.record(MEAN_WEIGHT, weight_N)
    context.record(SHARE_LIKED, weight_N > 0.5)
    if context.recorder is not None:
        bin_N = (weight_N * WEIGHT_BINS).long().clamp(max=WEIGHT_BINS - 1)
        count_K = torch.bincount(bin_N, minlength=WEIGHT_BINS).double()
        context.recorder.add_shares([weight_bin(k) for k in range(WEIGHT_BINS)], count_K)


class InverseDual(Defaults):
    """Cross-entropy of labeled pairs, plus the inverse dual loss of sampled unlabeled ones.

    Source: see `dual_loss`. Differs from the source: a batch holds the unlabeled pairs of its own
    labeled ones, rather than a shuffle of both.
    """

    terms = ("labeled", "unlabeled")
    decodes_pairs = True

    def __init__(self, power: float, feedback: Feedback | None) -> None:
        self.power, self.feedback = power, feedback

    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Compute both parts; see `Objective`."""
        pairs = signed_pairs(model, users, target, self.feedback)
        dual = dual_loss(pairs.like_loss_N, pairs.dislike_loss_N, self.power)
        record_weights(dual.like_weight_N[pairs.is_unlabeled_N], context)
        return pairs.split_by_user(pairs.cross_entropy(), dual.loss_N)
