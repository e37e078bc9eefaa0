"""Template of a model: copy it into `distrib/models/`, then add its configuration to the union.

Training, checkpoints, scoring, serving and the test battery need nothing else.
"""

from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import nn
from typing_extensions import override

from distrib.batch import Batch
from distrib.config import Config
from distrib.models.base import ItemRows, Model, ModelSpec, UserState
from distrib.models.layers import LinearDecoder, history_sum, unit_input
from distrib.objectives import MultinomialConfig
from distrib.parameters import ParameterRole, parameter
from distrib.rng import CounterRng
from distrib.vocabulary import Catalog

_STREAM = 71
"""Separates the dropout from other random numbers; see `CounterRng`."""


class TwoTablesConfig(Config):
    """Hyper-parameters."""

    name: Literal["two_tables"] = "two_tables"

    spec: ClassVar[ModelSpec] = ModelSpec("scores", MultinomialConfig())

    latent_width: PositiveInt = 64
    """Columns of both item tables."""

    input_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Share of the interactions that training hides from the encoder."""

    def build(self, catalog: Catalog) -> "TwoTables":
        """Make an untrained model for a catalog."""
        return TwoTables(self, catalog.item_count)


class TwoTables(LinearDecoder, Model):
    """A shallow autoencoder: the user is the tanh of a sum of item rows."""

    def __init__(self, config: TwoTablesConfig, item_count: int) -> None:
        super().__init__()
        self.dropout = config.input_dropout
        width = config.latent_width
        self.input_IZ = parameter(item_count, width, role=ParameterRole(encoder=True, decay=1.0))
        self.output_IZ = parameter(item_count, width, role=ParameterRole(decoder=True, decay=1.0))
        self.bias_I = parameter(item_count, role=ParameterRole(decoder=True))
        nn.init.xavier_normal_(self.input_IZ)
        nn.init.xavier_normal_(self.output_IZ)
        nn.init.zeros_(self.bias_I)

    @override
    def encode(self, batch: Batch, rng: CounterRng | None = None) -> UserState:
        read, weight_N = unit_input(
            batch, by_value=False, dropout=self.dropout, rng=rng, stream=_STREAM
        )
        sum_BZ = history_sum(self.input_IZ, read.item_N, weight_N, read.pointer_P)
        return (F.tanh(sum_BZ),)

    @override
    def item_tables(self) -> ItemRows:
        return self.output_IZ, self.bias_I
