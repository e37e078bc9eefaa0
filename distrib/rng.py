"""Counter-based random numbers: the same for a user on any rank and in any batch."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 2**64 / golden ratio, as a signed 64-bit integer
_FIRST = -4658895280553007687
_SECOND = -7723592293110705685
_WORD_BYTES = 8
_MASK_64 = (1 << 64) - 1


class CounterRng(NamedTuple):
    """The random streams of one epoch of one run.

    Drawing is a pure function of (key, stream, counters): no state, so two ranks draw what one
    would, and a resumed run draws what an uninterrupted one would.

    Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014
    (the finalizer of SplitMix64).
    """

    key: int | Tensor
    """64 bits; an int64 tensor of no dimensions where an update is recorded once and run again."""

    @classmethod
    def of(cls, seed: int, epoch: int) -> "CounterRng":
        """Make the random streams of one epoch."""
        return cls(
            _scramble(_scramble(seed & _MASK_64) ^ ((epoch + 1) * 0x9E3779B97F4A7C15 & _MASK_64))
        )

    def uniform(self, stream: int, *counters: Tensor) -> Tensor:
        """Draw from [0, 1), one number for each (broadcast) combination of the counters.

        Args:
            stream: Distinguishes the uses within one model.
            *counters: Integer tensors that broadcast together, e.g. user and item.

        Returns:
            float32, of the broadcast shape.
        """
        bits = self._bits(stream, counters)
        return ((bits >> 40) & 0xFFFFFF).to(torch.float32) / float(1 << 24)

    def below(self, stream: int, limit: int, *counters: Tensor, attempt: int = 0) -> Tensor:
        """Draw integers from 0 to ``limit`` - 1, by 48 bits: 24 miss the rare of a million.

        Args:
            stream: Distinguishes the uses within one model.
            limit: At least 1.
            *counters: As in `uniform`.
            attempt: Another one draws other integers.

        Returns:
            int64, of the broadcast shape.
        """
        halves = (counters[0].new_tensor(2 * attempt + half) for half in (0, 1))
        high, low = (self.uniform(stream, *counters, half).double() for half in halves)
        return ((high + low / (1 << 24)) * limit).long()

    def normal(self, stream: int, *counters: Tensor) -> Tensor:
        """Draw standard normal numbers (Box-Muller), with counters as in `uniform`."""
        bits = self._bits(stream, counters)
        radius = (((bits >> 40) & 0xFFFFFF).to(torch.float32) + 1.0) / float(1 << 24)
        angle = ((bits >> 16) & 0xFFFFFF).to(torch.float32) * (2.0 * math.pi / float(1 << 24))
        return torch.sqrt(-2.0 * torch.log(radius)) * torch.cos(angle)

    def bytes(self, stream: int, width: int, *counters: Tensor) -> Tensor:
        """Draw bytes, at an eighth of the cost of `uniform`.

        Args:
            stream: Distinguishes the uses within one model.
            width: Bytes for each combination of the counters.
            *counters: As in `uniform`.

        Returns:
            uint8, of the broadcast shape and ``width``.
        """
        word_W = torch.arange(-(-width // _WORD_BYTES), device=counters[0].device)
        bits = self._bits(stream, (*(counter[..., None] for counter in counters), word_W))
        return bits.view(torch.uint8)[..., :width]

    def _bits(self, stream: int, counters: tuple[Tensor, ...]) -> Tensor:
        stream_bits = stream * 0xD1342543DE82EF95 & _MASK_64
        if isinstance(self.key, Tensor):
            state = _mix(self.key ^ signed(stream_bits))
        else:
            start = signed(_scramble(self.key ^ stream_bits))
            state = torch.full((), start, dtype=torch.int64, device=counters[0].device)
        for counter in counters:
            state = _mix(state ^ (counter.to(torch.int64) * _GOLDEN + 1))
        return state


def _mix(state: Tensor) -> Tensor:
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, places: int) -> Tensor:
    return (state >> places) & ((1 << (64 - places)) - 1)  # torch shifts arithmetically


def _scramble(value: int) -> int:
    value = ((value ^ (value >> 30)) * (_FIRST & _MASK_64)) & _MASK_64
    value = ((value ^ (value >> 27)) * (_SECOND & _MASK_64)) & _MASK_64
    return value ^ (value >> 31)


def signed(value: int) -> int:
    """Return 64 bits as torch holds them, in a signed integer."""
    return value - (1 << 64) if value >= 1 << 63 else value
