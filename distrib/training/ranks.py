"""Tensors that the ranks of a step exchange; on one process they stay as they are."""

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor


def is_alone() -> bool:
    """Return whether this process trains alone."""
    is_up = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not is_up or torch.distributed.get_world_size() == 1


def gather_rows(value_N: Tensor) -> Tensor:
    """Join a tensor with those of all ranks along the first dimension, in the order of ranks.

    Args:
        value_N: Of this rank; ranks may differ in the first dimension only. Every rank must call.

    Returns:
        The same on all ranks, without gradient.
    """
    value_N = value_N.detach().contiguous()
    if is_alone():
        return value_N
    world_size = torch.distributed.get_world_size()
    length = torch.tensor([len(value_N)], device=value_N.device)
    lengths = [torch.zeros_like(length) for _ in range(world_size)]
    torch.distributed.all_gather(lengths, length)
    sizes = [int(each) for each in lengths]
    padding = [0, 0] * (value_N.dim() - 1) + [0, max(sizes) - len(value_N)]
    padded = F.pad(value_N, padding)
    parts = [torch.empty_like(padded) for _ in range(world_size)]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum over ranks of tensors of equal shape, detached; every rank must call."""
    values = values.detach().clone()
    if not is_alone():
        torch.distributed.all_reduce(values)
    return values
