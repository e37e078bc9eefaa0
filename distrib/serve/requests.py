"""Requests of several askers as one batch in the model's positions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from distrib.batch import Batch
from distrib.score.histories import Histories, read_histories
from distrib.serve.schemas import History, RecommendOptions
from distrib.vocabulary import IntArray, Vocabulary


class RefusedError(Exception):
    """A request that does not go with the model or the limits; crosses no process."""

    def __init__(self, detail: str, status: int = 422) -> None:
        super().__init__(detail)
        self.detail, self.status = detail, status


class RecommendJob(NamedTuple):
    """A user who wants a list."""

    history: History
    options: RecommendOptions
    number: int = -1
    """Of a user whom training saw; -1 for all others."""


class ArrowJob(NamedTuple):
    """Some users of an Arrow stream who want lists."""

    table: pa.Table
    options: RecommendOptions


def require_history(vocabulary: Vocabulary, history: History, limit: int) -> None:
    """Refuse a history that the model cannot read.

    Args:
        vocabulary: The model's.
        history: Of one user.
        limit: Most interactions.

    Raises:
        RefusedError: It is too long, lacks ratings, or its ids are of another kind.
    """
    if len(history.items) > limit:
        raise RefusedError(f"history.items: {len(history.items)} of them, at most {limit}")
    if len(vocabulary.levels) > 1 and history.ratings is None:
        raise RefusedError(f"history.ratings: needed, on the levels {list(vocabulary.levels)}")
    require_kind(vocabulary, history.items, "history.items")


def require_kind(vocabulary: Vocabulary, ids: Sequence[int | str], what: str) -> None:
    """Refuse numbers where the log had texts, and the other way round."""
    kind = _kind(vocabulary)
    wrong = next((item for item in ids if not isinstance(item, kind)), None)
    if wrong is not None:
        names = {int: "numbers", str: "texts"}
        raise RefusedError(f"{what}: {type(wrong).__name__} found; ids here are {names[kind]}")


def read(vocabulary: Vocabulary, histories: Sequence[History]) -> Histories:
    """Translate checked histories to the model's positions, a row for each."""
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
    return read_histories(vocabulary, pa.table(columns), None)


def positions(vocabulary: Vocabulary, ids: Sequence[int | str]) -> IntArray:
    """Return the positions of the ids that the model knows, each once; others are passed over."""
    fitting = [item for item in ids if isinstance(item, _kind(vocabulary))]
    if not fitting:
        return np.zeros(0, np.int64)
    found = vocabulary.positions(pa.array(fitting))
    return np.unique(found[found >= 0])


def joined(batch: Batch | None, more: Sequence[IntArray]) -> Batch:
    """Return a batch with more items in each row; without one, these alone."""
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
