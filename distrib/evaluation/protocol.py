"""The evaluation protocol: compare a scorer's output with held-out interactions."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distrib.data.feeds.collate import Example, Targets, example
from distrib.data.history_arrays import HistoryArrays, IntArray
from distrib.data.schema import Role
from distrib.errors import ConfigError
from distrib.evaluation.config import CALIBRATION, INTERACTIONS, EvaluateConfig
from distrib.evaluation.lists import list_metrics
from distrib.evaluation.measured import MOMENTS, RANK, Measured, joined
from distrib.evaluation.ratings import rating_tables
from distrib.labeled_metrics import LOG_LOSS, metrics_by_user
from distrib.metrics import SQUARED_ERROR_UNCUT, FloatArray
from distrib.models.capabilities import user_embedding
from distrib.models.outputs import OutputKind
from distrib.scoring.scorer import Encoded, Scorer, pair_scores

EXPECTED, KNOWN = INTERACTIONS

DISTANCE = "distance to truth: "
"""Begins the names of distances to the truth of a synthetic log."""

_LOWER_IS_BETTER = ("rmse", "mae", LOG_LOSS, CALIBRATION)


def measure(
    scorer: Scorer, asked: Example, config: EvaluateConfig, *, has_lists: bool = True
) -> Measured:
    """Measure a batch of users.

    Args:
        scorer: The model.
        asked: Histories, targets, and items that must not be recommended.
        config: Which metrics.
        has_lists: Whether lists from the whole catalog are measured.

    Returns:
        Results by user (ranking; if the model predicts probabilities, also the numbers of expected
        and of encoded interactions; in a log with likes and dislikes, how they are ranked) and
        by pair (``squared_error``, ``mae``, ``log_loss``).
    """
    users = scorer.encode(asked.source)
    by_user, tables = dict[str, Tensor](), dict[str, FloatArray]()
    if has_lists:
        by_user, tables = list_metrics(scorer, users, asked, config)
    by_pair: dict[str, Tensor] = {}
    if config.effective_rank:
        tables |= _moments(scorer, users)
    expected_B = scorer.expected_interactions(users) if has_lists else None
    if expected_B is not None:
        by_user |= {EXPECTED: expected_B, KNOWN: asked.source.length_B.double()}
    predicted = scorer.predict(users, asked.target)
    if predicted is not None:
        error_N = (predicted.rating_N - asked.target.value_N).to(torch.float64)
        by_pair |= {"squared_error": error_N**2, "mae": error_N.abs()}
        levels = scorer.vocabulary.levels
        tables |= rating_tables(predicted, asked.target.value_N, levels)
        if predicted.uncut_N is not None:
            uncut_N = (predicted.uncut_N - asked.target.value_N).to(torch.float64)
            by_pair[SQUARED_ERROR_UNCUT] = uncut_N**2
    feedback = scorer.vocabulary.facts.feedback
    if feedback is None:
        nothing = np.zeros(0, np.float32), np.zeros(0, np.bool_)
        return Measured.of(by_user, by_pair, *nothing, asked.target, tables)
    signed = asked.target.keep(feedback.sign(asked.target.value_N) != 0)
    score_N = pair_scores(scorer, users, signed)
    sign_N = feedback.sign(signed.value_N)
    is_like_N = (sign_N > 0).numpy()
    if scorer.model.output.kind == "log_odds":
        by_pair[LOG_LOSS] = F.softplus(-sign_N * score_N.double())
    rows = signed.row_N.numpy()
    found = metrics_by_user(score_N.numpy(), is_like_N, rows, signed.num_users)
    by_user |= {name: torch.from_numpy(value_B) for name, value_B in found.items()}
    return Measured.of(by_user, by_pair, score_N.numpy(), is_like_N, asked.target, tables)


def _moments(scorer: Scorer, users: Encoded) -> dict[str, FloatArray]:
    """Return the moments of the user embeddings; nothing of a model without them."""
    vector_BZ = user_embedding(scorer.model, users.users)
    if vector_BZ is None:
        return {}
    vector_BZ = F.pad(vector_BZ.double().cpu(), (0, 1), value=1.0)
    return {MOMENTS: (vector_BZ.T @ vector_BZ).numpy()}


class Measurer(NamedTuple):
    """The measuring loop of validation in training, of closed-form models and of evaluation."""

    scorers: Mapping[str, Scorer]
    """By name."""

    role: Role
    """Role of the held-out interactions."""

    config: EvaluateConfig
    is_chronological: bool = False
    """See `example`."""

    def nothing(self) -> dict[str, Measured]:
        """Return the results on no users."""
        return dict.fromkeys(self.scorers, Measured.nothing())

    def added(
        self,
        earlier: Mapping[str, Measured],
        rows: HistoryArrays,
        wanted_B: IntArray,
        on_batch: Callable[[], None] = lambda: None,
    ) -> dict[str, Measured]:
        """Measure some users, a batch at a time, and add them to earlier results.

        Args:
            earlier: Earlier results.
            rows: From `Dataset.held_out`.
            wanted_B: Row of each user to measure.
            on_batch: Called before each batch.

        Returns:
            Results by name of the scorer.
        """
        found = {name: [part] for name, part in earlier.items()}
        has_lists = self.config.lists in (
            ("always",) if self.role == Role.VALID_TARGET else ("always", "test")
        )
        for held_out in self.examples(rows, wanted_B, on_batch):
            for name, scorer in self.scorers.items():
                found[name].append(measure(scorer, held_out, self.config, has_lists=has_lists))
        return {name: joined(parts) for name, parts in found.items()}

    def examples(
        self,
        rows: HistoryArrays,
        wanted_B: IntArray,
        on_batch: Callable[[], None] = lambda: None,
    ) -> Iterator[Example]:
        """Yield what is measured, a batch at a time; see `added`."""
        for start in range(0, len(wanted_B), self.config.batch_users):
            on_batch()
            yield example(
                rows,
                wanted_B[start : start + self.config.batch_users],
                self.role,
                is_chronological=self.is_chronological,
                targets=self._targets,
            )

    @property
    def _targets(self) -> Targets:
        if not any(scorer.vocabulary.facts.has_repeats for scorer in self.scorers.values()):
            return "stored"
        return "new" if self.config.exclude_seen else "distinct"


def is_meant(name: str, output: OutputKind, num_levels: int) -> bool:
    """Return whether people should see a metric; files have all.

    Lists of a model that predicts ratings alone are not what it is for, and errors of ratings mean
    nothing where there is one rating.

    Args:
        name: Of the metric.
        output: What the model predicts.
        num_levels: Ratings that there are.

    Returns:
        Whether it is shown.
    """
    if output == "ratings" and "@" in name:
        return False
    return num_levels > 1 or not name.startswith(("rmse", "mae", CALIBRATION))


def is_lower_better(name: str) -> bool:
    """Return whether low values of a metric are good."""
    return name in _LOWER_IS_BETTER or name.startswith((DISTANCE, "gini@"))


def is_neutral(name: str) -> bool:
    """Return whether neither high nor low values of a metric are good by themselves."""
    return name in (EXPECTED, KNOWN, RANK) or name.startswith(("popularity@", "novelty@"))


def is_better(name: str, one: float, other: float) -> bool:
    """Return whether a value of a metric is better than another."""
    return one < other if is_lower_better(name) else one > other


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
