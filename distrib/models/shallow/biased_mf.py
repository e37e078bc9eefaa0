"""Biased matrix factorization: the mean, a bias of the user and of the item, and a product.

Source: Koren, Bell, Volinsky, "Matrix Factorization Techniques for Recommender Systems", IEEE
Computer 42(8), 2009, eq. 4 and 5.
"""

from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from typing_extensions import override

from distrib.batch import Batch
from distrib.config import Config
from distrib.models.base import ItemRows, Model, ModelSpec, UserState
from distrib.models.folding import fold_in, known_or_new
from distrib.models.layers import LinearDecoder, item_mean
from distrib.models.outputs import RatingOutput
from distrib.objectives import SquaredErrorConfig
from distrib.parameters import ParameterRole, parameter, with_role
from distrib.rng import CounterRng
from distrib.vocabulary import Catalog


class BiasedMfConfig(Config):
    """Hyper-parameters of biased matrix factorization."""

    name: Literal["biased_mf"] = "biased_mf"

    spec: ClassVar[ModelSpec] = ModelSpec("ratings", SquaredErrorConfig(), has_user_rows=True)

    latent_width: PositiveInt = 40
    """Dimensions of the factors."""

    new_user_penalty: Annotated[float, Field(gt=0.0)] = 5.0
    """Ridge penalty for folding in users that training did not see."""

    def build(self, catalog: Catalog) -> "BiasedMf":
        """Make an untrained model for the catalog."""
        return BiasedMf(self, catalog)


class BiasedMfState(NamedTuple):
    """User state of biased matrix factorization."""

    latent_BZ: Tensor
    bias_B: Tensor


class BiasedMf(LinearDecoder, Model):
    """mean + user bias + item bias + user factors times item factors.

    Weight decay applies to all rows in each update, while a user's ratings occur once per epoch: on
    user rows it weighs more by the number of updates per epoch.

    Differs from the source: trained in batches of users; item biases hold the mean and start at
    the items' mean ratings; users that training did not see are folded in from their ratings.
    """

    def __init__(self, config: BiasedMfConfig, catalog: Catalog) -> None:
        super().__init__()
        self.config = config
        self.output = RatingOutput()
        width = config.latent_width
        self.user_UZ = parameter(catalog.user_index_size, width, role=ParameterRole(decay=1.0))
        no_bias_U = nn.Parameter(torch.zeros(catalog.user_index_size))
        self.user_bias_U = with_role(no_bias_U, ParameterRole(decay=1.0))
        self.item_IZ = parameter(
            catalog.item_count, width, role=ParameterRole(decoder=True, decay=1.0)
        )
        self.item_bias_I = with_role(nn.Parameter(item_mean(catalog)), ParameterRole(decoder=True))
        for table in (self.user_UZ, self.item_IZ):
            nn.init.normal_(table, std=0.1 * width**-0.5)

    @override
    def encode(self, batch: Batch, rng: CounterRng | None = None) -> BiasedMfState:
        """Look up known users; fold in the others, without gradient."""
        found = known_or_new(batch, (self.user_UZ, self.user_bias_U), self._folded)
        return BiasedMfState(found.latent_BZ, found.bias_B)

    @torch.no_grad()
    def _folded(self, batch: Batch) -> tuple[Tensor, Tensor]:
        wanted_N = batch.value_N - self.item_bias_I[batch.item_N]
        return fold_in(self.item_IZ, batch, wanted_N, self.config.new_user_penalty)

    @override
    def item_tables(self) -> ItemRows:
        return self.item_IZ, self.item_bias_I

    @override
    def decode_rows(self, users: UserState, rows: ItemRows) -> Tensor:
        return super().decode_rows(users, rows) + users[1][:, None]

    @override
    def score_pairs(self, users: UserState, pairs: Batch) -> Tensor:
        return super().score_pairs(users, pairs) + users[1][pairs.row_N]
