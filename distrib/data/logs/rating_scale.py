"""The rating scale: which ratings are valid, and how they are mapped."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import AfterValidator, Field, PositiveFloat, model_validator

from distrib.config import Config
from distrib.data.logs.columns import Columns
from distrib.data.logs.feedback import MARK_LEVELS, FeedbackConfig
from distrib.data.logs.parse_values import is_among, parse_numbers
from distrib.errors import ConfigError
from distrib.vocabulary import nearest_level, on_scale

ALREADY_APPLIED = "applied"
"""In place of a rounding: ratings are already mapped."""

FloatArray = npt.NDArray[np.float32]


def _ascending(levels: tuple[float, ...]) -> tuple[float, ...]:
    if not levels or list(levels) != sorted(set(levels)):
        raise ValueError("levels must be one or more distinct numbers in ascending order")
    return levels


Levels = Annotated[tuple[float, ...], AfterValidator(_ascending)]


class RatingsConfig(Config):
    """How the rating column is mapped to classes or weights."""

    levels: Levels | None = None
    """Rating levels, ascending. Not needed for formats with a known scale or logs without ratings;
    all others need this or ``confidence``."""

    rounding: Literal["exact", "nearest", "up", "down"] = "exact"
    """How a rating between two levels is rounded to one; ``exact`` rejects it. Use ``up`` to map
    half stars to whole ones."""

    confidence: Literal["none", "linear", "log"] = "none"
    """Turns counts into weights of implicit feedback: ``linear`` 1 + alpha n, ``log``
    1 + alpha log(1 + n / epsilon). Source: Hu, Koren, Volinsky, ICDM 2008, sections 4 and 6."""

    alpha: PositiveFloat = 40.0
    """See ``confidence``."""

    epsilon: PositiveFloat = 1.0
    """See ``confidence``."""

    values: dict[str, float] = Field(default_factory=dict)
    """Ratings or weights of what the rating column holds, such as names of events:
    ``{ view = 1, purchase = 5 }``. Anything else is no number; leave it out with
    ``data.source.where``. Without ``levels`` and ``confidence``, these numbers are the levels."""

    unrated: tuple[float | str, ...] = ()
    """Values that mean "not rated", such as -1 or 0; ``""`` is an empty entry. Their rows are left
    out and counted as ``not rated``, not as damage."""

    unrated_as: float | None = None
    """Rating of rows that are not rated, to keep them, for models that only rank."""

    @model_validator(mode="after")
    def _classes_or_weights(self) -> "RatingsConfig":
        if self.levels is not None and self.confidence != "none":
            raise ValueError("levels and confidence exclude each other; leave one out")
        if self.unrated_as is not None and not self.unrated:
            raise ValueError("unrated_as needs unrated, the values that mean 'not rated'; set both")
        return self

    @property
    def known_levels(self) -> tuple[float, ...] | None:
        """The levels, as given or as the values have them."""
        if self.levels is not None or self.confidence != "none" or not self.values:
            return self.levels
        more = () if self.unrated_as is None else (self.unrated_as,)
        return tuple(sorted({*self.values.values(), *more}))


class Scale(NamedTuple):
    """Which ratings of a log are valid, and how they are mapped."""

    levels: tuple[float, ...]
    rounding: str = "exact"
    confidence: str = "none"
    alpha: float = 1.0
    epsilon: float = 1.0
    feedback: FeedbackConfig | None = None
    values: tuple[tuple[str, float], ...] = ()
    """See `RatingsConfig`."""

    unrated: tuple[str, ...] = ()
    unrated_as: float | None = None

    def read(self, column: pa.ChunkedArray) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Return the numbers of a rating column, and which entries are not rated.

        Args:
            column: Of the log.

        Returns:
            float32, NaN where there is no number; bool, of rows to leave out.
        """
        if self.feedback is not None and self.feedback.is_marked:
            rating_N = np.asarray(self.feedback.ratings_of(column))
        elif self.values:
            rating_N = np.full(len(column), np.nan, dtype=np.float32)
            for name, number in self.values:
                rating_N[is_among(column, (name,))] = number
        else:
            rating_N = np.asarray(parse_numbers(column, pa.float32()))
        if not self.unrated:
            return rating_N, np.zeros(len(column), dtype=bool)
        is_unrated_N = is_among(column, self.unrated)
        if self.unrated_as is None:
            return rating_N, is_unrated_N
        rating_N = np.where(is_unrated_N, np.float32(self.unrated_as), rating_N)
        return rating_N, np.zeros(len(column), dtype=bool)

    def holds(self, rating_N: FloatArray) -> npt.NDArray[np.bool_]:
        """Return which ratings can be mapped to a level; counts must be positive."""
        if self.confidence != "none":
            return rating_N > 0
        if self.rounding == "exact":
            return on_scale(rating_N, self.levels)
        gaps = np.diff(self.levels) if len(self.levels) > 1 else np.array([1.0])
        share = {"nearest": (0.5, 0.5), "up": (1.0, 0.0), "down": (0.0, 1.0)}[self.rounding]
        low, high = self.levels[0] - gaps[0] * share[0], self.levels[-1] + gaps[-1] * share[1]
        inside = (rating_N > low) & (rating_N < high)
        is_level_N = np.isin(rating_N, np.asarray(self.levels, dtype=np.float32))
        return np.asarray(inside | is_level_N)

    def apply(self, rating_N: FloatArray) -> FloatArray:
        """Map ratings to levels, or counts to weights."""
        if self.rounding == ALREADY_APPLIED:
            return rating_N
        if self.confidence == "linear":
            return np.asarray(1 + self.alpha * rating_N, dtype=np.float32)
        if self.confidence == "log":
            return np.asarray(1 + self.alpha * np.log1p(rating_N / self.epsilon), dtype=np.float32)
        levels = np.asarray(self.levels, dtype=np.float32)
        if self.rounding in {"exact", "nearest"}:
            return levels[nearest_level(rating_N, self.levels)]
        side: Any = "left" if self.rounding == "up" else "right"
        place = np.searchsorted(levels, rating_N, side=side) - (self.rounding == "down")
        return levels[np.clip(place, 0, len(levels) - 1)]


def scale_of(
    config: RatingsConfig,
    known: tuple[float, ...] | None,
    columns: Columns,
    duplicates: str,
    feedback: FeedbackConfig | None = None,
) -> Scale:
    """Determine the rating scale of a log.

    Args:
        config: The ``data.ratings`` settings.
        known: Levels of the format, if it defines them.
        columns: Columns of the log.
        duplicates: The policy; the mean of two levels may not be a level.
        feedback: Which ratings are likes and dislikes, if that is set.

    Returns:
        The scale.

    Raises:
        ConfigError: The scale is ambiguous, or settings conflict.
    """
    faults: list[str] = []
    is_weighted, levels = config.confidence != "none", config.known_levels or known
    if feedback is not None:
        faults += _feedback_faults(feedback, config, levels, columns)
        levels = MARK_LEVELS if feedback.is_marked else levels
    is_set = config.levels or is_weighted or config.values or config.unrated
    if columns.rating is None and is_set:
        faults.append("data.ratings is set, but data.source.columns has no rating column")
    if columns.rating is not None and not levels and not is_weighted:
        faults.append(
            f"column {columns.rating!r} holds ratings or counts: set data.ratings.levels, or "
            "data.ratings.confidence for counts, or leave the column out"
        )
    unrated_as = config.unrated_as
    has_levels = bool(levels) and not is_weighted
    if unrated_as is not None and has_levels and unrated_as not in (levels or ()):
        faults.append(f"data.ratings.unrated_as = {unrated_as:g}: not a level of {levels}")
    if duplicates in {"mean", "sum"} and not is_weighted and config.rounding == "exact" and levels:
        faults.append(
            f"data.cleaning.duplicates = {duplicates!r} gives ratings between levels; set "
            "data.ratings.rounding"
        )
    if faults:
        raise ConfigError("; ".join(faults))
    return Scale(
        (1.0,) if is_weighted or levels is None else levels,
        config.rounding,
        config.confidence,
        config.alpha,
        config.epsilon,
        feedback,
        tuple(config.values.items()),
        tuple(map(str, config.unrated)),
        config.unrated_as,
    )


def _feedback_faults(
    feedback: FeedbackConfig,
    config: RatingsConfig,
    levels: tuple[float, ...] | None,
    columns: Columns,
) -> Iterator[str]:
    """Refuse likes or dislikes that no row can have."""
    if columns.rating is None:
        yield (
            "data.feedback is set, but data.source.columns has no rating column; map the column "
            "that holds the ratings or marks as rating"
        )
    if config.confidence != "none":
        yield (
            f"data.feedback with data.ratings.confidence = {config.confidence!r}: weights have no "
            "sign; remove one of them"
        )
    if feedback.is_marked and config.levels is not None:
        yield (
            "data.feedback.likes with data.ratings.levels: marks are no ratings; remove the "
            "levels, or set likes_above"
        )
    if not feedback.is_marked and levels:
        likes_above, dislikes_up_to = feedback.feedback
        if likes_above >= levels[-1]:
            yield (
                f"data.feedback.likes_above = {likes_above:g}: no level of {list(levels)} is above "
                "it, so nothing is a like; lower it"
            )
        if dislikes_up_to < levels[0]:
            where = "likes_above" if feedback.dislikes_up_to is None else "dislikes_up_to"
            yield (
                f"data.feedback.{where} = {dislikes_up_to:g}: every level of {list(levels)} is "
                "above it, so nothing is a dislike; raise it"
            )
