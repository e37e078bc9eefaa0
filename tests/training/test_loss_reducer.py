"""What one rank sums up; with several ranks it is tested through launch."""

import math

import pytest
import torch
import torch.distributed

from distrib.training.engines.base import Update
from distrib.training.workers.loss_reducer import NORM, LossReducer, NonFinite


@pytest.fixture(autouse=True)
def alone(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def update(loss, norm=1.0, *, is_applied=True):
    terms = {"a": torch.tensor(loss), "b": torch.tensor(2.0)}
    return Update(terms, torch.tensor(norm), is_applied)


def reducer_of(*updates, max_skipped_updates=0):
    loss_reducer = LossReducer(torch.device("cpu"), max_skipped_updates=max_skipped_updates)
    for found in updates:
        loss_reducer.add(found, 4)
    return loss_reducer


def test_sums_flags_and_means_are_those_of_what_was_added():
    loss_reducer = reducer_of(update(8.0, 3.0), update(4.0, 5.0))
    agreed = loss_reducer.agree(stop=1.0, due=0.0)
    assert agreed.flags == {"stop": 1.0, "due": 0.0}
    assert agreed.non_finite is None
    assert agreed.means == {"a": 1.5, "b": 0.5, NORM: 4.0}
    assert loss_reducer.mean_losses() == {"a": 1.5, "b": 0.5}


@pytest.mark.parametrize(
    ("updates", "expected"),
    [
        ([update(1.0), update(math.nan), update(1.0)], ("a", 1)),
        ([update(math.inf)], ("a", 0)),
        ([update(1.0), update(1.0, math.inf)], (NORM, 0)),
    ],
)
def test_the_first_number_that_is_not_finite_is_named_with_its_step(updates, expected):
    found = reducer_of(*updates).agree(stop=0.0).non_finite
    assert isinstance(found, NonFinite)
    assert (found.term, found.steps_ago) == expected
    assert not math.isfinite(found.value)


def test_fp16_may_leave_out_and_count_but_not_too_often():
    skipped = update(math.inf, math.inf, is_applied=False)
    loss_reducer = reducer_of(update(8.0), skipped, skipped, update(4.0), max_skipped_updates=2)
    assert loss_reducer.agree(stop=0.0).non_finite is None
    assert loss_reducer.count == 8
    assert loss_reducer.mean_losses()["a"] == 1.5
    assert (
        reducer_of(skipped, skipped, skipped, max_skipped_updates=2).agree(stop=0.0).non_finite
        is not None
    )
    stepped_back = update(1.0, math.inf, is_applied=False)  # only the scaled gradient overflowed
    assert reducer_of(stepped_back).agree(stop=0.0).non_finite is None


def test_a_checkpoint_of_other_ranks_counts_once():
    parts = [{"totals": {"a": float(n)}, "num_users": 7, "skipped": 0} for n in (1, 2)]
    whole = reducer_of()
    whole.take(parts, 0, 1)
    assert (whole.totals, whole.count) == ({"a": 3.0}, 7)
    whole.take(parts, 2, 3)
    assert whole.totals == {"a": 0.0}
    whole.take(parts, 1, 2)
    assert whole.totals == {"a": 2.0}


def test_a_mean_is_over_the_updates_that_have_its_term():
    """As where phases take turns by epoch, and several epochs are validated at once."""
    other = Update({"c": torch.tensor(12.0)}, torch.tensor(1.0))
    loss_reducer = reducer_of(update(8.0), other, update(4.0))
    loss_reducer.agree(stop=0.0)
    assert loss_reducer.mean_losses() == {"a": 1.5, "b": 0.5, "c": 3.0}
    again = LossReducer(torch.device("cpu"), max_skipped_updates=0)
    part = loss_reducer.to_json()
    again.take([part], 0, 1)
    assert again.mean_losses() == loss_reducer.mean_losses()
    del part["counts"]  # of an earlier version
    again.take([part], 0, 1)
    assert again.mean_losses()["c"] == 1.0
