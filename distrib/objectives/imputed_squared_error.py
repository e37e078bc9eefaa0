"""Squared error on ratings, and on ratings that similar users gave to what a user did not rate."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from distrib.batch import Batch
from distrib.objectives.base import Defaults, LossContext, ObjectiveSpec
from distrib.objectives.decoder import Decoder, Tensors, Uncertain
from distrib.objectives.label_config import SoftenedConfig
from distrib.objectives.squared_error import SquaredErrorConfig
from distrib.soft_labels import COLUMNS, RATINGS, SoftLabels, label_table, without
from distrib.vocabulary import Catalog


class ImputedSquaredErrorConfig(SoftenedConfig):
    """Settings of the squared error with imputed ratings."""

    name: Literal["imputed_squared_error"] = "imputed_squared_error"

    spec: ClassVar[ObjectiveSpec] = ObjectiveSpec(
        "ratings", needs_whole_catalog=True, model_scheme="user_rows"
    )

    base: SquaredErrorConfig = SquaredErrorConfig()
    """The objective that it extends."""

    def without_files(self) -> SquaredErrorConfig:
        """Return the base; see `ReadsLabels`."""
        return self.base

    def build(self, catalog: Catalog) -> "ImputedSquaredError":
        """Make the objective; reads the labels."""
        return ImputedSquaredError(self, catalog)


class ImputedSquaredError(Defaults):
    """2 l2 times the squared error of observed ratings, plus that of imputed ones.

    With z the soft label of a user of n ratings, an item j that it names and the user did not rate
    has the target r_j, the mean rating by the users that z_j comes from, and the weight
    2 (1 - l2) min(1, l1 n z_j). l1 = 0, l2 = 1/2 is the base.

    The paper has no such form; it follows "Learning Recommender Systems with Soft Target", for
    outputs that are ratings.
    """

    terms = ("squared_error", "imputed")
    decodes_pairs = True

    def __init__(self, config: ImputedSquaredErrorConfig, catalog: Catalog) -> None:
        self.config, self.base = config, config.base.build(catalog)
        self.kl = self.base.kl
        table = label_table(config.label.path, [*COLUMNS, RATINGS])
        self.labels = SoftLabels.from_table(table)
        self.ratings = SoftLabels.from_table(table, RATINGS)

    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Compute both terms from observed and imputed pairs; see `Objective`."""
        own, other = self.config.weights
        observed_B = own * self.base(model, users, target, context)[0]
        label = self.labels.of(target.user_B)
        is_imputed_N = without(label, target)
        pairs = label.keep(is_imputed_N)
        rating_N = self.ratings.of(target.user_B).value_N[is_imputed_N]
        share_N = self.config.shares(target.length_B[pairs.row_N], pairs.value_N)
        score_N = model.score_pairs(users, pairs).to(observed_B.dtype)
        square_N = (score_N - rating_N).square()
        variance_N = model.pair_variance(users, pairs) if isinstance(model, Uncertain) else None
        if variance_N is not None:
            square_N = square_N + variance_N
        imputed_B = torch.zeros_like(observed_B).index_add(0, pairs.row_N, share_N * square_N)
        return torch.stack([observed_B, other * imputed_B])
