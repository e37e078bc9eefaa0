"""Generalized matrix factorization: a weighted inner product of user and item embeddings."""

from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from typing_extensions import override

from distrib.batch import Batch
from distrib.config import Config
from distrib.models.base import ItemRows, Model, ModelSpec, UserState
from distrib.models.capabilities import ItemVectors
from distrib.models.folding import fold_in, rows_or_folded, signed_entries, typical_row
from distrib.models.layers import pair_products
from distrib.models.outputs import LogOddsOutput
from distrib.objectives import LabeledConfig
from distrib.parameters import ParameterRole, parameter, with_role
from distrib.rng import CounterRng
from distrib.vocabulary import Catalog

EMBEDDING_STD = 0.01
"""Standard deviation of new embeddings, as in the source."""


class GmfConfig(Config):
    """Hyper-parameters of generalized matrix factorization."""

    name: Literal["gmf"] = "gmf"

    spec: ClassVar[ModelSpec] = ModelSpec("log_odds", LabeledConfig(), "pairs", has_user_rows=True)

    latent_width: PositiveInt = 32
    """Dimensions of the embeddings."""

    new_user_penalty: Annotated[float, Field(gt=0.0)] = 1.0
    """Ridge penalty for folding in users that training did not see."""

    def build(self, catalog: Catalog) -> "Gmf":
        """Make an untrained model for the catalog."""
        return Gmf(self, catalog)


class GmfState(NamedTuple):
    """User state of GMF."""

    vector_BZ: Tensor
    """The user's embedding times the weights of the head."""

    bias_B: Tensor
    """0 for users that training saw."""


class Gmf(Model):
    """Log-odds h . (p_u * q_i) + b.

    Users that training did not see are folded in by a ridge regression of the signs of their likes
    and dislikes on the item embeddings, around the mean user.

    Source: He et al., "Neural Collaborative Filtering", WWW 2017, eq. 9. Differs from the source:
    a bias, as in its code; new users are folded in.
    """

    def __init__(self, config: GmfConfig, catalog: Catalog) -> None:
        super().__init__()
        self.config, self.feedback = config, catalog.feedback
        self.output = LogOddsOutput()
        width, decayed = config.latent_width, ParameterRole(decay=1.0)
        self.user_UZ = parameter(catalog.user_index_size, width, role=decayed)
        self.item_IZ = parameter(
            catalog.item_count, width, role=ParameterRole(decoder=True, decay=1.0)
        )
        self.head_Z = parameter(width, role=decayed)
        self.bias_1 = with_role(nn.Parameter(torch.zeros(1)), ParameterRole())
        for table in (self.user_UZ, self.item_IZ):
            nn.init.normal_(table, std=EMBEDDING_STD)
        nn.init.kaiming_uniform_(self.head_Z[None], a=1)

    @override
    def encode(self, batch: Batch, rng: CounterRng | None = None) -> GmfState:
        """Look up known users; fold in the others, without gradient."""
        no_bias_U = self.bias_1.detach().new_zeros(1).expand(len(self.user_UZ))
        (vector_BZ, bias_B), _ = rows_or_folded(batch, (self.user_UZ, no_bias_U), self._folded)
        return GmfState(vector_BZ * self.head_Z, bias_B)

    @torch.no_grad()
    def _folded(self, batch: Batch) -> tuple[Tensor, Tensor]:
        known, sign_N = signed_entries(batch, self.feedback)
        mean_Z = typical_row(self.user_UZ)
        at_mean_N = (self.item_IZ[known.item_N].float() * mean_Z * self.head_Z).sum(1)
        table_IZ = self.item_IZ * self.head_Z
        wanted_N = sign_N - at_mean_N - self.bias_1
        shift_BZ, bias_B = fold_in(table_IZ, known, wanted_N, self.config.new_user_penalty)
        return mean_Z + shift_BZ, bias_B

    @override
    def item_tables(self) -> ItemRows:
        return (self.item_IZ,)

    @override
    def decode_rows(self, users: UserState, rows: ItemRows) -> Tensor:
        return users[0] @ rows[0].T + (users[1] + self.bias_1)[:, None]

    @override
    def score_pairs(self, users: UserState, pairs: Batch) -> Tensor:
        products_N = pair_products(users[0], self.item_IZ, pairs.item_N, pairs.pointer_P)
        return products_N + users[1][pairs.row_N] + self.bias_1

    def user_embedding(self, users: UserState) -> Tensor:
        """Return the embeddings times the head; see `HasEmbeddings`."""
        return users[0]

    def item_vectors(self) -> ItemVectors:
        """Return the item embeddings; see `HasEmbeddings`."""
        return ItemVectors(self.item_IZ)
