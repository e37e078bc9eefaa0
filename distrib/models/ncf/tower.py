"""A tower of layers over pairs of embeddings, decoded in blocks."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distrib.parameters import ParameterRole, with_role

_BLOCK_FLOATS = 1 << 19
"""Hidden units held at a time when all items are decoded for some users."""


def shared(layer: nn.Linear) -> nn.Linear:
    """Set the roles of a layer that all pairs share."""
    for name, held in layer.named_parameters():
        with_role(held, ParameterRole(shared=True, decay=float(name == "weight")))
    return layer


class Tower(nn.Module):
    """ReLU layers over the concatenation of a user's and an item's embedding.

    The first layer is split into the parts of user and item, so that neither the concatenation nor
    users x items x width is ever built.

    Source: He et al., "Neural Collaborative Filtering", WWW 2017, eq. 10.

    Args:
        latent_width: Dimensions of each embedding.
        widths: Of the layers.
    """

    def __init__(self, latent_width: int, widths: Sequence[int]) -> None:
        super().__init__()
        sizes = [2 * latent_width, *widths]
        self.layers = nn.ModuleList(
            shared(nn.Linear(size, width)) for size, width in pairwise(sizes)
        )
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.latent_width = latent_width

    def pairs(self, user_NZ: Tensor, item_NZ: Tensor) -> Tensor:
        """Return the last hidden layer of pairs, ``[N, H]``."""
        return self._rest(self._of_users(user_NZ) + self._of_items(item_NZ))

    def grid(self, user_BZ: Tensor, item_IZ: Tensor, head_H: Tensor) -> Tensor:
        """Return the last hidden layer times a head for all users and items, ``[B, I]``."""
        of_user_BH, of_item_IH = self._of_users(user_BZ), self._of_items(item_IZ)
        size = max(1, _BLOCK_FLOATS // max(of_item_IH.numel(), 1))
        parts = [self._rest(part[:, None] + of_item_IH) @ head_H for part in of_user_BH.split(size)]
        return torch.cat(parts)

    def _of_users(self, user_BZ: Tensor) -> Tensor:
        first = self.layers[0]
        return F.linear(user_BZ, first.weight[:, : self.latent_width], first.bias)  # type: ignore[index,arg-type]

    def _of_items(self, item_IZ: Tensor) -> Tensor:
        return F.linear(item_IZ, self.layers[0].weight[:, self.latent_width :])  # type: ignore[index]

    def _rest(self, hidden: Tensor) -> Tensor:
        hidden = F.relu(hidden)
        for layer in list(self.layers)[1:]:
            hidden = F.relu(layer(hidden))
        return hidden
