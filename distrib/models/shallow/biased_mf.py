"""Biased matrix factorisation: the mean, a bias of the user and of the item, and a product.

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
from distrib.models.base import ItemVectors, Model, Opinion, Rows, State, Traits, parameter
from distrib.models.layers import fold_in, item_mean, known_or_new, linear, linear_cells
from distrib.objectives import SquaredErrorConfig
from distrib.rng import Noise
from distrib.vocabulary import Catalogue


class BiasedMfConfig(Config):
    """Hyper-parameters of biased matrix factorisation."""

    name: Literal["biased_mf"] = "biased_mf"

    traits: ClassVar[Traits] = Traits("ratings", SquaredErrorConfig(), has_user_rows=True)

    latent_width: PositiveInt = 40
    """Dimensions of the factors."""

    new_user_penalty: Annotated[float, Field(gt=0.0)] = 5.0
    """Pull towards 0 on the factors of a user whom training did not see."""

    def build(self, catalogue: Catalogue) -> "BiasedMf":
        """Make an untrained model for the catalogue."""
        return BiasedMf(self, catalogue)


class BiasedMfState(NamedTuple):
    """Users as the factorisation sees them."""

    code_BZ: Tensor
    bias_B: Tensor


class BiasedMf(Model):
    """mean + user bias + item bias + user factors times item factors.

    Weight decay falls on all rows in each update, while a user's ratings come once an epoch: on
    users it weighs as much more as there are updates in an epoch.

    Differs from the source: trained in batches of users; item biases hold the mean and start at
    the items' mean ratings; a user whom training did not see is folded in from the ratings.
    """

    def __init__(self, config: BiasedMfConfig, catalogue: Catalogue) -> None:
        super().__init__()
        self.config = config
        width = config.latent_width
        self.user_UZ = parameter(catalogue.user_numbers, width)
        self.user_bias_U = nn.Parameter(torch.zeros(catalogue.user_numbers))
        self.item_IZ = parameter(catalogue.item_count, width)
        self.item_bias_I = nn.Parameter(item_mean(catalogue))
        for table in (self.user_UZ, self.item_IZ):
            nn.init.normal_(table, std=0.1 * width**-0.5)

    @override
    def encode(self, batch: Batch, noise: Noise | None = None) -> BiasedMfState:
        """Look known users up; fold the others in, without gradient."""
        found = known_or_new(batch, (self.user_UZ, self.user_bias_U), self._folded)
        return BiasedMfState(found.code_BZ, found.bias_B)

    @torch.no_grad()
    def _folded(self, batch: Batch) -> tuple[Tensor, Tensor]:
        wanted_N = batch.value_N - self.item_bias_I[batch.item_N]
        return fold_in(self.item_IZ, batch, wanted_N, self.config.new_user_penalty)

    @override
    def item_tables(self) -> Rows:
        return self.item_IZ, self.item_bias_I

    @override
    def embedding(self, state: State) -> Tensor:
        return state[0]

    @override
    def item_vectors(self) -> ItemVectors:
        return ItemVectors(*self.item_tables())

    @override
    def decode_rows(self, state: State, rows: Rows) -> Tensor:
        code_BZ, bias_B = state
        return linear(code_BZ, rows) + bias_B[:, None]

    @override
    def decode_cells(self, state: State, cells: Batch) -> Tensor:
        code_BZ, bias_B = state
        return linear_cells(code_BZ, self.item_tables(), cells) + bias_B[cells.row_N]

    @override
    def opinion(self, output: Tensor) -> Opinion:
        return Opinion(output)

    @override
    def decayed_parameters(self) -> tuple[nn.Parameter, ...]:
        return self.user_UZ, self.item_IZ, self.user_bias_U
