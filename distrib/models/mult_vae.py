"""Mult-VAE: a variational autoencoder with a multinomial likelihood over all items.

Source: Liang, Krishnan, Hoffman, Jebara, "Variational Autoencoders for Collaborative Filtering",
WWW 2018 (Mult-VAE^PR), and the authors' notebook for initialisation and dropout.
"""

from typing import Annotated, ClassVar, Literal, NamedTuple, cast

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from typing_extensions import override

from distrib.batch import Batch
from distrib.config import Config
from distrib.models.base import Model, OutputKind, Rows, State, parameter
from distrib.models.layers import history_sum, inverse_root_length
from distrib.noise import Noise
from distrib.vocabulary import Catalogue

_DROPOUT, _SAMPLE = 1, 2  # streams of noise


class MultVaeConfig(Config):
    """Hyper-parameters of Mult-VAE; the defaults are the paper's."""

    name: Literal["mult_vae"] = "mult_vae"

    gives: ClassVar[OutputKind] = "scores"

    hidden_width: PositiveInt = 600
    """Units of the hidden layer on either side."""

    latent_width: PositiveInt = 200
    """Dimensions of the code."""

    input_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Share of the history that is hidden from the encoder in training."""

    def build(self, catalogue: Catalogue) -> "MultVae":
        """Make an untrained model for the catalogue."""
        return MultVae(self, catalogue.item_count)


class MultVaeState(NamedTuple):
    """Users as Mult-VAE sees them."""

    hidden_BH: Tensor
    mean_BZ: Tensor
    log_variance_BZ: Tensor


class MultVae(Model):
    """Encoder I-H-2Z, decoder Z-H-I, tanh between, logits out.

    Differs from the source: noise and dropout come from counters of (seed, epoch, user, item), so
    that they do not depend on how users are dealt to workers.
    """

    def __init__(self, config: MultVaeConfig, item_count: int) -> None:
        super().__init__()
        self.config = config
        hidden, latent = config.hidden_width, config.latent_width
        self.input_IH = parameter(item_count, hidden)
        self.input_bias_H = parameter(hidden)
        self.to_code = nn.Linear(hidden, 2 * latent)
        self.from_code = nn.Linear(latent, hidden)
        self.output_IH = parameter(item_count, hidden)
        self.output_bias_I = parameter(item_count)
        self._initialise()

    def _initialise(self) -> None:
        for weight in (self.input_IH, self.to_code.weight, self.from_code.weight, self.output_IH):
            nn.init.xavier_uniform_(weight)
        for bias in (self.input_bias_H, self.to_code.bias, self.from_code.bias, self.output_bias_I):
            nn.init.trunc_normal_(bias, std=0.001, a=-0.002, b=0.002)

    @override
    def encode(self, batch: Batch, noise: Noise | None = None) -> MultVaeState:
        """Normalise to unit length, drop items, encode; sample the code where there is noise."""
        weight_B = inverse_root_length(batch)
        keep = 1.0 - self.config.input_dropout
        read = batch
        if noise is not None and keep < 1.0:
            draw_N = noise.uniform(_DROPOUT, batch.user_B[batch.row_N], batch.item_N)
            read = batch.keep(draw_N < keep)
            weight_B = weight_B / keep
        hidden_BH = history_sum(self.input_IH, read.item_N, weight_B[read.row_N], read.pointer_P)
        code = self.to_code(torch.tanh(hidden_BH + self.input_bias_H))
        mean_BZ, log_variance_BZ = code.chunk(2, dim=-1)
        code_BZ = mean_BZ
        if noise is not None:
            dimension_Z = torch.arange(mean_BZ.shape[1], device=mean_BZ.device)
            draw_BZ = noise.normal(_SAMPLE, batch.user_B[:, None], dimension_Z)
            code_BZ = mean_BZ + torch.exp(0.5 * log_variance_BZ) * draw_BZ.to(mean_BZ.dtype)
        return MultVaeState(torch.tanh(self.from_code(code_BZ)), mean_BZ, log_variance_BZ)

    @override
    def input_tables(self) -> Rows:
        return (self.input_IH,)

    @override
    def item_tables(self) -> Rows:
        return self.output_IH, self.output_bias_I

    @override
    def decode_rows(self, state: State, rows: Rows) -> Tensor:
        weight_IH, bias_I = rows
        return torch.addmm(bias_I, state[0], weight_IH.T)

    @override
    def ranking_score(self, output: Tensor) -> Tensor:
        return output

    @override
    def decayed_parameters(self) -> tuple[nn.Parameter, ...]:
        weights = (self.input_IH, self.to_code.weight, self.from_code.weight, self.output_IH)
        return cast("tuple[nn.Parameter, ...]", weights)

    @override
    def divergence(self, state: State) -> Tensor:
        """KL(q(z|x) || N(0, 1)), section 2.2 of the paper."""
        mean_BZ, log_variance_BZ = state[1].float(), state[2].float()
        term_BZ = log_variance_BZ.exp() + mean_BZ**2 - 1.0 - log_variance_BZ
        return 0.5 * term_BZ.sum(-1)
