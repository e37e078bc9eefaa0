"""Gradients that are added up over ranks by rows equal those that are added up whole."""

import itertools
import threading
from types import SimpleNamespace

import pytest
import torch
import torch.distributed
from torch import nn

from distrib.training.engines.row_sums import RowSums

ROWS, WIDTH = 40, 3


class Meeting:
    """An all-reduce among threads, which notes how many numbers were sent."""

    def __init__(self, num_ranks):
        self.barrier = threading.Barrier(num_ranks, timeout=10)
        self.given, self.sent = {}, []

    def all_reduce(self, tensor, op=torch.distributed.ReduceOp.SUM):
        self.given[threading.get_ident()] = tensor.clone()
        if self.barrier.wait() == 0:
            self.sent.append(tensor.numel())
        everyone = torch.stack([given for _, given in sorted(self.given.items())])
        is_sum = op == torch.distributed.ReduceOp.SUM
        self.barrier.wait()
        tensor.copy_(everyone.sum(0, dtype=tensor.dtype) if is_sum else everyone.amax(0))


def gradients(rank, met):
    """Of a table that is met here and there, one met whole, a small one, and one of rank 0."""
    generator = torch.Generator().manual_seed(rank)
    sparse = torch.zeros(ROWS, WIDTH)
    sparse[met] = torch.randn(len(met), WIDTH, generator=generator)
    whole, small = torch.randn(ROWS, WIDTH, generator=generator), torch.ones(2)
    return [sparse, whole, small, torch.ones(5) if rank == 0 else None, None]


def summed(per_rank, monkeypatch, dtype=torch.float32):
    """What each rank has in the end, and how many numbers each collective sent."""
    meeting, found = Meeting(len(per_rank)), {}
    monkeypatch.setattr(torch.distributed, "all_reduce", meeting.all_reduce)

    def run(rank):
        parameters = [
            nn.Parameter(torch.zeros(shape))
            for shape in [(ROWS, WIDTH), (ROWS, WIDTH), (2,), (5,), (4,)]
        ]
        for parameter, gradient in zip(parameters, per_rank[rank], strict=True):
            parameter.grad = gradient
        RowSums(dtype, many_rows=ROWS, few_numbers=ROWS).add_up(parameters)
        found[rank] = [parameter.grad for parameter in parameters]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(per_rank))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(len(per_rank))], meeting.sent


def test_only_the_rows_that_any_rank_met_are_sent(monkeypatch):
    given = [gradients(0, [3, 7, 9]), gradients(1, [7, 30])]
    expected = [given[0][0] + given[1][0], given[0][1] + given[1][1]]
    found, sent = summed(given, monkeypatch)
    assert sent == [5 + 2 * ROWS, 4 * WIDTH, ROWS * WIDTH, 2 + 5]
    for of_rank in found:
        assert torch.equal(of_rank[0], expected[0])
        assert torch.equal(of_rank[1], expected[1])
        assert torch.equal(of_rank[2], torch.full((2,), 2.0))
        assert torch.equal(of_rank[3], torch.ones(5)), "a rank without it has the sum, too"
        assert of_rank[4] is None, "what no rank trains stays without a gradient"


@pytest.mark.parametrize("value", [-1e-45, 1e-45, -1.0, float("nan"), float("-inf")])
def test_a_row_counts_as_met_by_any_number_but_0(value, monkeypatch):
    given = [gradients(rank, []) for rank in (0, 1)]
    given[1][0][5, 1] = value
    found, sent = summed(given, monkeypatch)
    assert sent[1] == WIDTH
    assert found[0][0][5, 1].isnan() if value != value else found[0][0][5, 1] == value


def test_sums_in_bfloat16_are_equal_on_all_ranks(monkeypatch):
    given = [gradients(rank, [3, 7, 9 + rank]) for rank in (0, 1, 2)]
    expected = sum(of_rank[1] for of_rank in given)
    found, _ = summed(given, monkeypatch, torch.bfloat16)
    torch.testing.assert_close(found[0][1], expected, rtol=0.02, atol=0.02)
    for of_rank in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0][:4], of_rank[:4], strict=True))


@pytest.mark.parametrize(("num_met", "sent"), [(29, 29 * WIDTH), (30, ROWS * WIDTH)])
def test_a_table_is_sent_whole_from_three_quarters_of_its_rows_on(num_met, sent, monkeypatch):
    found, numbers = summed([gradients(0, list(range(num_met)))], monkeypatch)
    assert numbers[1] == sent
    assert torch.equal(found[0][0], gradients(0, list(range(num_met)))[0])


def test_gradients_that_lie_transposed_and_long_ones_of_one_axis_are_sent_whole(monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce_of_dense)
    turned, long = (nn.Parameter(torch.zeros(shape)) for shape in [(ROWS, WIDTH), (5 * ROWS,)])
    turned.grad = torch.arange(120.0).view(WIDTH, ROWS).T + 1.0
    long.grad = torch.ones(5 * ROWS)
    expected = 2 * turned.grad.clone()
    RowSums(torch.float32, many_rows=ROWS, few_numbers=1).add_up([turned, long])
    assert torch.equal(turned.grad, expected)
    assert torch.equal(long.grad, torch.full((5 * ROWS,), 2.0))


def all_reduce_of_dense(tensor, op=torch.distributed.ReduceOp.SUM):
    """Of two ranks with the same numbers; like gloo's, it takes contiguous tensors only."""
    assert tensor.is_contiguous()
    if op == torch.distributed.ReduceOp.SUM:
        tensor.mul_(2)


def test_the_clock_is_that_of_the_last_sum(monkeypatch):
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(ticks))
    monkeypatch.setattr("distrib.training.engines.row_sums.time", clock)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce_of_dense)
    table, sums = nn.Parameter(torch.zeros(ROWS, WIDTH)), RowSums(torch.float32, many_rows=ROWS)
    for gradient, collectives in ((torch.ones(ROWS, WIDTH), 2), (None, 1)):
        table.grad = gradient
        sums.add_up([table])
        assert sums.spent_s == collectives
