"""What the output of a model means: how it ranks items, and what it predicts.

There are four kinds. `Model.output` holds one of them, so that models do not repeat how scores,
ratings or rating classes are interpreted.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from distrib.devices import constant

OutputKind = Literal["scores", "log_odds", "ratings", "rating_classes"]
"""``scores``: one number per item, ``[B, I]``; ``log_odds``: the same, log-odds that the user likes
the item; ``ratings``: in units of the rating levels; ``rating_classes``: logits of "not observed"
and of each level, ``[B, I, C]``."""


class Prediction(NamedTuple):
    """What a model predicts for user-item pairs."""

    rating_BI: Tensor
    """Expected rating if the user interacts, in units of the levels; may lie outside the scale."""

    probability_BI: Tensor | None = None
    """Probability that the user interacts with the item, 0..1."""

    level_BIL: Tensor | None = None
    """Distribution of the rating if the user interacts; sums to 1 over L."""


class Output(Protocol):
    """How the output of a model is interpreted."""

    kind: OutputKind

    def ranking_score(self, output: Tensor) -> Tensor:
        """Turn float32 output into scores to rank by, ``[B, I]``; higher is better."""

    def predict(self, output: Tensor) -> Prediction | None:
        """Convert float32 output to ratings and probabilities; None if it holds neither."""


class ScoreOutput:
    """Scores that only rank items."""

    kind: OutputKind = "scores"

    def ranking_score(self, output: Tensor) -> Tensor:
        """Return the output itself; see `Output`."""
        return output

    def predict(self, output: Tensor) -> None:
        """Return None; see `Output`."""
        del output


class LogOddsOutput(ScoreOutput):
    """Log-odds of a like, which also rank items."""

    kind: OutputKind = "log_odds"


class RatingOutput:
    """Expected ratings, which also rank items."""

    kind: OutputKind = "ratings"

    def ranking_score(self, output: Tensor) -> Tensor:
        """Return the output itself; see `Output`."""
        return output

    def predict(self, output: Tensor) -> Prediction:
        """Return the ratings; see `Output`."""
        return Prediction(output)


class ClassOutput:
    """Logits of C classes: not observed, then the rating levels, ascending."""

    kind: OutputKind = "rating_classes"

    def __init__(self, levels: Sequence[float]) -> None:
        self.levels = levels

    def ranking_score(self, output: Tensor) -> Tensor:
        """Return the log-odds of an interaction; see `Output`.

        They sort like the probability, without its ties near 0 and 1.
        """
        return torch.logsumexp(output[..., 1:], dim=-1) - output[..., 0]

    def predict(self, output: Tensor) -> Prediction:
        """Return probability, expected rating and its distribution; see `Output`."""
        level_BIL = torch.softmax(output[..., 1:], dim=-1)
        value_L = constant(tuple(self.levels), level_BIL.dtype, output.device)
        probability_BI = torch.sigmoid(self.ranking_score(output))
        return Prediction(level_BIL @ value_L, probability_BI, level_BIL)
