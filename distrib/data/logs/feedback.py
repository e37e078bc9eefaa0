"""Settings that say which interactions are likes, and which are dislikes."""

from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from distrib.config import Config
from distrib.data.logs.parse_values import is_among
from distrib.feedback import Feedback

MARK_LEVELS = (-1.0, 0.0, 1.0)
"""Ratings in place of marks: dislike, neither, like."""


class FeedbackConfig(Config):
    """Likes and dislikes, by ratings or by the marks in the rating column.

    Give either ``likes_above``, or both ``likes`` and ``dislikes``.
    """

    likes_above: float | None = None
    """Ratings above this are likes."""

    dislikes_up_to: float | None = None
    """This rating and lower ones are dislikes; by default all ratings that are not likes. Ratings
    in between stay in the histories without a sign."""

    likes: tuple[str, ...] = ()
    """Values of the rating column that are likes, such as names of events or labels."""

    dislikes: tuple[str, ...] = ()
    """Values that are dislikes; rows with other values stay in the histories without a sign."""

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> "FeedbackConfig":
        by_rating = self.likes_above is not None or self.dislikes_up_to is not None
        if by_rating == self.is_marked:
            raise ValueError(
                "set either likes_above (a threshold on ratings), or likes and dislikes (values of "
                "the rating column)"
            )
        if self.is_marked and not (self.likes and self.dislikes):
            raise ValueError("likes and dislikes belong together; set both")
        if any(not mark.strip() for mark in (*self.likes, *self.dislikes)):
            raise ValueError("an empty mark; a row without a mark has no sign anyway, remove it")
        twice = sorted({*map(_plain, self.likes)} & {*map(_plain, self.dislikes)})
        if twice:
            raise ValueError(f"{twice}: both a like and a dislike; list each value once")
        if by_rating and self.likes_above is None:
            raise ValueError("dislikes_up_to needs likes_above; set both")
        feedback = self.feedback
        if feedback.dislikes_up_to > feedback.likes_above:
            raise ValueError(
                f"dislikes_up_to = {self.dislikes_up_to} is above likes_above = "
                f"{self.likes_above}; expected dislikes_up_to <= likes_above"
            )
        return self

    @property
    def is_marked(self) -> bool:
        """Whether the rating column holds marks, not ratings."""
        return bool(self.likes or self.dislikes)

    @property
    def feedback(self) -> Feedback:
        """Signs of the ratings that prepare writes."""
        if self.is_marked:
            return Feedback(0.0, -1.0)
        assert self.likes_above is not None  # validated
        low = self.dislikes_up_to
        return Feedback(self.likes_above, self.likes_above if low is None else low)

    def ratings_of(self, column: pa.ChunkedArray) -> Any:
        """Turn a column of marks into ratings.

        Args:
            column: Text, numbers or booleans; numbers equal a mark that reads as the same number.

        Returns:
            float32 `MARK_LEVELS`; NaN for missing values.
        """
        rating_N = is_among(column, self.likes).astype(np.float32) - is_among(column, self.dislikes)
        return np.where(is_among(column, ("",)), np.float32(np.nan), rating_N).astype(np.float32)


def _plain(mark: str) -> str:
    """Return a mark as it is compared: numbers by their value."""
    try:
        return str(float(mark))
    except ValueError:
        return mark.strip()
