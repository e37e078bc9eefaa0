"""The decision of the inverse gradient: follow the unlabeled loss, reverse it, or leave it out.

Decisions follow from sums over all ranks, so every rank takes the same one.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distrib.objectives.base import Recorder
from distrib.objectives.inverse_gradient import DecidesByGradient
from distrib.training.ranks import sum_over_ranks

DIRECT, INVERSE, STAY = 1, -1, 0
NAMES = {DIRECT: "direct", INVERSE: "inverse", STAY: "stay"}
COSINE = "cosine of the gradients"
NOT_FINITE = "share of decisions on gradients that are not finite"

_SKETCH_SEED = 20_231_108
_ROWS = 32
_BYTES = 4  # of a float32


class Decision(NamedTuple):
    """What to do with the unlabeled loss."""

    choice: int
    """`DIRECT`, `INVERSE` or `STAY`."""

    cosine: float


def decide(dot: float, unlabeled: float, held_out: float, dead_zone: float) -> Decision:
    """Decide by the gradients of the unlabeled and the held-out loss.

    To first order a step against the unlabeled gradient changes the held-out loss by minus the
    inner product, so its sign says which direction helps. NaN leaves the unlabeled loss out.

    Args:
        dot: Inner product of the two gradients.
        unlabeled: Squared norm of the one.
        held_out: Squared norm of the other.
        dead_zone: Absolute cosine below which neither direction is taken.

    Returns:
        The decision.
    """
    size = (max(unlabeled, 0.0) * max(held_out, 0.0)) ** 0.5
    cosine = dot / size if size != 0.0 else 0.0
    choice = DIRECT if cosine > dead_zone else INVERSE if cosine < -dead_zone else STAY
    return Decision(choice, cosine)


def record(choice: int, recorder: Recorder, *, is_finite: bool) -> None:
    """Record a decision, to show the share of each, and of those on numbers that are not finite."""
    for kind, name in NAMES.items():
        recorder.add(f"share {name}", torch.tensor([float(choice == kind)]))
    recorder.add(NOT_FINITE, torch.tensor([float(not is_finite)]))


def flat(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    """Join gradients to one vector, float32 at least; a missing one is 0."""
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).reshape(-1).to(_exact(p.dtype))
            for g, p in zip(gradients, parameters, strict=True)
        ]
    )


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class GradientSketch:
    """A count-sketch of gradients: linear, so the sum of sketches is the sketch of the sum.

    Numbers at equal places modulo the size are added up under random signs. Inner products of
    sketches are unbiased, with a relative error of about sqrt(2 / size).

    Source: Charikar, Chen, Farach-Colton, "Finding Frequent Items in Data Streams", ICALP 2002.
    Differs from the source: buckets are taken in turn, which needs no index; the signs alone make
    the inner product unbiased.

    Args:
        size: Numbers of a sketch.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._signs: list[Tensor] = []

    def of(self, gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
        """Sketch a gradient, float32 ``[size]``."""
        if not self._signs:
            self._draw_signs(parameters)
        sums = torch.zeros(self.size, dtype=torch.float32, device=parameters[0].device)
        for gradient, sign in zip(gradients, self._signs, strict=True):
            if gradient is not None:
                whole = len(sign) // self.size * self.size
                parts = gradient.reshape(-1).split([whole, len(sign) - whole])
                signs = sign.split([whole, len(sign) - whole])
                rows = zip(
                    *(part.view(-1, self.size).split(_ROWS) for part in (parts[0], signs[0])),
                    strict=True,
                )
                for row, row_sign in rows:  # in parts that stay in the cache
                    sums += (row.to(torch.float32) * row_sign).sum(0)
                sums[: len(signs[1])] += parts[1].to(torch.float32) * signs[1]
        return sums

    def _draw_signs(self, parameters: Sequence[Tensor]) -> None:
        generator = torch.Generator().manual_seed(_SKETCH_SEED)
        for held in parameters:
            bits = torch.randint(0, 2, (held.numel(),), generator=generator, dtype=torch.int8)
            self._signs.append((2 * bits - 1).to(held.device, torch.float32))


class FirstOrder:
    """Combines a supervised, a held-out and an unlabeled loss by the sign of an inner product.

    Each loss is differentiated once, on the graph of one forward pass; the losses that it returns
    carry these gradients.

    Args:
        config: Settings of the decision.
        is_sketched: Whether ranks exchange sketches rather than gradients.
    """

    def __init__(self, config: DecidesByGradient, *, is_sketched: bool) -> None:
        self.config = config
        self.sketch = GradientSketch(config.sketch_size) if is_sketched else None
        least = 2.0 / config.sketch_size**0.5 if is_sketched else 0.0
        self.dead_zone = max(config.dead_zone, least)

    def combined(
        self,
        held_out: Tensor,
        unlabeled: Tensor,
        parameters: Sequence[Tensor],
        recorder: Recorder,
        ratio: float,
    ) -> tuple[Tensor, Tensor]:
        """Decide, and return both losses as parts of the loss to minimize.

        Args:
            held_out: Sum of the held-out loss of this rank.
            unlabeled: Sum of the unlabeled loss of this rank.
            parameters: What the losses are differentiated by.
            recorder: Receives the decision.
            ratio: Weight of the unlabeled loss.

        Returns:
            The held-out loss, which carries the gradient of both, and the value of the unlabeled
            loss times its weight and sign.
        """
        of_unlabeled = _gradients(unlabeled, parameters)
        of_held_out = _gradients(held_out, parameters)
        both = [self._reduced(found, parameters) for found in (of_unlabeled, of_held_out)]
        one, other = sum_over_ranks(torch.stack(both)).double()
        dot, of_one, of_other = torch.stack([one @ other, one @ one, other @ other]).tolist()
        choice, cosine = decide(dot, of_one, of_other, self.dead_zone)
        is_finite = math.isfinite(cosine)
        record(choice, recorder, is_finite=is_finite)
        recorder.add(COSINE, torch.tensor([cosine] if is_finite else []))
        weight = choice * ratio
        pairs = zip(of_held_out, of_unlabeled, strict=True)
        joined = [_weighted_sum(*pair, weight) for pair in pairs]
        found: Tensor = _GivenGradient.apply(held_out.detach(), joined, *parameters)  # type: ignore[no-untyped-call]
        value = unlabeled.detach()
        return found, value * weight if choice else torch.zeros_like(value)

    def extra_bytes(self, num_parameters: int) -> int:
        """Return the bytes of what a rank contributes to the exchange of a step."""
        return 2 * _BYTES * (self.sketch.size if self.sketch else num_parameters)

    def _reduced(self, found: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
        return self.sketch.of(found, parameters) if self.sketch else flat(found, parameters)


def _gradients(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    if not loss.requires_grad:
        return (None,) * len(parameters)
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)


class _GivenGradient(torch.autograd.Function):
    """A value whose gradient is already known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], *_: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, by_value: Tensor) -> tuple[Any, ...]:
        scaled = (None if g is None else g * by_value.to(g.dtype) for g in ctx.gradients)
        return None, None, *scaled


def _weighted_sum(one: Tensor | None, other: Tensor | None, weight: float) -> Tensor | None:
    """Add to one gradient another times a weight.

    Not in place: autograd may return one tensor for two parameters.
    """
    if other is None or weight == 0.0:
        return one
    return other * weight if one is None else torch.add(one, other, alpha=weight)


class Exact:
    """Tries both directions and neither on the held-out loss, and moves the parameters there.

    Source: "Inverse Learning with Extremely Sparse Feedback for Recommendation" (arXiv 2311.08302).
    Differs from the source: the supervised update that follows is that of the optimizer, whose
    state is kept; sums are float64.

    Args:
        rate: Size of the step that is tried.
        by_sign: Whether it goes along the signs of the gradient.
    """

    def __init__(self, rate: float, *, by_sign: bool) -> None:
        self.rate, self.by_sign = rate, by_sign

    def move(
        self,
        unlabeled: Tensor,
        num_unlabeled: int,
        held_out: Callable[[], tuple[Tensor, int]],
        parameters: Sequence[Tensor],
        recorder: Recorder,
    ) -> None:
        """Move the parameters in place to the best of the three.

        Args:
            unlabeled: Sum of the unlabeled loss of this rank.
            num_unlabeled: Number of pairs in it.
            held_out: Returns the sum of this rank's held-out loss at the current parameters, and
                the number of pairs in it.
            parameters: What is moved.
            recorder: Receives the decision.
        """
        found = flat(_gradients(unlabeled, parameters), parameters)
        count = found.new_tensor([float(num_unlabeled)])
        total = sum_over_ranks(torch.cat([found, count]))
        step = total[:-1] / total[-1].clamp(min=1.0)
        step = self.rate * (step.sign() if self.by_sign else step)
        sizes = [held.numel() for held in parameters]
        steps = [
            part.view_as(held) for part, held in zip(step.split(sizes), parameters, strict=True)
        ]
        with torch.no_grad():
            origin = [held.clone() for held in parameters]
            sums, number = [], 0
            for choice in (DIRECT, INVERSE, STAY):
                _place(parameters, origin, steps, choice)
                loss, number = held_out()
                sums.append(loss.double())
            mine = torch.stack([*sums, sums[0].new_tensor(float(number))])
            direct, inverse, stay, num_held_out = sum_over_ranks(mine).tolist()
            is_finite = all(map(math.isfinite, (direct, inverse, stay)))
            can_choose = is_finite and num_held_out > 0
            choice = best_choice(direct, inverse, stay) if can_choose else STAY
            _place(parameters, origin, steps, choice)
        record(choice, recorder, is_finite=is_finite)

    @staticmethod
    def extra_bytes(num_parameters: int) -> int:
        """Return the bytes of what a rank contributes to the exchanges of a step."""
        return _BYTES * (num_parameters + 1) + 4 * 2 * _BYTES


def best_choice(direct: float, inverse: float, stay: float) -> int:
    """Return the choice with the lowest held-out loss; ties and NaN favor staying, then inverse."""
    if direct < inverse and direct < stay:
        return DIRECT
    return INVERSE if inverse < stay else STAY


def _place(
    parameters: Sequence[Tensor], origin: Sequence[Tensor], steps: Sequence[Tensor], choice: int
) -> None:
    """Set the parameters to where a choice leads."""
    for held, start, step in zip(parameters, origin, steps, strict=True):
        held.copy_(start - choice * step if choice else start)  # a step may be NaN
