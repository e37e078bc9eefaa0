"""The evaluation protocol: compare a scorer's output with held-out interactions."""

from collections.abc import Callable, Mapping
from typing import Annotated, NamedTuple

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from distrib.config import Config
from distrib.data.feeds.collate import Example, example
from distrib.data.history_arrays import HistoryArrays, IntArray
from distrib.data.schema import Role
from distrib.errors import ConfigError
from distrib.metrics import SQUARED_ERROR_UNCUT, Sums, hits, ndcg, recall, sums_of
from distrib.score.scorer import Scorer

Cutoffs = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]

EXPECTED, KNOWN = "interactions_expected", "interactions_known"
"""Calibration: the sum of a user's probabilities, and the number of encoded interactions."""

_LOWER_IS_BETTER = ("rmse", "mae")


class EvaluateConfig(Config):
    """Settings of evaluation."""

    recall_at: Cutoffs = (20, 50, 100)
    """Cutoffs of Recall."""

    ndcg_at: Cutoffs = (100,)
    """Cutoffs of NDCG."""

    batch_users: PositiveInt = 512
    """Users measured at a time."""

    gpus_per_actor: Annotated[float, Field(ge=0.0)] = 0.0
    """Share of a GPU that each evaluation actor takes; 0 uses the CPU."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of all metrics that can select the best checkpoint."""
        ranking = [f"recall@{n}" for n in self.recall_at] + [f"ndcg@{n}" for n in self.ndcg_at]
        return (*ranking, "rmse", "mae")


def measure(scorer: Scorer, asked: Example, config: EvaluateConfig) -> Sums:
    """Measure a batch of users.

    Args:
        scorer: The model.
        asked: Histories, targets, and items that must not be recommended.
        config: Which metrics.

    Returns:
        Mergeable sums over users (ranking; if the model predicts probabilities, also the numbers of
        expected and of encoded interactions) and over pairs (``squared_error``, ``mae``).
    """
    values = _ranking(scorer, asked, config)
    expected_B = scorer.expected_interactions(asked.source)
    if expected_B is not None:
        values |= {EXPECTED: expected_B, KNOWN: asked.source.length_B.double()}
    predicted = scorer.predict(asked.source, asked.target)
    if predicted is not None:
        error_N = (predicted.rating_N - asked.target.value_N).to(torch.float64)
        values |= {"squared_error": error_N**2, "mae": error_N.abs()}
        if predicted.uncut_N is not None:
            uncut_N = (predicted.uncut_N - asked.target.value_N).to(torch.float64)
            values[SQUARED_ERROR_UNCUT] = uncut_N**2
    return sums_of(values)


class Measurer(NamedTuple):
    """The measuring loop of validation in training, of closed-form models and of evaluation."""

    scorers: Mapping[str, Scorer]
    """By name."""

    role: Role
    """Role of the held-out interactions."""

    config: EvaluateConfig
    is_chronological: bool = False
    """See `example`."""

    def nothing(self) -> dict[str, Sums]:
        """Return empty sums."""
        return dict.fromkeys(self.scorers, Sums({}))

    def added(
        self,
        sums: Mapping[str, Sums],
        rows: HistoryArrays,
        wanted_B: IntArray,
        on_batch: Callable[[], None] = lambda: None,
    ) -> dict[str, Sums]:
        """Measure some users, a batch at a time, and add them to earlier sums.

        Args:
            sums: Earlier sums.
            rows: From `Dataset.held_out`.
            wanted_B: Row of each user to measure.
            on_batch: Called before each batch.

        Returns:
            Sums by name of the scorer.
        """
        found = dict(sums)
        for start in range(0, len(wanted_B), self.config.batch_users):
            on_batch()
            part_B = wanted_B[start : start + self.config.batch_users]
            held_out = example(rows, part_B, self.role, is_chronological=self.is_chronological)
            for name, scorer in self.scorers.items():
                found[name] = found[name].merged(measure(scorer, held_out, self.config))
        return found


def _ranking(scorer: Scorer, asked: Example, config: EvaluateConfig) -> dict[str, Tensor]:
    longest = max(*config.recall_at, *config.ndcg_at)
    item_BK = scorer.recommend(asked.source, asked.seen, longest).item_BK
    hit_BK = hits(item_BK, asked.target, len(scorer.vocabulary))
    length_B = asked.target.length_B
    return {
        **{f"recall@{n}": recall(hit_BK, length_B, n) for n in config.recall_at},
        **{f"ndcg@{n}": ndcg(hit_BK, length_B, n) for n in config.ndcg_at},
    }


def selection_score(metrics: dict[str, float], names: tuple[str, ...]) -> float:
    """Combine metrics into one number to choose a checkpoint by; higher is better.

    The geometric mean, with errors inverted: a relative gain in one metric is worth the same
    relative gain in another, so one checkpoint can serve several tasks.

    Args:
        metrics: Means by name.
        names: Metrics to combine.

    Returns:
        The geometric mean.

    Raises:
        ConfigError: A metric was not measured, e.g. RMSE of a model without ratings.
    """
    product = 1.0
    for name in names:
        if name not in metrics:
            raise ConfigError(
                f"train.select_by names {name!r}, but only {sorted(metrics)} were measured"
            )
        value = max(metrics[name], 1e-12)
        product *= 1.0 / value if name in _LOWER_IS_BETTER else value
    return float(product ** (1.0 / len(names)))
