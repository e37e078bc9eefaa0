"""ELSA: a linear autoencoder with one item matrix of unit rows.

Source: Vancura, Alves, Kasalicky, Kordik, "Scalable Linear Shallow Autoencoder for Collaborative
Filtering", RecSys 2022, and the authors' library.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn
from typing_extensions import override

from distrib.batch import Batch
from distrib.config import Config
from distrib.models.base import ItemRows, Model, ModelSpec, UserState
from distrib.models.capabilities import ItemVectors
from distrib.models.layers import history_sum
from distrib.objectives import CosineConfig
from distrib.parameters import ParameterRole, parameter
from distrib.rng import CounterRng
from distrib.vocabulary import Catalog

_TIED = ParameterRole(encoder=True, decoder=True, decay=1.0)


class ElsaConfig(Config):
    """Hyper-parameters of ELSA."""

    name: Literal["elsa"] = "elsa"

    spec: ClassVar[ModelSpec] = ModelSpec("scores", CosineConfig(), is_tied=True)

    latent_width: PositiveInt = 256
    """Columns of the item matrix; the authors' ML-20M runs have 800."""

    def build(self, catalog: Catalog) -> "Elsa":
        """Make an untrained model for the catalog."""
        return Elsa(self, catalog.item_count)


class ElsaState(NamedTuple):
    """User state of ELSA."""

    latent_BZ: Tensor


class Elsa(Model):
    """x A A^T - x, where the rows of A have unit length.

    Differs from the source: no ReLU at the output, as in the authors' library but unlike in their
    reproduction; ``- x`` only changes the scores of a user's own items, so scores omit it.
    """

    def __init__(self, config: ElsaConfig, item_count: int) -> None:
        super().__init__()
        self.item_IZ = parameter(item_count, config.latent_width, role=_TIED)
        nn.init.xavier_uniform_(self.item_IZ)

    @override
    def encode(self, batch: Batch, rng: CounterRng | None = None) -> ElsaState:
        """Sum the unit rows of the history."""
        ones_N = torch.ones_like(batch.value_N)
        unit_IZ = F.normalize(self.item_IZ, dim=-1)
        return ElsaState(history_sum(unit_IZ, batch.item_N, ones_N, batch.pointer_P))

    def item_gram(self) -> Tensor:
        """Return the Gram matrix of the unit rows; see `TiedLinear`."""
        unit_IZ = F.normalize(self.item_IZ.float(), dim=-1)
        return unit_IZ.T @ unit_IZ

    @override
    def item_tables(self) -> ItemRows:
        return (self.item_IZ,)

    def user_embedding(self, users: UserState) -> Tensor:
        return users[0]

    def item_vectors(self) -> ItemVectors:
        return ItemVectors(F.normalize(self.item_IZ, dim=-1))

    @override
    def decode_rows(self, users: UserState, rows: ItemRows) -> Tensor:
        return users[0] @ F.normalize(rows[0], dim=-1).T
