"""ConvNCF: convolutions over the outer product of user and item embeddings."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from distrib.batch import Batch
from distrib.models.base import ItemRows, Model, ModelSpec, UserState
from distrib.models.folding import FoldedBySteps, FoldsIn
from distrib.models.ncf.gmf import EMBEDDING_STD, Gmf
from distrib.models.ncf.tower import shared
from distrib.models.outputs import LogOddsOutput
from distrib.objectives import LabeledConfig
from distrib.parameters import ParameterRole, parameter, take_over, with_role
from distrib.vocabulary import Catalog

_BLOCK_FLOATS = 1 << 24
"""Outputs of the first layer held at a time; pairs are decoded in blocks of this size."""

_KERNEL_STD, _KERNEL_BIAS = 0.1, 0.1


class ConvNcfConfig(FoldsIn):
    """Hyper-parameters of ConvNCF."""

    name: Literal["conv_ncf"] = "conv_ncf"

    spec: ClassVar[ModelSpec] = ModelSpec(
        "log_odds", LabeledConfig(), "pairs", has_user_rows=True, starts_from=("gmf",)
    )

    latent_width: PositiveInt = 64
    """Dimensions of the embeddings, a power of 2; each layer halves the sides of the map."""

    channels: PositiveInt = 32
    """Channels of each layer."""

    @model_validator(mode="after")
    def _sides_can_be_halved(self) -> "ConvNcfConfig":
        if self.latent_width < 2 or self.latent_width & (self.latent_width - 1):
            raise ValueError(
                f"latent_width = {self.latent_width}: must be a power of 2 from 2 on, since each "
                "layer halves the map"
            )
        return self

    def build(self, catalog: Catalog) -> "ConvNcf":
        """Make an untrained model for the catalog."""
        return ConvNcf(self, catalog)


class ConvNcf(FoldedBySteps, Model):
    """Log-odds h . layers(p_u q_i^T) + b, with 2x2 kernels of stride 2 until the map is 1x1.

    The first layer is computed from the two embeddings, so the outer product is never built. Pairs
    are decoded in blocks, whose outputs are recomputed in the backward pass if there is more than
    one, so memory does not grow with the pairs.

    Source: He et al., "Outer Product-based Neural Collaborative Filtering", IJCAI 2018, eq. 3 to 7.
    Differs from the source: a bias, since the default objective is the cross-entropy of labels; set
    ``objective.name = "bpr"`` for that of the source. New users are folded in.
    """

    def __init__(self, config: ConvNcfConfig, catalog: Catalog) -> None:
        super().__init__()
        self.config, self.feedback = config, catalog.feedback
        self.output = LogOddsOutput()
        width, channels = config.latent_width, config.channels
        self.floats = channels * (width // 2) ** 2
        """Outputs of the first layer for each pair."""

        self.user_UZ = parameter(catalog.user_index_size, width, role=ParameterRole(decay=1.0))
        self.item_IZ = parameter(
            catalog.item_count, width, role=ParameterRole(decoder=True, decay=1.0)
        )
        for table in (self.user_UZ, self.item_IZ):
            nn.init.normal_(table, std=EMBEDDING_STD)
        of_all = ParameterRole(shared=True, decay=1.0)
        self.kernels = nn.ParameterList()
        self.biases = nn.ParameterList()
        for place in range(width.bit_length() - 1):
            inner = channels if place else 1
            kernel = parameter(channels, inner, 2, 2, role=of_all)
            limit = 2 * _KERNEL_STD
            nn.init.trunc_normal_(kernel, std=_KERNEL_STD, a=-limit, b=limit)
            self.kernels.append(kernel)
            bias = nn.Parameter(torch.full((channels,), _KERNEL_BIAS))
            self.biases.append(with_role(bias, ParameterRole(shared=True)))
        self.head = shared(nn.Linear(channels, 1))
        nn.init.kaiming_uniform_(self.head.weight, a=1)
        nn.init.zeros_(self.head.bias)

    def start_from(self, models: Sequence[Model]) -> None:
        """Copy the embeddings of a matrix factorization. See `StartsFromModels`."""
        (gmf,) = models
        assert isinstance(gmf, Gmf)
        take_over(self.user_UZ, gmf.user_UZ * gmf.head_Z)
        take_over(self.item_IZ, gmf.item_IZ)

    @override
    def user_tables(self) -> tuple[Tensor, ...]:
        return (self.user_UZ,)

    @override
    def item_tables(self) -> ItemRows:
        return (self.item_IZ,)

    @override
    def decode_rows(self, users: UserState, rows: ItemRows) -> Tensor:
        num_users, num_items = len(users[0]), len(rows[0])
        items = torch.arange(num_items, device=rows[0].device)
        size = max(1, _BLOCK_FLOATS // self.floats // max(num_items, 1))
        parts = [
            self._scores(part, rows[0], *_all_pairs(len(part), items)).view(len(part), num_items)
            for part in users[0].split(size)
        ]
        return torch.cat(parts) if parts else users[0].new_zeros(num_users, num_items)

    @override
    def score_pairs(self, users: UserState, pairs: Batch) -> Tensor:
        return self._scores(users[0], self.item_IZ, pairs.row_N, pairs.item_N)

    def _scores(self, user_BZ: Tensor, item_IZ: Tensor, row_N: Tensor, column_N: Tensor) -> Tensor:
        """Decode pairs in blocks."""
        size = max(1, _BLOCK_FLOATS // self.floats)
        blocks = list(zip(row_N.split(size), column_N.split(size), strict=True))
        if len(blocks) == 1 or not torch.is_grad_enabled():
            parts = [self._block(user_BZ[rows], item_IZ[columns]) for rows, columns in blocks]
        else:
            parts = [
                checkpoint(self._block, user_BZ[rows], item_IZ[columns], use_reentrant=False)
                for rows, columns in blocks
            ]
        return torch.cat(parts)

    def _block(self, user_NZ: Tensor, item_NZ: Tensor) -> Tensor:
        """Decode pairs at once.

        The map of the first layer at (i, j) is the sum over a and b of k_ab p_(2i + a) q_(2j + b):
        a product of the pairs of p with the pairs of q, weighted by the kernel.
        """
        user_NI2 = user_NZ.unflatten(1, (-1, 2))
        item_NJ2 = item_NZ.unflatten(1, (-1, 2))
        weighted = torch.einsum("cab,njb->ncaj", self.kernels[0][:, 0], item_NJ2)
        hidden = user_NI2[:, None] @ weighted + self.biases[0][:, None, None]
        for kernel, bias in zip(list(self.kernels)[1:], list(self.biases)[1:], strict=True):
            hidden = F.conv2d(F.relu(hidden), kernel, bias, stride=2)
        return F.relu(hidden).flatten(1) @ self.head.weight[0] + self.head.bias


def _all_pairs(num_rows: int, item_I: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row and the item of every pair of some rows with all items."""
    row_B = torch.arange(num_rows, device=item_I.device)
    return row_B.repeat_interleave(len(item_I)), item_I.repeat(num_rows)
