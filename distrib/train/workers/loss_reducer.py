"""What ranks must agree on: losses, whether they are finite, and what to do next."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed

from distrib.config import JsonObject
from distrib.train.engines.base import Update

NORM = "gradient norm"


class NonFinite(NamedTuple):
    """The first number that was not finite."""

    steps_ago: int
    """Updates made after it."""

    term: str
    value: float


class Reduced(NamedTuple):
    """The same on all ranks."""

    flags: dict[str, float]
    """Sums over ranks."""

    non_finite: NonFinite | None
    means: dict[str, float]
    """Of the loss terms, and of the gradient norm, since the last agreement."""


class LossReducer:
    """Sums of an epoch's loss terms, float64; updates count once all ranks agree on them.

    One collective for many steps: reading a loss back would stall the device at every step.
    """

    def __init__(self, device: torch.device, *, max_skipped: int) -> None:
        self.device = device
        self.max_skipped = max_skipped
        self.num_skipped = 0
        """Consecutive updates whose loss was not finite and that fp16 skipped."""

        self._pending: list[tuple[Update, int]] = []
        self.clear()

    def clear(self) -> None:
        """Start an epoch."""
        self.totals: dict[str, float] = {}
        self.count = 0

    def add(self, update: Update, count: int) -> None:
        """Add an update, without waiting for it to be computed."""
        self._pending.append((update, count))

    def agree(self, **flags: float) -> Reduced:
        """All-reduce the updates added since the last call, and the flags; every rank must call.

        Args:
            **flags: Values of this rank; all ranks use the same names.

        Returns:
            Values that are equal on all ranks.
        """
        names = sorted(self._pending[0][0].terms) if self._pending else []
        rows = [
            torch.stack([update.terms[name].double() for name in names]).to(self.device)
            for update, _ in self._pending
        ]
        head = torch.tensor(list(flags.values()), dtype=torch.float64, device=self.device)
        mine = torch.cat([head, *rows])
        torch.distributed.all_reduce(everyone := mine.clone())
        numbers = everyone.tolist()
        own = mine.tolist()
        width, first = len(names), len(flags)
        non_finite, means = None, dict.fromkeys([*names, NORM], 0.0)
        counted = 0
        for place, (update, count) in enumerate(self._pending):
            start = first + place * width
            norm = float(update.gradient_norm)
            sums = dict(zip(names, numbers[start : start + width], strict=True))
            wrong = _first_wrong(sums, norm, update.is_applied)
            self.num_skipped = self.num_skipped + 1 if wrong else 0
            if wrong and (update.is_applied or self.num_skipped > self.max_skipped):
                non_finite = NonFinite(len(self._pending) - 1 - place, *wrong)
                break
            if wrong:
                continue
            counted += count
            for name, value in zip(names, own[start : start + width], strict=True):
                self.totals[name] = self.totals.get(name, 0.0) + value
                means[name] += sums[name]
            means[NORM] += norm * count if math.isfinite(norm) else 0.0
        self.count += counted
        self._pending = []
        means = {name: value / max(1, counted) for name, value in means.items()}
        return Reduced(dict(zip(flags, numbers[:first], strict=True)), non_finite, means)

    def mean_losses(self) -> dict[str, float]:
        """Return the mean loss terms of the epoch so far; every rank must call."""
        names = sorted(self.totals)
        sums = torch.tensor(
            [self.totals[n] for n in names], dtype=torch.float64, device=self.device
        )
        torch.distributed.all_reduce(sums)
        return dict(zip(names, (sums / max(1, self.count)).tolist(), strict=True))

    def to_json(self) -> JsonObject:
        """Return this rank's part; nothing may be pending."""
        return {"totals": self.totals, "num_users": self.count, "skipped": self.num_skipped}

    def take(self, parts: list[Mapping[str, Any]], rank: int, world_size: int) -> None:
        """Restore the parts of a checkpoint: each rank its own, or rank 0 all after a resize."""
        held = [parts[rank]] if len(parts) == world_size else (parts if rank == 0 else [])
        self.clear()
        for part in held:
            for name, value in part["totals"].items():
                self.totals[name] = self.totals.get(name, 0.0) + value
        for name in parts[0]["totals"]:
            self.totals.setdefault(name, 0.0)
        self.count, self.num_skipped = parts[0]["num_users"], parts[0]["skipped"]


def _first_wrong(
    sums: Mapping[str, float], norm: float, is_applied: bool
) -> tuple[str, float] | None:
    """Return the first non-finite value; the norm of a skipped fp16 update is exempt."""
    for name, value in sums.items():
        if not math.isfinite(value):
            return name, value
    return (NORM, norm) if is_applied and not math.isfinite(norm) else None
