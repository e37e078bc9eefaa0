"""Copies between the host and a device that make the host wait as little as possible.

A copy from memory that the system may move makes the host wait until it is done, as does every
value that the host reads. Kernels are launched in advance only while the host does neither.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")


def sent_positions(part: Tensor, device: torch.device | str) -> Tensor:
    """Return positions of items on a device; to a GPU only half of their bytes are copied.

    Args:
        part: int64, of items, of which there are fewer than 2^31.
        device: Where it is needed.

    Returns:
        int64.
    """
    if torch.device(device).type == "cuda" and not part.is_cuda:
        return sent(part.int(), device).long()
    return sent(part, device)


def sent(part: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on a device; from the host to a GPU without waiting for the copy.

    Args:
        part: Any tensor.
        device: Where it is needed.

    Returns:
        The tensor itself if it is there already.
    """
    to_gpu = torch.device(device).type == "cuda" and not part.is_cuda
    return part.pin_memory().to(device, non_blocking=True) if to_gpu else part.to(device)


def fetched(parts: T) -> T:
    """Return tensors on the host, with one wait for all of them.

    Args:
        parts: A tensor, None, or a tuple of these, named or not, at any depth.

    Returns:
        The same, on the host.
    """
    crossing: list[bool] = []

    def copied(part: Tensor) -> Tensor:
        crossing.append(part.is_cuda)
        return part.to("cpu", non_blocking=part.is_cuda)

    found = each(parts, copied)
    if any(crossing):
        torch.cuda.current_stream().synchronize()
    return found


def each(parts: T, change: Callable[[Tensor], Tensor]) -> T:
    """Change every tensor inside of a tuple, named or not, at any depth.

    Args:
        parts: A tensor, a tuple, or anything else, which stays.
        change: What becomes of a tensor.

    Returns:
        The same with other tensors.
    """
    return cast("T", _each(parts, change))


def _each(part: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(part, Tensor):
        return change(part)
    if not isinstance(part, tuple):
        return part
    inside = [_each(inner, change) for inner in part]
    return type(part)(*inside) if hasattr(part, "_fields") else tuple(inside)


@lru_cache(maxsize=256)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers on a device, where they are kept: sending them again would make it wait.

    Args:
        values: The numbers.
        dtype: Their type.
        device: Where they are needed.

    Returns:
        One dimension; not to be changed.
    """
    with torch.inference_mode(mode=False):  # so that training can use them, too
        return torch.tensor(values, dtype=dtype, device=device)
