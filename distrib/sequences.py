"""Histories as sequences: the last interactions of each user, and the places that states follow."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from distrib.batch import Batch
from distrib.devices import sent

NOTHING_READ = -1
"""Place of a state that has read nothing."""


class Sequences(NamedTuple):
    """Input of a model that reads histories in time order, and says what comes next.

    A state describes a user after some of the interactions. A model may compute all states of a
    user in one pass, so they share one history.
    """

    histories: Batch

    state_P: Tensor
    """int64 ``[B + 1]``, first 0; user b has the states ``[state_P[b], state_P[b + 1])``."""

    place_R: Tensor
    """int64; place among the N interactions of the last one that each state has read, or
    `NOTHING_READ`; ascending for each user."""

    @property
    def num_rows(self) -> int:
        """States; see `TrainInput`."""
        return self.place_R.shape[0]

    def to(self, device: torch.device | str) -> "Sequences":
        """Return it on a device; see `TrainInput`."""
        return Sequences(self.histories.to(device), *(sent(part, device) for part in self[1:]))

    def split(self, num_parts: int) -> list["Sequences"]:
        """Split the users; see `TrainInput`."""
        if num_parts == 1:
            return [self]
        users = self.histories.num_users
        cuts = [users * part // num_parts for part in range(num_parts + 1)]
        return [self._slice(low, high) for low, high in pairwise(cuts)]

    def _slice(self, low: int, high: int) -> "Sequences":
        first, last = int(self.state_P[low]), int(self.state_P[high])
        place_R, start = self.place_R[first:last], self.histories.pointer_P[low]
        return Sequences(
            self.histories.slice(low, high),
            self.state_P[low : high + 1] - first,
            torch.where(place_R == NOTHING_READ, NOTHING_READ, place_R - start),
        )


def sequences_of(inputs: Batch | Sequences, max_length: int) -> Sequences:
    """Return what a model reads: in training as fed; of plain histories, the state after all."""
    if isinstance(inputs, Sequences):
        return inputs
    read = inputs.latest(max_length)
    state_P = torch.arange(read.num_users + 1, device=read.pointer_P.device)
    place_R = torch.where(read.length_B > 0, read.pointer_P[1:] - 1, NOTHING_READ)
    return Sequences(read, state_P, place_R)


def with_targets(batch: Batch, max_length: int, *, every: bool) -> tuple[Sequences, Batch]:
    """Return what a model reads of training histories, and the next item of each state.

    Args:
        batch: Histories.
        max_length: Interactions that a state reads at most.
        every: Whether each interaction is a target; otherwise a user's last is the only one. The
            first of a history is predicted from nothing, unless older ones were cut off.

    Returns:
        The input, and a row with one item for each of its states.
    """
    whole = batch.latest(max_length + 1)
    length_B = whole.length_B
    row_N, is_cut_B = whole.row_N, batch.length_B > length_B
    place_N = torch.arange(len(row_N), device=row_N.device)
    is_first_N = place_N == whole.pointer_P[:-1][row_N]
    is_last_N = place_N == whole.pointer_P[1:][row_N] - 1
    is_target_N = ~(is_first_N & is_cut_B[row_N]) if every else is_last_N
    # The input lacks the last interaction of each history before, and of none that is empty.
    lacking_N = is_last_N.cumsum(0) - is_last_N.long()
    read_N = torch.where(is_first_N, NOTHING_READ, place_N - 1 - lacking_N)
    states_B = torch.bincount(row_N[is_target_N], minlength=whole.num_users)
    state_P = torch.cat([states_B.new_zeros(1), states_B.cumsum(0)])
    target = Batch(
        whole.user_B[row_N[is_target_N]],
        torch.arange(int(state_P[-1]) + 1, device=row_N.device),
        whole.item_N[is_target_N],
        whole.value_N[is_target_N],
    )
    return Sequences(whole.keep(~is_last_N), state_P, read_N[is_target_N]), target
