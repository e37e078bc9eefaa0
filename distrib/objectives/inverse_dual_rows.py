"""The inverse dual loss for autoencoders: beside their own loss, on entries outside a history."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from distrib.batch import Batch
from distrib.objectives.base import LossContext, ObjectiveSpec
from distrib.objectives.decoder import Decoder, Tensors
from distrib.objectives.unlabeled_entries import (
    LearnsFromUnlabeled,
    UnlabeledRows,
    dual_terms,
    sum_by_user,
    unlabeled_entries,
)
from distrib.vocabulary import Catalog


class InverseDualRowsConfig(LearnsFromUnlabeled):
    """Settings of the inverse dual loss for autoencoders."""

    name: Literal["inverse_dual_rows"] = "inverse_dual_rows"

    spec: ClassVar[ObjectiveSpec] = ObjectiveSpec(
        ("scores", "ratings", "rating_classes"),
        needs_whole_catalog=True,
        model_scheme="user_rows",
    )

    weight: Annotated[float, Field(ge=0.0)] = 0.2
    """Weight of the inverse dual loss after warm-up."""

    def build(self, catalog: Catalog) -> "InverseDualRows":
        """Make the objective."""
        return InverseDualRows(self, catalog)


class InverseDualRows(UnlabeledRows):
    """The base objective, plus the weighted inverse dual loss of entries drawn for each user.

    Both are sums over the entries of a user, so an unlabeled entry weighs ``weight`` times as much
    as one of the history.

    Source: see `dual_loss`; for autoencoders, ours.
    """

    def __init__(self, config: InverseDualRowsConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.config = config

    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Compute both losses; see `Objective`."""
        config = self.config
        terms_TB, normalizer_B = self.losses.of_histories(model, users, target, context)
        share = config.sampled_share
        sampled = unlabeled_entries(target, context.rng, share, self.item_count)
        sides = self.losses(model, users, sampled, normalizer_B, target.length_B)
        dual_B = sum_by_user(dual_terms(sides, config, context), sampled)
        weight = config.weight * config.schedule(context.step)
        return torch.cat([terms_TB, weight * dual_B[None]])
