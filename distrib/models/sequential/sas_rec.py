"""SASRec: causal self-attention over a user's interactions.

Source: Kang, McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018, and the authors' code.
"""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from typing_extensions import override

from distrib.batch import Batch
from distrib.models.base import Model, ModelSpec
from distrib.models.sequential.config import SequenceConfig, Share
from distrib.models.sequential.layers import (
    Ragged,
    SequenceDecoder,
    SequenceState,
    causal_attention,
    dropout,
    from_end,
    linear_layer,
)
from distrib.objectives import SoftmaxConfig
from distrib.parameters import parameter
from distrib.rng import CounterRng
from distrib.sequences import Sequences, sequences_of
from distrib.vocabulary import Catalog

_INPUT, _ATTENDED, _HIDDEN, _OUTPUT = 201, 202, 203, 204  # random streams
_STREAMS = 16  # between two blocks

Kind = Literal["original", "pre_norm", "gated"]


class SasRecConfig(SequenceConfig):
    """Hyper-parameters of SASRec."""

    name: Literal["sas_rec"] = "sas_rec"

    spec: ClassVar[ModelSpec] = ModelSpec(
        "scores", SoftmaxConfig(), "next_item", reads_repeats=True
    )

    blocks: PositiveInt = 2
    """Blocks of attention and feed-forward network."""

    heads: PositiveInt = 1
    """Heads of attention; divides ``latent_width``."""

    hidden_width: Annotated[int, Field(ge=0)] = 0
    """Units of the feed-forward network; 0 for ``latent_width``."""

    dropout: Share = 0.2
    """Share of numbers dropped after the input, attention, and in the feed-forward network."""

    block: Kind = "original"
    """``original``: only queries are normalized before attention, and the query is what the result
    is added to. ``pre_norm``: inputs of both parts are normalized, and added to what they return.
    ``gated``: the same, each result times a learned gate of the input."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "SasRecConfig":
        if self.latent_width % self.heads:
            raise ValueError(
                f"heads = {self.heads} does not divide latent_width = {self.latent_width}; change "
                "one of them"
            )
        return self

    def build(self, catalog: Catalog) -> "SasRec":
        """Make an untrained model for the catalog."""
        return SasRec(self, catalog)


class SasRec(SequenceDecoder, Model):
    """See the module; a score is the inner product of a user's state and an item's vector.

    The last interaction has the same position whatever the length of the history.

    Gates: Borisyuk et al., "From Features to Transformers: Redefining Ranking for Scalable Impact"
    (LiGR, 2025).

    Differs from the source: the loss is chosen in the run file; no dropout of attention weights,
    but of what attention returns, after a linear layer; a user without interactions has a learned
    state, from which the first one is predicted in training.
    """

    config: SasRecConfig
    has_bias = False

    def __init__(self, config: SasRecConfig, catalog: Catalog) -> None:
        super().__init__()
        self.config = config
        self.make_tables(config, catalog)
        self.position_LZ = parameter(config.max_length, config.latent_width)
        self.blocks = nn.ModuleList(_Block(config, place) for place in range(config.blocks))
        self.last_norm = nn.LayerNorm(config.latent_width, eps=1e-8)
        for table in (*self.vectors(), self.position_LZ):
            nn.init.normal_(table, std=config.latent_width**-0.5)

    @override
    def encode(self, inputs: Batch | Sequences, rng: CounterRng | None = None) -> SequenceState:
        """Attend to the last interactions; see `Model`."""
        config = self.config
        sequences = sequences_of(inputs, config.max_length)
        batch = sequences.histories
        ragged = Ragged.of(batch)
        scale = config.latent_width**0.5
        hidden_NZ = F.embedding(batch.item_N, self.input_IZ) * scale
        place_N = config.max_length - 1 - from_end(batch)
        hidden_NZ = hidden_NZ + F.embedding(place_N, self.position_LZ)
        hidden_NZ = dropout(hidden_NZ, config.dropout, rng, _INPUT, batch)
        for block in self.blocks:
            hidden_NZ = block(hidden_NZ, batch, ragged, rng)
        return self.states(self.last_norm(hidden_NZ), sequences)


class _Block(nn.Module):
    """Attention, then a feed-forward network for each interaction."""

    def __init__(self, config: SasRecConfig, place: int) -> None:
        super().__init__()
        self.config, self.stream = config, place * _STREAMS
        width, hidden = config.latent_width, config.hidden_width or config.latent_width
        self.attention_norm = nn.LayerNorm(width, eps=1e-8)
        self.forward_norm = nn.LayerNorm(width, eps=1e-8)
        self.query, self.key_value = linear_layer(width, width), linear_layer(width, 2 * width)
        self.mix = linear_layer(width, width)
        self.widen, self.narrow = linear_layer(width, hidden), linear_layer(hidden, width)
        if config.block == "gated":
            self.attention_gate, self.forward_gate = (
                linear_layer(width, width),
                linear_layer(width, width),
            )

    @override
    def forward(
        self, hidden_NZ: Tensor, batch: Batch, ragged: Ragged, rng: CounterRng | None
    ) -> Tensor:
        is_original = self.config.block == "original"
        normed_NZ = self.attention_norm(hidden_NZ)
        read_NZ = hidden_NZ if is_original else normed_NZ
        parts = self.query(normed_NZ), *self.key_value(read_NZ).chunk(2, dim=1)
        mixed_NZ = self.mix(causal_attention(parts, ragged, self.config.heads))
        mixed_NZ = self._dropped(mixed_NZ, rng, _ATTENDED, batch)
        if self.config.block == "gated":
            mixed_NZ = mixed_NZ * torch.sigmoid(self.attention_gate(hidden_NZ))
        hidden_NZ = mixed_NZ + (normed_NZ if is_original else hidden_NZ)
        normed_NZ = self.forward_norm(hidden_NZ)
        wide_NZ = self._dropped(F.relu(self.widen(normed_NZ)), rng, _HIDDEN, batch)
        found_NZ = self._dropped(self.narrow(wide_NZ), rng, _OUTPUT, batch)
        if self.config.block == "gated":
            found_NZ = found_NZ * torch.sigmoid(self.forward_gate(hidden_NZ))
        return found_NZ + (normed_NZ if is_original else hidden_NZ)

    def _dropped(
        self, hidden_NZ: Tensor, rng: CounterRng | None, stream: int, batch: Batch
    ) -> Tensor:
        return dropout(hidden_NZ, self.config.dropout, rng, self.stream + stream, batch)
