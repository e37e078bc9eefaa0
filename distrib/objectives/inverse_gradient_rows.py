"""The inverse gradient for autoencoders, decided on entries that the encoder does not read."""

from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import NonNegativeInt
from torch import Tensor

from distrib.batch import Batch
from distrib.objectives.base import LossContext, ObjectiveSpec
from distrib.objectives.binary import BinaryConfig
from distrib.objectives.decoder import Decoder, Tensors
from distrib.objectives.inverse_gradient import DecidesByGradient
from distrib.objectives.rating_classes import RatingClassesConfig
from distrib.objectives.unlabeled_entries import (
    LearnsFromUnlabeled,
    UnlabeledRows,
    dual_terms,
    sum_by_user,
    unlabeled_entries,
)
from distrib.vocabulary import Catalog


class InverseGradientRowsConfig(LearnsFromUnlabeled, DecidesByGradient):
    """Settings of the inverse gradient for autoencoders."""

    name: Literal["inverse_gradient_rows"] = "inverse_gradient_rows"

    spec: ClassVar[ObjectiveSpec] = ObjectiveSpec(
        ("scores", "ratings", "rating_classes"),
        needs_whole_catalog=True,
        scheme="meta_rows",
        model_scheme="user_rows",
    )

    form: Literal["first_order", "sketched"] = "sketched"
    """``first_order`` compares whole gradients; ``sketched`` does so with little communication."""

    min_history: NonNegativeInt = 5
    """Users with fewer interactions have none held out."""

    def build(self, catalog: Catalog) -> "InverseGradientRows":
        """Make the objective."""
        return InverseGradientRows(self, catalog)


class SplitRows(NamedTuple):
    """Histories of the same users."""

    whole: Batch
    inputs: Batch
    """Without what is held out."""

    held_out: Batch


class RowLosses(NamedTuple):
    """The three losses of each user."""

    supervised_TB: Tensor
    """Terms of the base objective, over the histories without what is held out."""

    held_out_B: Tensor
    """Base loss of the held-out entries."""

    unlabeled_B: Tensor
    """Inverse dual loss of the drawn entries."""


class InverseGradientRows(UnlabeledRows):
    """The base objective, its loss on held-out entries, and the inverse dual loss.

    The scheme ``meta_rows`` holds entries out and decides how the last one is followed. Called as a
    plain objective, nothing is held out and the inverse dual loss is always followed.

    Source: "Inverse Learning with Extremely Sparse Feedback for Recommendation" (arXiv 2311.08302),
    inverse gradient; for autoencoders, ours.
    """

    def __init__(self, config: InverseGradientRowsConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.config = config

    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Compute the losses with nothing held out; see `Objective`."""
        nothing = target.keep(torch.zeros_like(target.item_N, dtype=torch.bool))
        found = self.parts(model, users, SplitRows(target, target, nothing), context)
        weight = self.config.ratio * self.config.schedule(context.step)
        return torch.cat([found.supervised_TB, weight * found.unlabeled_B[None]])

    def parts(
        self, model: Decoder, users: Tensors, rows: SplitRows, context: LossContext
    ) -> RowLosses:
        """Compute the three losses on one graph.

        Args:
            model: The model to train.
            users: From the model's ``encode`` of ``rows.inputs``.
            rows: The histories.
            context: From the engine.

        Returns:
            The losses of each user.
        """
        _, inputs, held_out = rows
        length_B = inputs.length_B
        terms_TB, normalizer_B = self.losses.of_histories(model, users, inputs, context)
        held = self.losses(model, users, held_out, normalizer_B, length_B)
        if isinstance(self.config.base, BinaryConfig | RatingClassesConfig):
            # To the base objective, whatever is not in the target was not observed.
            correction_B = sum_by_user(held.dislike_N, held_out)
            terms_TB = torch.cat([(terms_TB[0] - correction_B)[None], terms_TB[1:]])
        share = self.config.sampled_share
        sampled = unlabeled_entries(rows.whole, context.rng, share, self.item_count)
        sides = self.losses(model, users, sampled, normalizer_B, length_B)
        dual_N = dual_terms(sides, self.config, context)
        return RowLosses(
            terms_TB, sum_by_user(held.given_N, held_out), sum_by_user(dual_N, sampled)
        )
