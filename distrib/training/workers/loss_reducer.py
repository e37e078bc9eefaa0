"""What ranks must agree on: losses, whether they are finite, and what to do next."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from distrib.config import JsonObject
from distrib.training.engines.base import Update

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
    """Of the loss terms, of what the objective recorded, and of the gradient norm, since the last
    agreement."""


class LossReducer:
    """Sums of an epoch's loss terms, float64; updates count once all ranks agree on them.

    One collective for many steps: reading a loss back would stall the device at every step.
    """

    def __init__(self, device: torch.device, *, max_skipped_updates: int) -> None:
        self.device = device
        self.max_skipped_updates = max_skipped_updates
        self.num_skipped = 0
        """Consecutive updates whose loss was not finite and that fp16 skipped."""

        self._pending: list[tuple[Update, int]] = []
        self.clear()

    def clear(self) -> None:
        """Start an epoch."""
        self.totals: dict[str, float] = {}
        self.recorded: dict[str, tuple[float, float]] = {}
        """Over all ranks: sum and number of entries by name."""

        self.counts: dict[str, int] = {}
        """Users by term: not every update has each, where phases take turns."""

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
        names = sorted({name for update, _ in self._pending for name in update.terms})
        shown = sorted({name for update, _ in self._pending for name in update.recorded})
        rows = [self._row(update, names, shown) for update, _ in self._pending]
        head = torch.tensor(list(flags.values()), dtype=torch.float64, device=self.device)
        mine = torch.cat([head, *rows])
        torch.distributed.all_reduce(everyone := mine.clone())
        numbers = everyone.tolist()
        own = mine.tolist()
        width, first = len(names) + 2 * len(shown), len(flags)
        non_finite, means = None, dict.fromkeys([*names, NORM], 0.0)
        recorded = dict.fromkeys(shown, (0.0, 0.0))
        counted = 0
        for place, (update, count) in enumerate(self._pending):
            start = first + place * width
            norm = float(update.gradient_norm)
            sums = dict(zip(names, numbers[start:], strict=False))
            wrong = _first_wrong(sums, norm, update.is_applied)
            self.num_skipped = self.num_skipped + 1 if wrong else 0
            if wrong and (update.is_applied or self.num_skipped > self.max_skipped_updates):
                non_finite = NonFinite(len(self._pending) - 1 - place, *wrong)
                break
            if wrong:
                continue
            counted += count
            rest = numbers[start + len(names) : start + width]
            for name, total, entries in zip(shown, rest[::2], rest[1::2], strict=True):
                recorded[name] = _sum(recorded[name], (total, entries))
            for name, value in zip(names, own[start:], strict=False):
                self.totals[name] = self.totals.get(name, 0.0) + value
                means[name] += sums[name]
            for name in update.terms:
                self.counts[name] = self.counts.get(name, 0) + count
            means[NORM] += norm * count if math.isfinite(norm) else 0.0
        self.count += counted
        self._pending = []
        means = {name: value / max(1, counted) for name, value in means.items()}
        for name, sums_of_name in recorded.items():
            self.recorded[name] = _sum(self.recorded.get(name, (0.0, 0.0)), sums_of_name)
        means |= _means(recorded)
        return Reduced(dict(zip(flags, numbers[:first], strict=True)), non_finite, means)

    def mean_losses(self) -> dict[str, float]:
        """Return the mean loss terms of the epoch so far; every rank must call."""
        names = sorted(self.totals)
        sums = torch.tensor(
            [self.totals[n] for n in names], dtype=torch.float64, device=self.device
        )
        torch.distributed.all_reduce(sums)
        means = zip(names, sums.tolist(), strict=True)
        return {name: total / max(1, self.counts.get(name, 0)) for name, total in means}

    def mean_recorded(self) -> dict[str, float]:
        """Return the means of what the objective recorded in the epoch; equal on all ranks."""
        return _means(self.recorded)

    def to_json(self) -> JsonObject:
        """Return this rank's part; nothing may be pending."""
        return {
            "totals": self.totals,
            "recorded": self.recorded,
            "num_users": self.count,
            "counts": self.counts,
            "skipped": self.num_skipped,
        }

    def take(self, parts: list[Mapping[str, Any]], rank: int, world_size: int) -> None:
        """Restore the parts of a checkpoint: each rank its own, or rank 0 all after a resize."""
        held = [parts[rank]] if len(parts) == world_size else (parts if rank == 0 else [])
        self.clear()
        for part in held:
            for name, value in part["totals"].items():
                self.totals[name] = self.totals.get(name, 0.0) + value
        for name in parts[0]["totals"]:
            self.totals.setdefault(name, 0.0)
        self.recorded = {name: tuple(sums) for name, sums in parts[0].get("recorded", {}).items()}
        self.count, self.num_skipped = parts[0]["num_users"], parts[0]["skipped"]
        before = dict.fromkeys(self.totals, self.count)  # of checkpoints without counts
        self.counts = dict(parts[0].get("counts", before))

    def _row(self, update: Update, names: list[str], shown: list[str]) -> Tensor:
        """Return the sums of an update: 0 for terms of other phases."""
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        terms = [update.terms.get(name, zero).double().to(self.device) for name in names]
        pairs = [update.recorded.get(name, zero.expand(2)).to(self.device) for name in shown]
        return torch.cat([torch.stack(terms), *pairs]) if terms else zero[None][:0]


def _sum(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return one[0] + other[0], one[1] + other[1]


def _means(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    return {name: total / entries for name, (total, entries) in sums.items() if entries}


def _first_wrong(
    sums: Mapping[str, float], norm: float, is_applied: bool
) -> tuple[str, float] | None:
    """Return the first non-finite value; the norm of a skipped fp16 update is exempt."""
    for name, value in sums.items():
        if not math.isfinite(value):
            return name, value
    return (NORM, norm) if is_applied and not math.isfinite(norm) else None
