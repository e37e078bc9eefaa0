"""Float32 masters of parameters that compute in another precision."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Masters:
    """What the optimizer updates: float32 copies of a model's parameters, or the parameters.

    Args:
        step: Its parameters are float32; they and its buffers compute in ``dtype`` afterwards.
        dtype: A floating-point type.
    """

    def __init__(self, step: nn.Module, dtype: torch.dtype) -> None:
        self._masters = list(step.parameters())
        self._are_copies = dtype != torch.float32
        if self._are_copies:
            self._masters = [nn.Parameter(p.detach().clone()) for p in self._masters]
            step.to(dtype)
        self._parameters = list(step.parameters())
        # Kept, since fresh pages for each update would cost more than the copy into them.
        self._gradients = [torch.empty_like(m) if self._are_copies else m for m in self._masters]
        self._place = {id(parameter): n for n, parameter in enumerate(self._parameters)}
        self._by_master = {id(master): n for n, master in enumerate(self._masters)}

    def of(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return the master of a parameter."""
        return self._masters[self._place[id(parameter)]]

    @property
    def all(self) -> list[nn.Parameter]:
        """All masters, in the order of the parameters."""
        return self._masters

    def clear(self) -> None:
        """Drop all gradients."""
        for held in (*self._parameters, *self._masters):
            held.grad = None

    def collect(self) -> None:
        """Add the parameters' gradients to their masters', and drop them."""
        if not self._are_copies:
            return
        fresh: tuple[list[Tensor], list[Tensor]] = [], []
        more: tuple[list[Tensor], list[Tensor]] = [], []
        for parameter, master, kept in zip(
            self._parameters, self._masters, self._gradients, strict=True
        ):
            if parameter.grad is None:
                continue
            pair = fresh if master.grad is None else more
            pair[0].append(kept)
            pair[1].append(parameter.grad)
            master.grad, parameter.grad = kept, None
        if fresh[0]:
            torch._foreach_copy_(*fresh)
        if more[0]:
            torch._foreach_add_(*more)

    def with_gradient(self) -> list[nn.Parameter]:
        """Return the masters that have a gradient."""
        return [master for master in self._masters if master.grad is not None]

    def publish(self, masters: Sequence[nn.Parameter]) -> None:
        """Copy masters into the parameters that compute."""
        if self._are_copies and masters:
            parameters = [self._parameters[self._by_master[id(master)]].data for master in masters]
            torch._foreach_copy_(parameters, [master.data for master in masters])
