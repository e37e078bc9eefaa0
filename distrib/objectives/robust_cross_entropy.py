"""Cross-entropies that trust a pair less the worse it fits: truncated, and reweighted."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from distrib.batch import Batch
from distrib.feedback import Feedback
from distrib.objectives.base import Defaults, LossContext, ObjectiveSpec
from distrib.objectives.decoder import Decoder, Tensors
from distrib.objectives.signed_pairs import SamplesUnlabeled, SignedPairs, signed_pairs
from distrib.vocabulary import Catalog

_SOURCE = ObjectiveSpec("log_odds", needs_whole_catalog=True)


class TruncatedConfig(SamplesUnlabeled):
    """Settings of the truncated cross-entropy."""

    name: Literal["truncated"] = "truncated"

    spec: ClassVar[ObjectiveSpec] = _SOURCE

    drop_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Final share of a batch that is dropped, among the likes with the largest losses."""

    gradual_steps: PositiveInt = 30_000
    """Updates over which the share grows from 0."""

    def build(self, catalog: Catalog) -> "Truncated":
        """Make the objective."""
        return Truncated(self, catalog.feedback)


class ReweightedConfig(SamplesUnlabeled):
    """Settings of the reweighted cross-entropy."""

    name: Literal["reweighted"] = "reweighted"

    spec: ClassVar[ObjectiveSpec] = _SOURCE

    power: Annotated[float, Field(ge=0.0)] = 0.2
    """A pair weighs this power of the probability that the model gives its label."""

    def build(self, catalog: Catalog) -> "Reweighted":
        """Make the objective."""
        return Reweighted(self.power, catalog.feedback)


class Truncated(Defaults):
    """The cross-entropy of a batch without its least plausible likes; others are never dropped.

    The share that is dropped grows linearly to its final value. The losses of all ranks decide.

    Source: Wang et al., "Denoising Implicit Feedback for Recommendation", WSDM 2021, eq. 4 and 5
    (T-CE).
    """

    terms = ("cross_entropy",)
    decodes_pairs = True

    def __init__(self, config: TruncatedConfig, feedback: Feedback | None) -> None:
        self.config, self.feedback = config, feedback

    def share(self, step: int) -> float:
        """Return the share of a batch that is dropped after ``step`` updates."""
        return self.config.drop_share * min(1.0, step / self.config.gradual_steps)

    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Compute the loss of the likes that are kept, and of all other pairs; see `Objective`."""
        pairs = signed_pairs(model, users, target, self.feedback)
        loss_N = pairs.cross_entropy()
        rank_N = loss_N.detach() * pairs.is_like_N
        of_batch = context.gather(rank_N)
        num_kept = max(1, int((1.0 - self.share(context.step)) * len(of_batch)))
        limit = of_batch.kthvalue(num_kept).values if len(of_batch) else rank_N.new_tensor(0.0)
        is_kept_N = rank_N <= limit
        context.record("share of pairs kept", is_kept_N)
        return pairs.sum_by_user(loss_N * is_kept_N)[None]


class Reweighted(Defaults):
    """The cross-entropy, each pair weighted by a power of the probability of its label.

    No gradient flows through the weights.

    Source: Wang et al., "Denoising Implicit Feedback for Recommendation", WSDM 2021, eq. 6 and 7
    (R-CE).
    """

    terms = ("cross_entropy",)
    decodes_pairs = True

    def __init__(self, power: float, feedback: Feedback | None) -> None:
        self.power, self.feedback = power, feedback

    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Compute the weighted loss; see `Objective`."""
        pairs = signed_pairs(model, users, target, self.feedback)
        weight_N = self.weight(pairs)
        context.record("mean weight", weight_N)
        return pairs.sum_by_user(weight_N * pairs.cross_entropy())[None]

    def weight(self, pairs: SignedPairs) -> Tensor:
        """Return the weight of each pair, 0..1, detached."""
        log_probability_N = -pairs.cross_entropy().detach()
        return torch.exp(self.power * log_probability_N)
