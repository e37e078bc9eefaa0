"""What objectives on labeled and unlabeled user-item pairs share."""

from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from distrib.batch import Batch
from distrib.config import Config
from distrib.feedback import Feedback, sign_of
from distrib.objectives.decoder import Decoder, Tensors


class SamplesUnlabeled(Config):
    """Fields of an objective that learns from unlabeled pairs, too."""

    num_sampled: PositiveInt = 1
    """Unlabeled items drawn for each labeled pair, others in each epoch."""

    sampling_power: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Items are drawn in proportion to this power of 1 + their interactions; 0 is uniform."""


class SignedPairs(NamedTuple):
    """The decoded pairs of a batch."""

    logit_N: Tensor
    """Log-odds of a like, float32 at least."""

    sign_N: Tensor
    """1 for a like, -1 for a dislike, 0 for unlabeled pairs; integers."""

    target: Batch

    row_N: Tensor
    """Row of each pair."""

    @property
    def is_like_N(self) -> Tensor:
        """Which pairs are likes."""
        return self.sign_N > 0

    @property
    def is_unlabeled_N(self) -> Tensor:
        """Which pairs are unlabeled."""
        return self.sign_N == 0

    @property
    def like_loss_N(self) -> Tensor:
        """-log of the probability of a like, nats."""
        return F.softplus(-self.logit_N)

    @property
    def dislike_loss_N(self) -> Tensor:
        """-log of the probability of a dislike, nats."""
        return F.softplus(self.logit_N)

    def cross_entropy(self) -> Tensor:
        """Return the binary cross-entropy, nats, with unlabeled pairs as dislikes, ``[N]``."""
        return self.dislike_loss_N - self.logit_N * self.is_like_N

    def sum_by_user(self, value_N: Tensor) -> Tensor:
        """Sum a value of each pair by row of the batch, ``[B]``."""
        found_B = value_N.new_zeros(self.target.num_users)
        return found_B.index_add(0, self.row_N, value_N)

    def split_by_user(self, labeled_N: Tensor, unlabeled_N: Tensor) -> Tensor:
        """Sum a value of the labeled pairs, and one of the others, by row, ``[T, B]``."""
        is_unlabeled_N = self.is_unlabeled_N
        loss_TN = torch.stack([labeled_N * ~is_unlabeled_N, unlabeled_N * is_unlabeled_N])
        found_TB = loss_TN.new_zeros(2, self.target.num_users)
        return found_TB.index_add(1, self.row_N, loss_TN)


def signed_pairs(
    model: Decoder, users: Tensors, target: Batch, feedback: Feedback | None
) -> SignedPairs:
    """Decode the pairs of a batch.

    Args:
        model: The model to train.
        users: From the model's ``encode``.
        target: The pairs; the value of those that were sampled is NaN.
        feedback: Which ratings are likes and dislikes.

    Returns:
        Log-odds and signs.
    """
    output_N = model.score_pairs(users, target)
    logit_N = output_N.to(torch.promote_types(output_N.dtype, torch.float32))
    return SignedPairs(logit_N, sign_of(feedback, target.value_N), target, target.row_N)
