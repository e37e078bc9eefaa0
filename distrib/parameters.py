"""Parameter roles, which engine, optimizer and warm start depend on.

The role is set where the parameter is created, so that a new model declares it in one place.
"""

from typing import NamedTuple

import torch
from torch import nn


class ParameterRole(NamedTuple):
    """How a parameter is used."""

    encoder: bool = False
    """A table with one row per item that `Model.encode` reads."""

    decoder: bool = False
    """A table with one row per item that `Model.decode_rows` reads."""

    shared: bool = False
    """Read by `Model.decode_rows` for all items alike."""

    decay: float = 0.0
    """Times the optimizer's weight decay is the parameter's."""

    accumulated: bool = False
    """Set to 0 at the end of an epoch, after its value was added to a buffer."""


class Roles(NamedTuple):
    """The parameters of a model by role, each with its name."""

    encoder: dict[str, nn.Parameter]
    decoder: dict[str, nn.Parameter]
    shared: dict[str, nn.Parameter]
    decay: dict[str, nn.Parameter]
    accumulated: dict[str, nn.Parameter]


def parameter(*shape: int, role: ParameterRole = ParameterRole()) -> nn.Parameter:  # noqa: B008  immutable
    """Make an uninitialized parameter.

    Args:
        *shape: Its size.
        role: Its role.

    Returns:
        The parameter.
    """
    return with_role(nn.Parameter(torch.empty(*shape)), role)


def with_role(made: nn.Parameter, role: ParameterRole) -> nn.Parameter:
    """Set the role of a parameter, e.g. of a layer of torch, and return it."""
    made.role = role  # type: ignore[attr-defined]
    return made


def take_over(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy a tensor of the same shape, in place; raise `RuntimeError` for another shape."""
    if target.shape != source.shape:
        raise RuntimeError(f"{list(source.shape)} is not {list(target.shape)}")
    with torch.no_grad():
        target.copy_(source)


def role_of(held: nn.Parameter) -> ParameterRole:
    """Return the role of a parameter; an empty role if none was set."""
    found: ParameterRole = getattr(held, "role", ParameterRole())
    return found


def roles_of(module: nn.Module) -> Roles:
    """Collect the parameters of a model by role."""
    named = list(module.named_parameters())
    return Roles(
        *({n: p for n, p in named if getattr(role_of(p), kind)} for kind in ParameterRole._fields)
    )
