"""Squared error on observed entries: what was not rated is unknown, not zero."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from distrib.batch import Batch
from distrib.config import Config
from distrib.objectives.base import Defaults, KlSchedule, LossContext, ObjectiveSpec
from distrib.objectives.decoder import Decoder, Tensors, Uncertain
from distrib.vocabulary import Catalog


class SquaredErrorConfig(Config):
    """Settings of the squared error."""

    name: Literal["squared_error"] = "squared_error"

    spec: ClassVar[ObjectiveSpec] = ObjectiveSpec("ratings")

    kl_weight: Annotated[float, Field(ge=0.0)] = 0.2
    """Final weight of the model's KL term, if it has one."""

    anneal_steps: NonNegativeInt = 0
    """Updates over which the weight would grow from 0 to 1; it stops at the cap."""

    def build(self, catalog: Catalog) -> "SquaredError":
        """Make the objective."""
        del catalog
        return SquaredError(self)


class SquaredError(Defaults):
    """Sum over a user's ratings of (score - rating)^2; only observed pairs are decoded.

    Source: Sedhain et al., "AutoRec: Autoencoders Meet Collaborative Filtering", WWW 2015, eq. 2
    (its data term).
    """

    terms = ("squared_error",)
    decodes_pairs = True
    is_by_row = True

    def __init__(self, config: SquaredErrorConfig) -> None:
        self.kl = KlSchedule(config.kl_weight, config.anneal_steps)

    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Compute the loss from the observed pairs; see `Objective`."""
        output_N = model.score_pairs(users, target)
        variance_N = model.pair_variance(users, target) if isinstance(model, Uncertain) else None
        return context.complete(pair_terms(output_N, target, variance_N))


def pair_terms(output_N: Tensor, target: Batch, variance_N: Tensor | None = None) -> Tensor:
    """Return the sum of each user's (expected) squared errors.

    Args:
        output_N: The model's output for each stored pair of the target.
        target: What to decode.
        variance_N: If the output is the mean of a posterior, its variance.

    Returns:
        ``[1, B]``, float32 at least.
    """
    output_N = output_N.to(torch.promote_types(output_N.dtype, torch.float32))
    square_N = (output_N - target.value_N).square()
    if variance_N is not None:  # E (x - r)^2 = (E x - r)^2 + Var x
        square_N = square_N + variance_N
    return square_N.new_zeros(target.num_users).index_add(0, target.row_N, square_N)[None]
