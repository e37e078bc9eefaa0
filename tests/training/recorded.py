"""A `Runner` that does on a CPU what a CUDA graph does: fixed shapes, addresses and numbers.

It records the operations of a computation, below autograd, and makes the same ones again: each
writes to the tensor that it wrote to when it was recorded, and reads what was read then. A number
that was a Python value stays what it was, and a value that the host reads is refused.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.device.stand_in import values_of, waits


def _numbers(tensor):
    """What a tensor holds, strided and on the CPU."""
    held = values_of(tensor)
    return held if held.layout == torch.strided else held.values()


class _Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.steps = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, result))
        return result

    def play(self):
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            for step in self.steps:
                _repeat(*step)


def _repeat(func, args, kwargs, result):
    again = tree_leaves(func(*args, **kwargs))
    pairs = zip(tree_leaves(result), again, strict=True)
    for old, new in (map(_numbers, pair) for pair in pairs if isinstance(pair[0], Tensor)):
        # The same place: a view of an argument, or an argument that was changed.
        if old.data_ptr() != new.data_ptr():
            old.copy_(new)


class Recorded:
    """See the module; the first call of a shape runs as it is."""

    def __init__(self):
        self.tapes, self.seen, self.replays = {}, set(), 0

    def __call__(self, shape, compute):
        if shape in self.tapes:
            tape, result = self.tapes[shape]
            tape.play()
            self.replays += 1
            return result
        if shape not in self.seen:
            self.seen.add(shape)
            return compute()
        before = sum(waits.values())
        with _Tape() as tape:
            result = compute()
        if sum(waits.values()) > before:
            raise RuntimeError(f"a graph cannot hold waits: {waits}")
        self.tapes[shape] = tape, result
        return result

    def forget(self):
        self.tapes.clear()
