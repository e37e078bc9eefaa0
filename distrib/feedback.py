"""Likes and dislikes: which ratings of a log are which. Must not import torch."""

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

    Values = TypeVar("Values", Tensor, npt.NDArray[np.float32])
else:
    Values = TypeVar("Values")


class Feedback(NamedTuple):
    """The sign of a rating: a like, a dislike, or neither."""

    likes_above: float
    """Higher ratings are likes."""

    dislikes_up_to: float
    """This rating and lower ones are dislikes; at most ``likes_above``."""

    def sign(self, value_N: "Values") -> "Values":
        """Return 1 for likes, -1 for dislikes and 0 for others.

        Args:
            value_N: Ratings, a tensor or an array; NaN for pairs without any, whose sign is 0.

        Returns:
            The signs, integers.
        """
        return 1 * (value_N > self.likes_above) - 1 * (value_N <= self.dislikes_up_to)


def sign_of(feedback: Feedback | None, value_N: "Values") -> "Values":
    """Return the sign of each rating; in a log without dislikes, every interaction is a like.

    Args:
        feedback: Of the log; None where it has no two signs.
        value_N: Ratings, a tensor or an array; NaN for pairs without any, whose sign is 0.

    Returns:
        1, -1 or 0, integers.
    """
    is_rating_N = value_N == value_N
    return 1 * is_rating_N if feedback is None else feedback.sign(value_N)
