"""Mult-VAE and Mult-DAE, and their versions for ratings, VAE-CF and DAE-CF.

Source: Liang, Krishnan, Hoffman, Jebara, "Variational Autoencoders for Collaborative Filtering",
WWW 2018 (Mult-VAE^PR, Mult-DAE), and the authors' notebook for initialization and dropout; the
versions for ratings: the baselines of "VAE-BMF" (arXiv 2002.09145).
"""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple, cast

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from typing_extensions import override

from distrib.batch import Batch
from distrib.config import Config
from distrib.models.base import ItemRows, Model, ModelSpec, UserState
from distrib.models.layers import LinearDecoder, history_sum, item_mean, normal_sample, unit_input
from distrib.models.outputs import RatingOutput
from distrib.objectives import MultinomialConfig, SquaredErrorConfig
from distrib.parameters import ParameterRole, parameter, with_role
from distrib.rng import CounterRng
from distrib.vocabulary import Catalog

_DROPOUT, _SAMPLE = 1, 2  # random streams
_ENCODER, _DECODER = (
    ParameterRole(encoder=True, decay=1.0),
    ParameterRole(decoder=True, decay=1.0),
)

Input = Literal["interactions", "ratings"]


class MultVaeConfig(Config):
    """Hyper-parameters of Mult-VAE; the defaults are the paper's."""

    name: Literal["mult_vae"] = "mult_vae"

    input: Input = "interactions"
    """``ratings``: encodes and predicts ratings, trained by squared error; VAE-CF."""

    hidden_width: PositiveInt = 600
    """Units of the hidden layer, in encoder and decoder each."""

    latent_width: PositiveInt = 200
    """Latent dimensions."""

    input_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Share of the history that is hidden from the encoder in training."""

    @property
    def spec(self) -> ModelSpec:
        """Properties that the pipeline needs."""
        return _SPECS[self.input]

    def build(self, catalog: Catalog) -> "MultVae":
        """Make an untrained model for the catalog."""
        return MultVae(self, catalog)


class MultDaeConfig(Config):
    """Hyper-parameters of Mult-DAE; the defaults are the paper's."""

    name: Literal["mult_dae"] = "mult_dae"

    input: Input = "interactions"
    """``ratings``: encodes and predicts ratings, trained by squared error; DAE-CF."""

    latent_width: PositiveInt = 200
    """Latent dimensions."""

    input_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Share of the history that is hidden from the encoder in training."""

    @property
    def spec(self) -> ModelSpec:
        """Properties that the pipeline needs."""
        return _SPECS[self.input]

    def build(self, catalog: Catalog) -> "MultDae":
        """Make an untrained model for the catalog."""
        return MultDae(self, catalog)


_SPECS = {
    "interactions": ModelSpec("scores", MultinomialConfig()),
    "ratings": ModelSpec("ratings", SquaredErrorConfig()),
}


class MultVaeState(NamedTuple):
    """User state of Mult-VAE."""

    hidden_BH: Tensor
    mean_BZ: Tensor
    log_variance_BZ: Tensor


class MultVae(LinearDecoder, Model):
    """Encoder I-H-2Z, decoder Z-H-I, tanh between, logits out.

    Differs from the source: noise and dropout come from counters of (seed, epoch, user, item), so
    that they do not depend on how users are assigned to workers.
    """

    def __init__(self, config: MultVaeConfig, catalog: Catalog) -> None:
        super().__init__()
        self.config = config
        item_count = catalog.item_count
        hidden, latent = config.hidden_width, config.latent_width
        self.input_IH = parameter(item_count, hidden, role=_ENCODER)
        self.input_bias_H = parameter(hidden)
        self.to_code = nn.Linear(hidden, 2 * latent)
        self.from_code = nn.Linear(latent, hidden)
        for weight in (self.to_code.weight, self.from_code.weight):
            with_role(cast("nn.Parameter", weight), ParameterRole(decay=1.0))
        self.output_IH = parameter(item_count, hidden, role=_DECODER)
        self.output_bias_I = parameter(item_count, role=ParameterRole(decoder=True))
        _initialize(
            (self.input_IH, self.to_code.weight, self.from_code.weight, self.output_IH),
            (self.input_bias_H, self.to_code.bias, self.from_code.bias, self.output_bias_I),
        )
        if config.input == "ratings":
            self.output = RatingOutput()
            self.output_bias_I.data.copy_(item_mean(catalog))

    @override
    def encode(self, batch: Batch, rng: CounterRng | None = None) -> MultVaeState:
        """Normalize to unit length, drop items, encode; in training, sample the latent vector."""
        hidden_BH = _read(self.input_IH, batch, self.config, rng)
        code = self.to_code(torch.tanh(hidden_BH + self.input_bias_H))
        mean_BZ, log_variance_BZ = code.chunk(2, dim=-1)
        latent_BZ = mean_BZ
        if rng is not None:
            latent_BZ = normal_sample(mean_BZ, log_variance_BZ, batch, rng, _SAMPLE)
        return MultVaeState(torch.tanh(self.from_code(latent_BZ)), mean_BZ, log_variance_BZ)

    @override
    def item_tables(self) -> ItemRows:
        return self.output_IH, self.output_bias_I

    def kl(self, users: UserState) -> Tensor:
        """KL(q(z|x) || N(0, 1)), section 2.2 of the paper."""
        mean_BZ, log_variance_BZ = users[1].float(), users[2].float()
        term_BZ = log_variance_BZ.exp() + mean_BZ**2 - 1.0 - log_variance_BZ
        return 0.5 * term_BZ.sum(-1)


class MultDaeState(NamedTuple):
    """User state of Mult-DAE."""

    latent_BZ: Tensor


class MultDae(LinearDecoder, Model):
    """Encoder I-Z with tanh, decoder Z-I; the latent vector is deterministic.

    The paper's L2 penalty, 0.01 / 500 times the squared weights in each update of 500 users, is
    ``optimizer.name = "adam"`` with ``weight_decay = 4e-5``, whose gradient is added to the loss's.
    """

    def __init__(self, config: MultDaeConfig, catalog: Catalog) -> None:
        super().__init__()
        self.config = config
        item_count, latent = catalog.item_count, config.latent_width
        self.input_IZ = parameter(item_count, latent, role=_ENCODER)
        self.input_bias_Z = parameter(latent)
        self.output_IZ = parameter(item_count, latent, role=_DECODER)
        self.output_bias_I = parameter(item_count, role=ParameterRole(decoder=True))
        _initialize((self.input_IZ, self.output_IZ), (self.input_bias_Z, self.output_bias_I))
        if config.input == "ratings":
            self.output = RatingOutput()
            self.output_bias_I.data.copy_(item_mean(catalog))

    @override
    def encode(self, batch: Batch, rng: CounterRng | None = None) -> MultDaeState:
        """Normalize to unit length, drop items, encode."""
        sum_BZ = _read(self.input_IZ, batch, self.config, rng)
        return MultDaeState(torch.tanh(sum_BZ + self.input_bias_Z))

    @override
    def item_tables(self) -> ItemRows:
        return self.output_IZ, self.output_bias_I


def _initialize(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    for weight in weights:
        nn.init.xavier_uniform_(weight)
    for bias in biases:
        nn.init.trunc_normal_(bias, std=0.001, a=-0.002, b=0.002)


def _read(
    table_IH: Tensor, batch: Batch, config: MultVaeConfig | MultDaeConfig, rng: CounterRng | None
) -> Tensor:
    read, weight_N = unit_input(
        batch,
        by_value=config.input == "ratings",
        dropout=config.input_dropout,
        rng=rng,
        stream=_DROPOUT,
    )
    return history_sum(table_IH, read.item_N, weight_N, read.pointer_P)
