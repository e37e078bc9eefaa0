"""Validation at the end of an epoch."""

from collections.abc import Callable

import torch
from torch import Tensor

from distrib.checkpoint.bundle import refill, restored
from distrib.data.feeds.base import Feed
from distrib.data.hashing import sampled
from distrib.data.schema import Role
from distrib.evaluation.baseline import with_popularity
from distrib.evaluation.measured import joined
from distrib.evaluation.protocol import EXPECTED, KNOWN, Measurer
from distrib.events import emit
from distrib.models.base import Model
from distrib.scoring.scorer import Scorer
from distrib.training.config import TrainingRun
from distrib.training.workers.collectives import gather_objects
from distrib.vocabulary import Vocabulary

_CALIBRATION_TOLERANCE = 0.2
"""Relative difference of expected and known interactions that is not reported."""


class Validator:
    """Measures on the validation users; each is measured on one rank.

    Args:
        run: The run.
        vocabulary: Its items.
        feed: Holds the users of this rank.
        num_valid: Validation users of all ranks.
        device: Of this rank.
    """

    def __init__(
        self,
        run: TrainingRun,
        vocabulary: Vocabulary,
        feed: Feed,
        num_valid: int,
        device: torch.device,
    ) -> None:
        self.run, self.vocabulary, self.feed = run, vocabulary, feed
        self.num_valid, self.device = num_valid, device
        self._model: Model | None = None
        """Kept, since to build it takes longer than to give it other weights."""

    def measured(
        self,
        weights: dict[str, Tensor] | None,
        chunk_items: int,
        touch: Callable[[], None],
        *,
        is_first: bool,
    ) -> dict[str, dict[str, float]]:
        """Measure; every rank must call.

        Args:
            weights: Of the model that scores; None where it is not measured.
            chunk_items: Items decoded at a time.
            touch: Called after each batch.
            is_first: Whether to measure popularity, too: a model that is worse has learned nothing.

        Returns:
            Means by model and metric; empty where there is no validation user.
        """
        if weights is None or self.num_valid == 0:
            return {}
        if self._model is None:
            self._model = restored(self.run.model, self.vocabulary, weights)
        else:
            refill(self._model, weights)
        scorer = Scorer(self._model, self.vocabulary, device=self.device, chunk_items=chunk_items)
        scorers = with_popularity(scorer, self.device) if is_first else {"model": scorer}
        measurer = Measurer(scorers, Role.VALID_TARGET, self.run.evaluate)
        found = measurer.nothing()
        limit = self.run.train.valid_users
        share = min(limit / self.num_valid, 1.0) if limit else 1.0
        for rows, mine_B in self.feed.valid_parts():
            found = measurer.added(found, rows, sampled(mine_B, share), touch)
        return {name: joined(gather_objects(found[name])).means() for name in scorers}


def watch_calibration(metrics: dict[str, float], epoch: int) -> None:
    """Report probabilities whose sum drifts from the number of interactions.

    Args:
        metrics: Of the model, on validation.
        epoch: The last one.
    """
    expected, known = metrics.get(EXPECTED), metrics.get(KNOWN)
    if expected is not None and known:
        share = expected / known
        if abs(share - 1.0) > _CALIBRATION_TOLERANCE:
            emit("calibration_drift", epoch=epoch, expected_of_known=share)
