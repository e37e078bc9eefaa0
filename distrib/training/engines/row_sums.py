"""Sums of gradients over ranks that leave out the rows of a table which no rank met."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_FEW = 0.75  # share of the rows up to which picking them out costs less than sending all


class RowSums:
    """Adds up gradients over all ranks, which end with equal bytes.

    A batch meets few rows of a first layer, of a table of users, or of a last layer whose items are
    sampled. All other rows of its gradient are 0 and need not travel.

    Args:
        dtype: In which gradients are sent and added up.
        many_rows: Rows of a table from which on sending all costs more than finding those met.
        few_numbers: Size of gradients below which they travel together.
    """

    def __init__(
        self, dtype: torch.dtype, *, many_rows: int = 1024, few_numbers: int = 1 << 20
    ) -> None:
        self._dtype, self._many_rows, self._few_numbers = dtype, many_rows, few_numbers
        self.spent_s = 0.0
        """Seconds in collectives of the last sum."""

    def add_up(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient with its sum; those that no rank has stay None.

        Args:
            parameters: The same on all ranks.
        """
        self.spent_s = 0.0
        trained, met = self._met_by_any(parameters)
        small: list[Tensor] = []
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradient, met_I = parameter.grad, met.get(id(parameter))
            if met_I is not None and int(met_I.count_nonzero()) < _FEW * len(met_I):
                row_U = met_I.nonzero().view(-1)
                rows = gradient[row_U]
                self._sum(rows)
                gradient[row_U] = rows
            elif gradient.numel() < self._few_numbers:
                small.append(gradient)
            else:
                self._sum(gradient)
        if small:
            flat = torch.cat([gradient.reshape(-1) for gradient in small])
            self._sum(flat)
            cuts = flat.split([gradient.numel() for gradient in small])
            torch._foreach_copy_(small, [c.view_as(g) for c, g in zip(cuts, small, strict=True)])

    def _met_by_any(
        self, parameters: Sequence[nn.Parameter]
    ) -> tuple[list[nn.Parameter], dict[int, Tensor]]:
        """Return the parameters that any rank has a gradient of, and the rows met of tables."""
        tables = [p for p in parameters if p.dim() > 1 and len(p) >= self._many_rows]
        has_P = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
        flags = [has_P.to(parameters[0].device), *(_met(table) for table in tables)]
        joined = torch.cat(flags)
        self._timed(dist.all_reduce, joined, dist.ReduceOp.MAX)
        has_P, *rows = joined.split([len(part) for part in flags])
        trained = [p for p, has in zip(parameters, has_P.tolist(), strict=True) if has]
        return trained, {id(table): met for table, met in zip(tables, rows, strict=True)}

    def _sum(self, gradient: Tensor) -> None:
        sent = gradient.to(self._dtype).contiguous()
        self._timed(dist.all_reduce, sent)
        if sent is not gradient:
            gradient.copy_(sent)

    def _timed(self, collective: Callable[..., Any], *arguments: Any) -> None:
        started_s = time.perf_counter()
        collective(*arguments)
        self.spent_s += time.perf_counter() - started_s


def _met(table: nn.Parameter) -> Tensor:
    """Return which rows of a table have a gradient that is not 0, as bytes."""
    if table.grad is None:
        return torch.zeros(len(table), dtype=torch.uint8, device=table.device)
    # As integers, for which the extremes of a row take a fifth of the time of comparing each
    # number with 0.
    bits_IJ = table.grad.flatten(1).view(torch.int32)
    return ((bits_IJ.amax(1) != 0) | (bits_IJ.amin(1) != 0)).to(torch.uint8)
