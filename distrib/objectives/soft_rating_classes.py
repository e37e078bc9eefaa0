"""The loss of Conv4Rec with soft labels: some pairs that were not observed may be missing ones."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distrib.batch import Batch
from distrib.objectives.base import Defaults, LossContext, ObjectiveSpec
from distrib.objectives.decoder import Decoder, Tensors
from distrib.objectives.label_config import SoftenedConfig
from distrib.objectives.rating_classes import RatingClassesConfig
from distrib.soft_labels import SoftLabels, joined
from distrib.vocabulary import Catalog


class SoftRatingClassesConfig(SoftenedConfig):
    """Settings of the rating-class objective with soft labels."""

    name: Literal["soft_rating_classes"] = "soft_rating_classes"

    spec: ClassVar[ObjectiveSpec] = ObjectiveSpec("rating_classes", needs_whole_catalog=True)

    base: RatingClassesConfig = RatingClassesConfig()
    """The objective that it extends."""

    def without_files(self) -> RatingClassesConfig:
        """Return the base; see `ReadsLabels`."""
        return self.base

    def build(self, catalog: Catalog) -> "SoftRatingClasses":
        """Make the objective; reads the labels."""
        return SoftRatingClasses(self, catalog)


class SoftRatingClasses(Defaults):
    """Twice the weighted binary cross-entropy of interactions with soft targets, and of levels.

    With z the soft label of a user of n interactions O, a pair that was not observed has the target
    min(1, l1 n z_j) in place of 0, an observed one 1 - l1 (1 - z_O) in place of 1; observed pairs
    weigh 2 l2, others 2 (1 - l2). l1 = 0, l2 = 1/2 is the base. The level of an observed pair is
    trained as in the base.

    The paper has no such form; it follows "Learning Recommender Systems with Soft Target", for
    outputs that are no softmax over items.
    """

    terms = ("interaction", "rating", "soft")

    def __init__(self, config: SoftRatingClassesConfig, catalog: Catalog) -> None:
        self.config = config
        self.base = config.base.build(catalog)
        self.labels = SoftLabels.open(config.label.path)

    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Compute the base by chunks, and what soft labels change on a few pairs; see `Objective`.

        Of a pair with log-odds s and soft target q the loss is softplus(s) - q s. The base has this
        for all pairs with q = 0 or 1; the third term corrects those that soft labels name.
        """
        own, other = self.config.weights
        interaction_B, rating_B = self.base(model, users, target, context)
        pairs, is_target_N, weight_N = joined(target, self.labels.of(target.user_B))
        row_N = pairs.row_N

        def summed(value_N: Tensor) -> Tensor:
            return value_N.new_zeros(pairs.num_users).index_add(0, row_N, value_N)

        label_B = summed(weight_N)
        rest_B = summed(weight_N.masked_fill(is_target_N, 0.0))
        confidence_B = 1.0 - self.config.label_share * rest_B * (label_B > 0)
        soft_N = self.config.shares(target.length_B[row_N], weight_N)
        output_NC = model.score_pairs(users, pairs).float()
        odds_N = torch.logsumexp(output_NC[:, 1:], dim=1) - output_NC[:, 0]
        own_N = own * (F.softplus(odds_N) - confidence_B[row_N] * odds_N)
        own_N = own_N - other * (F.softplus(odds_N) - odds_N)  # which the base has already
        soft_B = summed(torch.where(is_target_N, own_N, -other * soft_N * odds_N))
        return torch.stack([other * interaction_B, rating_B, soft_B])
