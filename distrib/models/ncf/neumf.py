"""NeuMF: generalized matrix factorization and a multi-layer perceptron under one head."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from typing_extensions import override

from distrib.batch import Batch
from distrib.models.base import ItemRows, Model, ModelSpec, UserState
from distrib.models.folding import FoldedBySteps, FoldsIn
from distrib.models.layers import pair_products
from distrib.models.ncf.gmf import EMBEDDING_STD, Gmf
from distrib.models.ncf.mlp import Mlp, Widths
from distrib.models.ncf.tower import Tower
from distrib.models.outputs import LogOddsOutput
from distrib.objectives import LabeledConfig
from distrib.parameters import ParameterRole, parameter, take_over, with_role
from distrib.vocabulary import Catalog

_HEAD_SHARE = 0.5
"""Share of each pre-trained head, as in the source."""


class NeuMfConfig(FoldsIn):
    """Hyper-parameters of NeuMF."""

    name: Literal["neumf"] = "neumf"

    spec: ClassVar[ModelSpec] = ModelSpec(
        "log_odds", LabeledConfig(), "pairs", has_user_rows=True, starts_from=("gmf", "mlp")
    )

    gmf_width: PositiveInt = 32
    """Dimensions of the embeddings of the matrix factorization."""

    mlp_width: PositiveInt = 128
    """Dimensions of each embedding of the perceptron."""

    hidden_widths: Widths = (128, 64, 32)
    """Widths of the layers over the concatenated embeddings."""

    def build(self, catalog: Catalog) -> "NeuMf":
        """Make an untrained model for the catalog."""
        return NeuMf(self, catalog)


class NeuMf(FoldedBySteps, Model):
    """Log-odds h . [p_u * q_i; tower([p'_u; q'_i])] + b, with embeddings of its own for each part.

    Source: He et al., "Neural Collaborative Filtering", WWW 2017, eq. 12. Differs from the source:
    new users are folded in.
    """

    def __init__(self, config: NeuMfConfig, catalog: Catalog) -> None:
        super().__init__()
        self.config, self.feedback = config, catalog.feedback
        self.output = LogOddsOutput()
        of_user, of_item = ParameterRole(decay=1.0), ParameterRole(decoder=True, decay=1.0)
        users, items = catalog.user_index_size, catalog.item_count
        self.gmf_user_UZ = parameter(users, config.gmf_width, role=of_user)
        self.mlp_user_UZ = parameter(users, config.mlp_width, role=of_user)
        self.gmf_item_IZ = parameter(items, config.gmf_width, role=of_item)
        self.mlp_item_IZ = parameter(items, config.mlp_width, role=of_item)
        for table in (self.gmf_user_UZ, self.mlp_user_UZ, self.gmf_item_IZ, self.mlp_item_IZ):
            nn.init.normal_(table, std=EMBEDDING_STD)
        self.tower = Tower(config.mlp_width, config.hidden_widths)
        of_all = ParameterRole(shared=True, decay=1.0)
        self.gmf_head_Z = parameter(config.gmf_width, role=of_all)
        self.mlp_head_H = parameter(config.hidden_widths[-1], role=of_all)
        self.bias_1 = with_role(nn.Parameter(torch.zeros(1)), ParameterRole(shared=True))
        head = torch.empty(1, config.gmf_width + config.hidden_widths[-1])
        nn.init.kaiming_uniform_(head, a=1)
        with torch.no_grad():
            self.gmf_head_Z.copy_(head[0, : config.gmf_width])
            self.mlp_head_H.copy_(head[0, config.gmf_width :])

    def start_from(self, models: Sequence[Model]) -> None:
        """Copy a GMF and an MLP; their heads count by half. See `StartsFromModels`."""
        gmf, mlp = models
        assert isinstance(gmf, Gmf)
        assert isinstance(mlp, Mlp)
        self.tower.load_state_dict(mlp.tower.state_dict())
        take_over(self.gmf_user_UZ, gmf.user_UZ)
        take_over(self.gmf_item_IZ, gmf.item_IZ)
        take_over(self.mlp_user_UZ, mlp.user_UZ)
        take_over(self.mlp_item_IZ, mlp.item_IZ)
        take_over(self.gmf_head_Z, _HEAD_SHARE * gmf.head_Z)
        take_over(self.mlp_head_H, _HEAD_SHARE * mlp.head.weight[0])
        take_over(self.bias_1, _HEAD_SHARE * (gmf.bias_1 + mlp.head.bias))

    @override
    def user_tables(self) -> tuple[Tensor, ...]:
        return self.gmf_user_UZ, self.mlp_user_UZ

    @override
    def item_tables(self) -> ItemRows:
        return self.gmf_item_IZ, self.mlp_item_IZ

    @override
    def decode_rows(self, users: UserState, rows: ItemRows) -> Tensor:
        of_tower_BI = self.tower.grid(users[1], rows[1], self.mlp_head_H)
        return (users[0] * self.gmf_head_Z) @ rows[0].T + of_tower_BI + self.bias_1

    @override
    def score_pairs(self, users: UserState, pairs: Batch) -> Tensor:
        hidden_NH = self.tower.pairs(users[1][pairs.row_N], self.mlp_item_IZ[pairs.item_N])
        weighted_BZ = users[0] * self.gmf_head_Z
        products_N = pair_products(weighted_BZ, self.gmf_item_IZ, pairs.item_N, pairs.pointer_P)
        return products_N + hidden_NH @ self.mlp_head_H + self.bias_1
