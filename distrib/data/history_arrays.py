"""Histories of many users as flat arrays; must not import torch."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distrib.data.arrow import flat_list, whole
from distrib.data.schema import Role, Subset
from distrib.errors import DataError

IntArray = npt.NDArray[np.int64]

BYTES_PER_INTERACTION, BYTES_PER_USER = 9, 16
"""Memory of `HistoryArrays`."""


class HistoryArrays(NamedTuple):
    """Histories of many users as flat arrays; cheap to share between processes."""

    number_B: IntArray
    """Index of the user in the prepared dataset."""

    pointer_P: IntArray
    """``[B + 1]``, first 0; row b is ``[pointer_P[b], pointer_P[b + 1])`` of ``*_N``."""

    item_N: npt.NDArray[np.int32]
    """Position of the item; in histories of items, number of the user."""

    value_N: npt.NDArray[np.float32]
    """Rating; 1 where the log has none."""

    role_N: npt.NDArray[np.int8]
    """`Role` of the interaction."""

    @property
    def num_users(self) -> int:
        """Number of rows."""
        return len(self.number_B)

    @property
    def num_bytes(self) -> int:
        """Size of the arrays."""
        return sum(part.nbytes for part in self)


def history_arrays(table: pa.Table, first_number: int = 0, step: int = 1) -> HistoryArrays:
    """Flatten a histories table.

    Args:
        table: Columns of `schema.histories`; ``items``, ``ratings`` and ``roles`` are read.
        first_number: Index of the first user.
        step: Step to the index of the next user; see `Dataset`.

    Returns:
        The flat arrays.

    Raises:
        DataError: A list column has nulls, or the lists of a row differ in length.
    """
    pointer_P, item_N = flat_list(table, "items")
    _, value_N = flat_list(table, "ratings")
    _, role_N = flat_list(table, "roles")
    if not len(item_N) == len(value_N) == len(role_N):
        raise DataError("histories: items, ratings and roles differ in length; run prepare again")
    number_B = first_number + step * np.arange(len(table), dtype=np.int64)
    return HistoryArrays(number_B, pointer_P, item_N, value_N, role_N)


def select(
    rows: HistoryArrays, keep_N: npt.NDArray[np.bool_], keep_B: npt.NDArray[np.bool_]
) -> HistoryArrays:
    """Return some users, with some of their interactions."""
    lengths = np.diff(rows.pointer_P)
    keep_N = keep_N & np.repeat(keep_B, lengths)
    kept_length_B = _counts(rows, keep_N)[keep_B]
    pointer = np.concatenate([[0], kept_length_B.cumsum()]).astype(np.int64)
    return HistoryArrays(
        rows.number_B[keep_B],
        pointer,
        rows.item_N[keep_N],
        rows.value_N[keep_N],
        rows.role_N[keep_N],
    )


def training_rows(rows: HistoryArrays, subset_B: npt.NDArray[np.int8]) -> HistoryArrays:
    """Return the training users that have training interactions, with only these.

    The result holds no held-out interaction, so no later step can leak one.
    """
    return select(rows, rows.role_N <= Role.TRAIN_TARGET, _are_trained(rows, subset_B))


def trained_numbers(rows: HistoryArrays, subset_B: npt.NDArray[np.int8]) -> HistoryArrays:
    """Return the rows with index -1 for users not seen in training.

    A model with per-user parameters has no trained ones for them.
    """
    return rows._replace(number_B=np.where(_are_trained(rows, subset_B), rows.number_B, -1))


def _are_trained(rows: HistoryArrays, subset_B: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_]:
    """Return which users are seen in training."""
    count_B = _counts(rows, rows.role_N <= Role.TRAIN_TARGET)
    return np.asarray((subset_B == Subset.TRAIN) & (count_B > 0))


def item_training_rows(table: pa.Table, first_item: int) -> HistoryArrays:
    """Return the training histories of items: interactions of training users, if any.

    Args:
        table: Columns of `schema.item_histories`; all but ``item`` and ``times`` are read.
        first_item: Index of the first item.

    Returns:
        Rows of items; ``item_N`` holds user indices.
    """
    pointer_P, user_N = flat_list(table, "users")
    value_N, role_N, subset_N = (
        flat_list(table, name)[1] for name in ("ratings", "roles", "subsets")
    )
    numbers = first_item + np.arange(len(table), dtype=np.int64)
    rows = HistoryArrays(numbers, pointer_P, user_N.astype(np.int32), value_N, role_N)
    trains_N = (role_N <= Role.TRAIN_TARGET) & (subset_N == Subset.TRAIN)
    return select(rows, trains_N, _counts(rows, trains_N) > 0)


def by_item(rows: HistoryArrays) -> HistoryArrays:
    """Transpose user histories into item histories, with users in row order."""
    order = np.argsort(rows.item_N, kind="stable")
    numbers, lengths = np.unique(rows.item_N, return_counts=True)
    user_N = np.repeat(rows.number_B, np.diff(rows.pointer_P))
    return HistoryArrays(
        numbers.astype(np.int64),
        np.concatenate([[0], lengths.cumsum()]).astype(np.int64),
        user_N[order].astype(np.int32),
        rows.value_N[order],
        rows.role_N[order],
    )


def eval_rows(rows: HistoryArrays, role: Role) -> HistoryArrays:
    """Return the users who have targets of the given role, with all roles up to it.

    For validation this excludes the test targets.
    """
    return select(rows, rows.role_N <= role, _counts(rows, rows.role_N == role) > 0)


def users_with(table: pa.Table, role: Role) -> pa.Array:
    """Return the ids of the users of `eval_rows`, in their order, from a histories table."""
    return whole(table["user"]).take(pa.array(eval_rows(history_arrays(table), role).number_B))


def _counts(rows: HistoryArrays, chosen_N: npt.NDArray[np.bool_]) -> IntArray:
    """Count the chosen interactions of each user, shape ``[B]``."""
    before = np.concatenate([[0], chosen_N.cumsum()])
    return np.diff(before[rows.pointer_P])


def merge(parts: list[HistoryArrays]) -> HistoryArrays:
    """Concatenate rows.

    Args:
        parts: Rows to concatenate, in order.

    Returns:
        All rows.

    Raises:
        DataError: ``parts`` is empty.
    """
    if not parts:
        raise DataError("no histories found; the prepared dataset has no shards, run prepare again")
    offsets = np.cumsum([0, *(part.pointer_P[-1] for part in parts)])
    pointers = [part.pointer_P[:-1] + offset for part, offset in zip(parts, offsets, strict=False)]
    return HistoryArrays(
        np.concatenate([part.number_B for part in parts]),
        np.concatenate([*pointers, offsets[-1:]]),
        *(np.concatenate([part[position] for part in parts]) for position in (2, 3, 4)),
    )


def empty_like(rows: HistoryArrays) -> HistoryArrays:
    """Return zero rows with the same dtypes."""
    return HistoryArrays(
        rows.number_B[:0],
        np.zeros(1, dtype=np.int64),
        rows.item_N[:0],
        rows.value_N[:0],
        rows.role_N[:0],
    )
