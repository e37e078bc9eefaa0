"""What a scorer returns, and which items a serendipitous list may hold."""

from typing import NamedTuple

from torch import Tensor

from distrib.models.outputs import Prediction


class Recommendations(NamedTuple):
    """The best items of each user, best first."""

    item_BK: Tensor
    """int64 positions; -1 where a user has fewer than K candidates."""

    score_BK: Tensor
    """float32; sort key of the list (relevance of a diverse one): the model's ranking score minus
    any damping, or the expected rating. ``-inf`` where there is no item."""

    prediction: Prediction | None
    """Probability, expected rating and rating distribution per item, if the model predicts them."""

    deviation_BK: Tensor | None = None
    """float32; standard deviation of the expected rating over the posteriors, if available."""


class NoveltyFilter(NamedTuple):
    """Restricts a list to items with low interaction probability but enough training ratings."""

    share: float
    """In (0, 1]: share of the catalog with the lowest interaction log-odds; with more than 4,096
    items, the threshold comes from an even sample of the catalog."""

    min_support: int
    """Training ratings that an item must have."""


class PairPredictions(NamedTuple):
    """Expected ratings of user-item pairs."""

    rating_N: Tensor
    """float32, clamped to the rating scale."""

    uncut_N: Tensor | None
    """Before clamping; None for a mean over the levels, which lies on the scale."""

    deviation_N: Tensor | None = None
    """float32; standard deviation over the posteriors, if available."""

    level_NL: Tensor | None = None
    """float32; probability of each rating level, if the model predicts them."""
