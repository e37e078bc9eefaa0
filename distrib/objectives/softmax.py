"""Cross-entropy of the next item: the whole catalog, a sample of it, or the items of a batch."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor
from typing_extensions import override

from distrib.batch import Batch, ChunkEntries
from distrib.config import Config
from distrib.objectives.base import Candidates, LossContext, ObjectiveSpec
from distrib.objectives.chunked import ChunkDecoder, Observed, chunked_terms
from distrib.objectives.decoder import Decoder, Tensors
from distrib.objectives.multinomial import LogNormalizer, Multinomial, MultinomialConfig
from distrib.objectives.sampling import ItemSampler
from distrib.rng import CounterRng
from distrib.vocabulary import Catalog

_NEVER = -1e30  # a score whose exponential is 0; no infinity, whose differences are not numbers


class SoftmaxConfig(Config):
    """Settings of the softmax over items."""

    name: Literal["softmax"] = "softmax"

    spec: ClassVar[ObjectiveSpec] = ObjectiveSpec(
        "scores", needs_whole_catalog=True, model_scheme="next_item"
    )

    against: Literal["all", "sampled", "batch"] = "all"
    """``all``: every item of the catalog; ``sampled``: some drawn for each update; ``batch``: the
    targets of the same update. Those of a part are weighted by how many items each stands for."""

    num_sampled: NonNegativeInt = 0
    """Items drawn for each update with ``against = "sampled"``, the same for all users."""

    sampling_power: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Items are drawn in proportion to this power of 1 + their interactions; 0 is uniform."""

    @model_validator(mode="after")
    def _samples_are_used(self) -> "SoftmaxConfig":
        if (self.against == "sampled") != (self.num_sampled > 0):
            raise ValueError(
                f"against = {self.against!r} with num_sampled = {self.num_sampled}: 'sampled' "
                "needs a number of items (256 to 3000 are common), the others need 0"
            )
        if self.sampling_power and self.against != "sampled":
            raise ValueError("sampling_power has no effect without against = 'sampled'; remove it")
        return self

    def build(self, catalog: Catalog) -> "Softmax":
        """Make the objective."""
        return Softmax(self, catalog)


class Softmax(Multinomial):
    """-log softmax of each target among the items, nats.

    A part of the items stands for all: the sum of exponentials over the others is estimated from D
    draws, each weighted by 1 / (D q), which subtracts log(D q) from its score (the logQ
    correction). q is the probability by which it is drawn; of the targets of a batch, its share of
    the training interactions. The target itself has weight 1.

    Source: Bengio, Senecal, "Quick Training of Probabilistic Neural Nets by Importance Sampling",
    AISTATS 2003; in a batch: Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus
    Item Recommendations", RecSys 2019. Differs from the source: no correction of the target's own
    score, which is observed, not drawn; shares are counted, not estimated on the way.
    """

    terms = ("softmax",)

    def __init__(self, config: SoftmaxConfig, catalog: Catalog) -> None:
        super().__init__(MultinomialConfig(kl_weight=0.0, anneal_steps=0), catalog)
        self.against = config.against
        power = 1.0 if config.against == "batch" else config.sampling_power
        self.item_sampler = ItemSampler(config.num_sampled, power, catalog)

    @override
    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Compute the loss by chunks; see `Objective`."""
        if self.against == "all":
            return super().__call__(model, users, target, context)
        drawn_S = (
            context.gather(target.item_N)
            if self.against == "batch"
            else self.item_sampler.drawn(context.rng, context.step, target.item_N.device)
        )
        others = _Others(self.item_sampler.weighted(drawn_S, torch.unique(drawn_S)))
        among = target.keep(torch.isin(target.item_N, drawn_S))
        others_R = chunked_terms(ChunkDecoder.of(model), others, users, among, context)[0]
        # -log e^s / (e^s + e^o), with the log-sum-exp o over the others: log(1 + e^(o - s)).
        return F.softplus(others_R - model.score_pairs(users, target).float())[None]


class _Others(LogNormalizer):
    """Weighted log-sum-exp over some items, of which a row's targets are left out.

    Targets are decoded as pairs: most are not among the items, so to add those of all rows would
    decode many times as many for each.
    """

    def __init__(self, candidates: Candidates) -> None:
        self.chosen = candidates

    @override
    def candidates(self, target: Batch, rng: CounterRng, step: int) -> Candidates | None:
        return self.chosen

    @override
    def observe(self, output: Tensor, entries: ChunkEntries) -> Observed:
        weighted_BJ = output.float()
        if entries.log_weight_J is not None:
            weighted_BJ = weighted_BJ + entries.log_weight_J
        weighted_BJ[entries.row_M, entries.column_M] = _NEVER
        softmax_BJ = torch.softmax(weighted_BJ, dim=1)
        log_normalizer_B = weighted_BJ.amax(1) - softmax_BJ.amax(1).log()
        return log_normalizer_B, softmax_BJ, weighted_BJ.new_zeros(len(entries.row_M))
