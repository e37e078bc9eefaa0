"""Collate flat history arrays into batches, without a Python loop over users."""

from typing import NamedTuple

import numpy as np
import torch

from distrib.batch import Batch
from distrib.data.history_arrays import HistoryArrays, IntArray
from distrib.data.schema import Role


class Example(NamedTuple):
    """An evaluation batch."""

    source: Batch
    """Interactions that the model may read."""

    target: Batch
    """Held-out targets."""

    seen: Batch
    """Interactions to exclude from recommendations: all known ones except targets."""


def gather(rows: HistoryArrays, wanted_B: IntArray) -> tuple[Batch, torch.Tensor]:
    """Gather some users into a batch.

    Args:
        rows: Histories.
        wanted_B: Row of each user, in any order.

    Returns:
        The batch, and the role of each of its interactions (int8 ``[N]``).
    """
    start_B, stop_B = rows.pointer_P[wanted_B], rows.pointer_P[wanted_B + 1]
    pointer_P = np.concatenate([[0], (stop_B - start_B).cumsum()]).astype(np.int64)
    place_N = np.arange(pointer_P[-1]) + np.repeat(start_B - pointer_P[:-1], stop_B - start_B)
    batch = Batch(
        torch.from_numpy(rows.number_B[wanted_B]),
        torch.from_numpy(pointer_P),
        torch.from_numpy(rows.item_N[place_N].astype(np.int64)),
        torch.from_numpy(rows.value_N[place_N]),
    )
    return batch, torch.from_numpy(rows.role_N[place_N])


def example(
    rows: HistoryArrays, wanted_B: IntArray, role: Role, *, is_chronological: bool = False
) -> Example:
    """Gather some users of `eval_rows` for evaluation.

    Args:
        rows: Histories.
        wanted_B: Row of each user, in any order.
        role: Role of the targets.
        is_chronological: Whether the model may read all roles below ``role``, including
            validation targets; otherwise only training interactions.

    Returns:
        The evaluation batch.
    """
    batch, role_N = gather(rows, wanted_B)
    last_read = role - 1 if is_chronological else Role.TRAIN_TARGET
    return Example(
        source=batch.keep(role_N <= last_read),
        target=batch.keep(role_N == role),
        seen=batch.keep((role_N < role) & ~_held_out_pairs(batch, role_N == role)),
    )


def _held_out_pairs(batch: Batch, is_held_out_N: torch.Tensor) -> torch.Tensor:
    """Return which interactions are pairs that are also targets, bool ``[N]``.

    With a given split a pair may be both known and a target; it must remain a candidate.
    """
    item_count = int(batch.item_N.max()) + 1 if len(batch.item_N) else 1
    pair_N = batch.row_N * item_count + batch.item_N
    return torch.isin(pair_N, pair_N[is_held_out_N])
