"""Parameters with a role: what engine, optimizer and warm start must know of each.

The role is set where the parameter is made, so that a new model tells it in one place.
"""

from typing import NamedTuple

import torch
from torch import nn


class Role(NamedTuple):
    """What a parameter is for."""

    encoder: bool = False
    """A table with one row per item that `Model.encode` reads."""

    decoder: bool = False
    """A table with one row per item that `Model.decode_rows` reads."""

    shared: bool = False
    """Read by `Model.decode_rows` for all items alike."""

    decayed: bool = False
    """Weight decay is meant for it."""

    accumulated: bool = False
    """Set to 0 at the end of an epoch, after its value was added to a buffer."""


class Roles(NamedTuple):
    """The parameters of a model by role, each with its name."""

    encoder: dict[str, nn.Parameter]
    decoder: dict[str, nn.Parameter]
    shared: dict[str, nn.Parameter]
    decayed: dict[str, nn.Parameter]
    accumulated: dict[str, nn.Parameter]


def parameter(*shape: int, role: Role = Role()) -> nn.Parameter:  # noqa: B008  immutable
    """Make a parameter whose values are still to be set.

    Args:
        *shape: Its size.
        role: What it is for.

    Returns:
        The parameter.
    """
    return with_role(nn.Parameter(torch.empty(*shape)), role)


def with_role(made: nn.Parameter, role: Role) -> nn.Parameter:
    """Set the role of a parameter, e.g. of a layer of torch, and return it."""
    made.role = role  # type: ignore[attr-defined]
    return made


def role_of(held: nn.Parameter) -> Role:
    """Return the role of a parameter; none of them where it has not been set."""
    found: Role = getattr(held, "role", Role())
    return found


def roles_of(module: nn.Module) -> Roles:
    """Collect the parameters of a model by role."""
    named = list(module.named_parameters())
    return Roles(*({n: p for n, p in named if getattr(role_of(p), kind)} for kind in Role._fields))
