"""Histories as sequences: against plain lists."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.batch import Batch
from distrib.sequences import sequences_of, with_targets

HISTORIES = st.lists(st.lists(st.integers(0, 9), max_size=7), max_size=5)


def read_of(sequences):
    """For each state, its user's number and the items that it has read."""
    found = []
    histories = sequences.histories
    for row in range(histories.num_users):
        start = int(histories.pointer_P[row])
        for state in range(int(sequences.state_P[row]), int(sequences.state_P[row + 1])):
            stop = int(sequences.place_R[state]) + 1
            items = histories.item_N[start:stop].tolist() if stop > 0 else []
            found.append((int(histories.user_B[row]), items))
    return found


def batch_of(histories):
    return Batch.from_lists(histories, users=list(range(10, 10 + len(histories))))


@settings(max_examples=150, deadline=None)
@given(HISTORIES, st.integers(1, 8), st.booleans())
def test_states_and_their_targets_are_those_of_plain_lists(histories, max_length, every):
    wanted = []
    for user, items in enumerate(histories):
        window = items[-(max_length + 1) :]
        first = 1 if len(items) > len(window) else 0
        places = range(first, len(window)) if every else range(len(window))[-1:]
        wanted += [(user + 10, window[:place], window[place]) for place in places]
    inputs, target = with_targets(batch_of(histories), max_length, every=every)
    assert read_of(inputs) == [(user, read) for user, read, _ in wanted]
    assert target.user_B.tolist() == [user for user, _, _ in wanted]
    assert target.item_N.tolist() == [item for _, _, item in wanted]
    assert target.length_B.tolist() == [1] * len(wanted)
    assert inputs.num_rows == len(wanted)


@settings(max_examples=60, deadline=None)
@given(HISTORIES, st.integers(1, 6))
def test_parts_hold_the_states_of_the_whole(histories, num_parts):
    whole, _ = with_targets(batch_of(histories), 4, every=True)
    parts = whole.split(num_parts)
    assert [state for part in parts for state in read_of(part)] == read_of(whole)


@settings(max_examples=60, deadline=None)
@given(HISTORIES, st.integers(1, 8))
def test_a_history_alone_has_one_state_after_its_last_interactions(histories, max_length):
    found = sequences_of(batch_of(histories), max_length)
    assert read_of(found) == [(n + 10, h[-max_length:]) for n, h in enumerate(histories)]
    values = batch_of(histories).latest(max_length)
    assert values.value_N.tolist() == [1.0] * len(values.item_N)


@pytest.mark.parametrize("length", [100_000])
def test_a_very_long_history_is_cut(length):
    inputs, target = with_targets(Batch.from_lists([list(range(length))]), 50, every=True)
    assert inputs.histories.item_N.tolist() == list(range(length - 51, length - 1))
    assert target.item_N.tolist() == list(range(length - 50, length))
    assert torch.equal(inputs.to("cpu").place_R, inputs.place_R)
