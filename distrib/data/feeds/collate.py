"""Collate flat history arrays into batches, without a Python loop over users."""

from typing import Literal, NamedTuple

import numpy as np
import torch

from distrib.batch import Batch
from distrib.data.history_arrays import HistoryArrays, IntArray
from distrib.data.schema import Role

Targets = Literal["stored", "distinct", "new"]
"""Which held-out interactions are targets: all as the data hold them, even of known items; each
item once; or only items that are not known, each once."""


class Example(NamedTuple):
    """An evaluation batch."""

    source: Batch
    """Interactions that the model may read."""

    target: Batch
    """Held-out targets."""

    seen: Batch
    """Interactions to exclude from recommendations: all known ones that are no targets."""


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
    rows: HistoryArrays,
    wanted_B: IntArray,
    role: Role,
    *,
    is_chronological: bool = False,
    targets: Targets = "stored",
) -> Example:
    """Gather some users of `eval_rows` for evaluation.

    Args:
        rows: Histories.
        wanted_B: Row of each user, in any order.
        role: Role of the targets.
        is_chronological: Whether the model may read all roles below ``role``, including
            validation targets; otherwise only training interactions.
        targets: Which held-out interactions count.

    Returns:
        The evaluation batch.
    """
    batch, role_N = gather(rows, wanted_B)
    last_read = role - 1 if is_chronological else Role.TRAIN_TARGET
    item_count = int(batch.item_N.max()) + 1 if len(batch.item_N) else 1
    pair_N = batch.row_N * item_count + batch.item_N
    is_known_N, is_target_N = role_N < role, role_N == role
    if targets == "new":
        is_target_N &= ~torch.isin(pair_N, pair_N[is_known_N])
    if targets != "stored":
        is_target_N &= _are_first(pair_N, is_target_N)
    return Example(
        source=batch.keep(role_N <= last_read),
        target=batch.keep(is_target_N),
        # What is both known and a target must remain a candidate.
        seen=batch.keep(is_known_N & ~torch.isin(pair_N, pair_N[is_target_N])),
    )


def _are_first(pair_N: torch.Tensor, is_among_N: torch.Tensor) -> torch.Tensor:
    """Return which of some pairs are the first of their kind among them, bool ``[N]``."""
    place_M = np.flatnonzero(is_among_N.numpy())
    _, first = np.unique(pair_N.numpy()[place_M], return_index=True)
    is_first_N = torch.zeros_like(is_among_N)
    is_first_N[torch.from_numpy(place_M[first])] = True
    return is_first_N
