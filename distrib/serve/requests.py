"""Checks requests against a model, and joins their histories into one batch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from distrib.batch import Batch
from distrib.scoring.histories import Histories, read_histories
from distrib.serve.schemas import History, RecommendOptions
from distrib.vocabulary import IntArray, Vocabulary


class RefusedError(Exception):
    """A request that does not fit the model or the limits; never crosses processes."""

    def __init__(self, detail: str, status: int = 422) -> None:
        super().__init__(detail)
        self.detail, self.status = detail, status


class RecommendJob(NamedTuple):
    """A list request of one user."""

    history: History
    options: RecommendOptions
    number: int = -1
    """Index of a training user; -1 for all others."""


class ArrowJob(NamedTuple):
    """A list request of some users of an Arrow stream."""

    table: pa.Table
    options: RecommendOptions


def require_history(vocabulary: Vocabulary, history: History, limit: int) -> None:
    """Refuse a history that the model cannot read.

    Args:
        vocabulary: The model's.
        history: History of one user.
        limit: Maximum number of interactions.

    Raises:
        RefusedError: It is too long, lacks ratings, or its ids have another type.
    """
    if len(history.items) > limit:
        raise RefusedError(f"history.items: {len(history.items)} items, at most {limit}")
    if len(vocabulary.levels) > 1 and history.ratings is None:
        raise RefusedError(f"history.ratings: required, on the scale {list(vocabulary.levels)}")
    require_kind(vocabulary, history.items, "history.items")


def require_options(vocabulary: Vocabulary, options: RecommendOptions) -> None:
    """Refuse ids of another type in the options of a list; ignored, they would do nothing."""
    require_kind(vocabulary, options.deny, "options.deny")
    require_kind(vocabulary, options.candidates or (), "options.candidates")


def require_kind(vocabulary: Vocabulary, ids: Sequence[int | str], what: str) -> None:
    """Refuse ids of another type than the model's: integers or strings."""
    kind = _kind(vocabulary)
    wrong = next((item for item in ids if not isinstance(item, kind)), None)
    if wrong is not None:
        names = {int: "integers", str: "strings"}
        raise RefusedError(f"{what}: found {type(wrong).__name__}; the ids are {names[kind]}")


def read(vocabulary: Vocabulary, histories: Sequence[History]) -> Histories:
    """Translate checked histories to the model's item positions, one row each."""
    lengths = [0, *(len(history.items) for history in histories)]
    pointer = pa.array(np.cumsum(lengths), pa.int32())
    kind = pa.int64() if _kind(vocabulary) is int else pa.string()
    items = pa.array([item for history in histories for item in history.items], kind)
    columns = {
        "user": pa.array(range(len(histories)), pa.int64()),
        "items": pa.ListArray.from_arrays(pointer, items),
    }
    if len(vocabulary.levels) > 1:
        ratings = [rating for history in histories for rating in history.ratings or ()]
        columns["ratings"] = pa.ListArray.from_arrays(pointer, pa.array(ratings, pa.float64()))
    if any(history.times for history in histories):
        times = [t for history in histories for t in history.times or range(len(history.items))]
        columns["times"] = pa.ListArray.from_arrays(pointer, pa.array(times, pa.float64()))
    return read_histories(vocabulary, pa.table(columns), None)


def positions(vocabulary: Vocabulary, ids: Sequence[int | str]) -> IntArray:
    """Return the unique positions of the ids that the model knows; others are ignored."""
    fitting = [item for item in ids if isinstance(item, _kind(vocabulary))]
    if not fitting:
        return np.zeros(0, np.int64)
    found = vocabulary.positions(pa.array(fitting))
    return np.unique(found[found >= 0])


def joined(batch: Batch | None, more: Sequence[IntArray]) -> Batch:
    """Append items to each row of a batch; without a batch, return the items as one."""
    added = Batch.from_lists([found.tolist() for found in more])
    if batch is None:
        return added
    order_N = torch.argsort(torch.cat([batch.row_N, added.row_N]), stable=True)
    return Batch(
        batch.user_B,
        batch.pointer_P + added.pointer_P,
        torch.cat([batch.item_N, added.item_N])[order_N],
        torch.cat([batch.value_N, added.value_N])[order_N],
    )


def _kind(vocabulary: Vocabulary) -> type[int] | type[str]:
    return int if pa.types.is_integer(vocabulary.ids.type) else str
