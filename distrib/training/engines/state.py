"""Slices of parameters and optimizer state: saved from an engine and restored into it."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from distrib.checkpoint.state import VALUE, SavedState, StatePiece
from distrib.models.base import Model

Stretch = tuple[int, int, int]
"""Start of a slice in the flat parameter, its start in the tensor that holds it, its length."""


def piece_of(
    optimizer: torch.optim.Optimizer, name: str, held: Tensor, stretch: Stretch
) -> StatePiece:
    """Describe a slice of a parameter, given the tensor that the optimizer updates.

    Args:
        optimizer: A plain torch optimizer, which keys its state by tensor.
        name: Name of the parameter in the model.
        held: float32; holds the slice, and maybe slices of other parameters.
        stretch: Which slice.

    Returns:
        Views of its value and of the optimizer's state.
    """
    start, offset, length = stretch
    state = optimizer.state.get(held, {})
    flat = {VALUE: held} | {k: v for k, v in state.items() if _is_like(v, held)}
    return StatePiece(
        name,
        start,
        {k: v.detach().reshape(-1)[offset : offset + length] for k, v in flat.items()},
        {k: float(v) for k, v in state.items() if not _is_like(v, held) and v is not None},
    )


def take_up(
    optimizer: torch.optim.Optimizer, saved: SavedState, name: str, held: Tensor, stretch: Stretch
) -> None:
    """Write a saved slice into the tensor that the optimizer updates; see `piece_of`."""
    start, offset, length = stretch
    state = optimizer.state[held]
    for kind in [VALUE, *saved.kinds(name)]:
        if kind != VALUE and kind not in state:
            state[kind] = torch.zeros_like(held, requires_grad=False)
        target = held if kind == VALUE else state[kind]
        part = target.data.view(-1)[offset : offset + length]
        part.copy_(saved.read(name, kind, start, length))
    place = held.device if optimizer.defaults.get("fused") else "cpu"  # where torch keeps counts
    for kind, value in saved.scalars(name).items():
        state[kind] = torch.tensor(value, dtype=torch.float32, device=place)


def _is_like(value: Any, held: Tensor) -> bool:
    return torch.is_tensor(value) and value.shape == held.shape and value.dim() > 0


def buffer_pieces(model: Model) -> Iterator[StatePiece]:
    """Yield the buffers of the model, each whole."""
    for name, buffer in model.named_buffers():
        yield StatePiece(name, 0, {VALUE: buffer.detach().float().reshape(-1)}, {})


def restore_buffers(model: Model, saved: SavedState) -> None:
    """Restore what `buffer_pieces` yielded."""
    for name, buffer in model.named_buffers():
        value = saved.read(name, VALUE, 0, buffer.numel())
        buffer.copy_(value.view(buffer.shape))


@torch.no_grad()
def make_alike(model: nn.Module, device: torch.device) -> None:
    """Give all ranks the parameters and buffers of the first.

    The same seed draws other numbers on another kind of processor, and an update that each rank
    makes for itself keeps what differs.

    Args:
        model: Of the same shapes on each rank, which must all call.
        device: Of the collectives; one tensor at a time is copied there.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        of_first = tensor.to(device)
        torch.distributed.broadcast(of_first, src=0)
        tensor.copy_(of_first)
