"""The ``soften`` section of a run file."""

import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from distrib.config import Config

_USERS_A_CLUSTER, _FEWEST_CLUSTERS = 5000, 16

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Part = Annotated[float, Field(gt=0.0, lt=1.0)]


class SoftenConfig(Config):
    """How soft labels are made from a trained run; the defaults are DeSoRec's."""

    output: str | None = None
    """Output folder; ``soft_labels`` inside the run folder by default."""

    method: Literal["propagation", "neighbors", "teacher"] = "propagation"
    """``propagation``: labels of users in the same cluster, propagated by distance; ``neighbors``:
    the training histories of the users of most similar embedding in it (CSN); ``teacher``: the
    softmax of the run's own model (self-distillation)."""

    num_clusters: NonNegativeInt = 0
    """0 for one per 5,000 users, at least 16."""

    start: Literal["k-means||", "random"] = "k-means||"
    """Initial centers; ``random`` users are the source's."""

    seed: int = 0
    """Seed of all draws."""

    max_rounds: PositiveInt = 100
    """Rounds of k-means at most."""

    num_neighbors: PositiveInt = 64
    """Nearest users of the same cluster that a user's label is propagated from."""

    temperature: PositiveFloat = 1.0
    """Of the softmax over negative distances (propagation), where lower prefers the nearest, and
    over scores (teacher)."""

    scale: Literal["absolute", "relative"] = "absolute"
    """Of propagation. ``relative``: the temperature is a multiple of the median distance to the
    10th neighbor, so that it does not depend on the norm of embeddings."""

    spread: Part = 0.5
    """Of propagation: share of a label that comes from neighbors in each round, eta in the
    source."""

    rounds: NonNegativeInt = 20
    """Rounds of propagation at most; see ``smallest``."""

    smallest: Annotated[float, Field(ge=0.0, lt=0.1)] = 3e-4
    """Weights below this are dropped after each round, and rounds that would add less are left out;
    0 drops nothing, at many times the cost."""

    max_items: PositiveInt = 128
    """Items kept in a label, the heaviest ones."""

    shuffled_share: Share = 0.0
    """Share of users that are put into another cluster at random, to study bad clusters; not of
    teacher."""

    min_mass_on_target: Share = 0.52
    """Labels with less on the true target on average are refused: they come from a model that has
    learned nothing. Of propagation only."""

    max_mass_on_target: Share = 0.98
    """Labels with more are refused: they hold nothing but the target. Of propagation only."""

    max_evenness: Share = 0.85
    """Labels are refused if the mean entropy of their other items is a larger share of that of
    ``max_items`` equal ones: they are nearly uniform. Of propagation only."""

    nightly: bool = False
    """Whether a nightly run makes its soft labels itself, from a base run that it trains first with
    the model's own objective."""

    batch_users: PositiveInt = 512
    """Users embedded at a time."""

    def clusters_of(self, num_users: int) -> int:
        """Return the number of clusters of so many users."""
        return self.num_clusters or max(_FEWEST_CLUSTERS, num_users // _USERS_A_CLUSTER)

    @property
    def needed_rounds(self) -> int:
        """Rounds of propagation, without those that would add less than `smallest`."""
        if not self.smallest:
            return self.rounds
        return min(self.rounds, math.ceil(math.log(self.smallest) / math.log(self.spread)))
