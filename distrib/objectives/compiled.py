"""An objective whose passes over a block are fused by torch.compile."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distrib.batch import Batch, Cells
from distrib.objectives.base import (
    Candidates,
    Carry,
    CellObjective,
    CodeObjective,
    FactoredObjective,
    Objective,
    Seen,
    Weights,
)
from distrib.rng import Noise


class Compiled:
    """The same numbers as the objective inside, up to rounding; see `Objective`.

    Compiling takes seconds when training begins. It pays where a loss makes many passes over a
    block, as rating classes do (a third less time on a CPU), and not where one pass is all.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._observe = torch.compile(objective.observe, dynamic=True)
        self._accumulate = torch.compile(objective.accumulate, dynamic=True)
        self._fill_gradient = torch.compile(objective.fill_gradient, dynamic=True)

    @property
    def term_names(self) -> tuple[str, ...]:
        """As inside."""
        return self._objective.term_names

    def candidates(self, target: Batch, noise: Noise, step: int) -> Candidates | None:
        """As inside."""
        return self._objective.candidates(target, noise, step)

    def observe(self, output: Tensor, cells: Cells) -> Seen:
        """Fused."""
        return self._observe(output, cells)

    def accumulate(self, carry: Carry | None, seen: Seen, cells: Cells) -> Carry:
        """Fused."""
        return self._accumulate(carry, seen, cells)

    def merged(self, carries: Sequence[Carry]) -> Carry:
        """As inside."""
        return self._objective.merged(carries)

    def finish(self, carry: Carry, target: Batch) -> tuple[Tensor, Carry]:
        """As inside."""
        return self._objective.finish(carry, target)

    def fill_gradient(self, out: Tensor, seen: Seen, cells: Cells, weights: Weights) -> None:
        """Fused."""
        self._fill_gradient(out, seen, cells, weights)

    def divergence_weight(self, step: int) -> float:
        """As inside."""
        return self._objective.divergence_weight(step)


def compiled(objective: Any, *, is_factored: bool) -> Any:
    """Fuse what an objective does with blocks; what looks at cells or codes alone stays.

    Args:
        objective: Any.
        is_factored: Whether the model gives interactions and levels by themselves.

    Returns:
        An objective of the same kind.
    """
    if isinstance(objective, FactoredObjective) and is_factored:
        objective.interactions = Compiled(objective.interactions)  # type: ignore[misc]
        return objective
    is_by_block = not isinstance(objective, CellObjective | CodeObjective)
    return Compiled(objective) if is_by_block else objective
