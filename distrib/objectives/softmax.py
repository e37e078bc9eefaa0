"""Cross-entropy of the next item: the whole catalog, a sample of it, or the items of a batch."""

import copy
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor
from typing_extensions import override

from distrib.batch import Batch
from distrib.config import Config
from distrib.objectives.base import Candidates, LossContext, ObjectiveSpec
from distrib.objectives.chunked import ChunkDecoder, chunked_terms
from distrib.objectives.decoder import Decoder, Tensors
from distrib.objectives.multinomial import Multinomial, MultinomialConfig
from distrib.objectives.sampling import ItemSampler
from distrib.rng import CounterRng
from distrib.vocabulary import Catalog


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
                f"against = {self.against!r} with num_sampled = {self.num_sampled}: set "
                "against = 'sampled' and num_sampled to 256 or more, or neither"
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
        plain = MultinomialConfig(
            divergence_cap=0.0,
            anneal_steps=0,
            num_sampled=config.num_sampled,
            sampling_power=config.sampling_power,
        )
        super().__init__(plain, catalog)
        self.by_popularity = ItemSampler(1, 1.0, catalog) if config.against == "batch" else None

    @override
    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Compute the loss by chunks; see `Objective`."""
        objective = self
        if self.by_popularity is not None:
            objective = copy.copy(self)
            item_D = context.gather(target.item_N)
            objective.sampler = _BatchItems(item_D, self.by_popularity)  # type: ignore[assignment]
        return chunked_terms(ChunkDecoder.of(model), objective, users, target, context)


class _BatchItems:
    """Stands in for `ItemSampler`; the items are the targets of all ranks."""

    def __init__(self, item_D: Tensor, by_popularity: ItemSampler) -> None:
        self.item_D, self.by_popularity = item_D, by_popularity

    def draw(self, target: Batch, rng: CounterRng, step: int) -> Candidates:
        """Return the items, each weighted by its draws over the expected number."""
        del rng, step
        return self.by_popularity.weighted(self.item_D, target)
