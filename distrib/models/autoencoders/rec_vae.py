"""RecVAE: Mult-VAE with a composite prior, alternating training and a KL weight per user.

Source: Shenbin, Alekseev, Tutubalina, Malykh, Nikolenko, "RecVAE: A New Variational Autoencoder for
Top-N Recommendations with Implicit Feedback", WSDM 2020, and the authors' code, of which two
versions are public.
"""

import math
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from typing_extensions import override

from distrib.batch import Batch
from distrib.config import Config
from distrib.devices import constant
from distrib.models.base import ItemRows, Model, ModelSpec, UserState
from distrib.models.layers import LinearDecoder, history_sum, normal_sample, unit_input
from distrib.objectives import MultinomialConfig
from distrib.parameters import ParameterRole, parameter, with_role
from distrib.rng import CounterRng
from distrib.vocabulary import Catalog

_DROPOUT, _SAMPLE = 1, 2  # random streams
_NUM_BLOCKS = 5
_STANDARD, _OLD, _WIDE = 3 / 20, 3 / 4, 1 / 10
_WIDE_LOG_VARIANCE = 10.0
_EPSILON = {"master": 0.1, "wsdm": 1e-5}


class RecVaeConfig(Config):
    """Hyper-parameters of RecVAE; the defaults are the authors' for ML-20M."""

    name: Literal["rec_vae"] = "rec_vae"

    spec: ClassVar[ModelSpec] = ModelSpec(
        "scores", MultinomialConfig(kl_weight=1.0, anneal_steps=0)
    )

    variant: Literal["master", "wsdm"] = "master"
    """Branch of the authors' code; they differ in the epsilon of layer normalization, 0.1 in
    ``master`` and 1e-5 in ``wsdm``."""

    hidden_width: PositiveInt = 600
    """Units of each of the encoder's five blocks."""

    latent_width: PositiveInt = 200
    """Latent dimensions."""

    input_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Share of the history that is hidden from the encoder while the encoder is trained."""

    gamma: PositiveFloat = 0.005
    """Weight of the KL term per interaction of a user, gamma in the paper."""

    encoder_epochs: PositiveInt = 3
    """Consecutive epochs that train the encoder; the next one trains the decoder."""

    def build(self, catalog: Catalog) -> "RecVae":
        """Make an untrained model for the catalog."""
        return RecVae(self, catalog.item_count)


class RecVaeState(NamedTuple):
    """User state of RecVAE."""

    latent_BZ: Tensor
    kl_B: Tensor
    """Weighted, nats; 0 outside training."""


class RecVae(LinearDecoder, Model):
    """Five densely connected blocks to a Gaussian latent vector; one linear layer back.

    The prior of each latent dimension is a mixture of a standard normal, the encoder's posterior
    after its previous turn, and a wide normal. Encoder and decoder are trained in turns, each with
    its own optimizer state; the decoder without dropout, on sampled latent vectors.

    Differs from the source: noise comes from counters (`CounterRng`); the ``wsdm`` branch stores
    the old posterior of each training user, equal to that of the old encoder, used here for both;
    the part that is not trained in a turn gets no gradient.
    """

    def __init__(self, config: RecVaeConfig, item_count: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = _Encoder(item_count, config)
        self.output_IZ = parameter(
            item_count, config.latent_width, role=ParameterRole(decoder=True)
        )
        self.output_bias_I = with_role(
            nn.Parameter(torch.zeros(item_count)), ParameterRole(decoder=True)
        )
        nn.init.kaiming_uniform_(self.output_IZ, a=math.sqrt(5))  # as torch's linear layers
        self.old = _without_parameters(_Encoder(item_count, config))
        self.phase = "encoder"

    def phases(self) -> dict[str, tuple[nn.Parameter, ...]]:
        """Return encoder and decoder; see `TrainsInPhases`."""
        return {
            "encoder": tuple(self.encoder.parameters()),
            "decoder": (self.output_IZ, self.output_bias_I),
        }

    def begin_epoch(self, epoch: int) -> str:
        """Return the part that the epoch trains."""
        turn = epoch % (self.config.encoder_epochs + 1)
        self.phase = "encoder" if turn < self.config.encoder_epochs else "decoder"
        return self.phase

    def end_epoch(self, epoch: int) -> None:
        """After the encoder's turn, copy it to the old encoder."""
        if epoch % (self.config.encoder_epochs + 1) == self.config.encoder_epochs - 1:
            fresh = dict(self.encoder.named_parameters())
            for name, buffer in self.old.named_buffers():
                buffer.copy_(fresh[name].detach())

    @override
    def encode(self, batch: Batch, rng: CounterRng | None = None) -> RecVaeState:
        """Encode; in training, sample the latent vector and estimate its KL term."""
        is_encoders_turn = self.phase == "encoder"
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_encoders_turn):
            dropout = self.config.input_dropout if is_encoders_turn else 0.0
            mean_BZ, log_variance_BZ = self.encoder(batch, dropout, rng)
            if rng is None:
                return RecVaeState(mean_BZ, mean_BZ.new_zeros(batch.num_users))
            latent_BZ = normal_sample(mean_BZ, log_variance_BZ, batch, rng, _SAMPLE)
            with torch.no_grad():
                old = self.old(batch, 0.0, None)
            new = (mean_BZ, log_variance_BZ)
            weight_B = self.config.gamma * batch.length_B
            return RecVaeState(latent_BZ, weight_B * kl_estimate(latent_BZ, new, old))

    def kl(self, users: UserState) -> Tensor:
        """Return the KL term that `encode` computed; see `Variational`."""
        return users[1]

    @override
    def item_tables(self) -> ItemRows:
        return self.output_IZ, self.output_bias_I


def kl_estimate(
    latent_BZ: Tensor, new: tuple[Tensor, Tensor], old: tuple[Tensor, Tensor]
) -> Tensor:
    """Estimate KL(q || composite prior) from one sample, nats, ``[B]``; may be negative.

    Source: RecVAE, eq. 8 and 9, and the authors' code: each dimension has its own mixture, and the
    terms are summed over dimensions; it is not a mixture over whole vectors.

    Args:
        latent_BZ: Drawn from the new posterior.
        new: Mean and log-variance of the posterior.
        old: Those of the old encoder.

    Returns:
        log q - log p at the sample.
    """
    latent_BZ = latent_BZ.float()
    wide = constant((_WIDE_LOG_VARIANCE,), torch.float32, latent_BZ.device)
    nothing = torch.zeros_like(wide)
    parts = ((_STANDARD, nothing, nothing), (_OLD, *old), (_WIDE, nothing, wide))
    prior_BZ = torch.logsumexp(
        torch.stack([math.log(w) + _log_normal(latent_BZ, m, v) for w, m, v in parts]), dim=0
    )
    return (_log_normal(latent_BZ, *new) - prior_BZ).sum(-1)


def _log_normal(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    mean, log_variance = mean.float(), log_variance.float()
    square = (x - mean).square() * torch.exp(-log_variance)
    return -0.5 * (log_variance + math.log(2 * math.pi) + square)


class _Encoder(nn.Module):
    """Blocks m = 1..5: h_m = LN(swish(W_m h_(m-1) + b_m + h_1 + ... + h_(m-1)))."""

    def __init__(self, item_count: int, config: RecVaeConfig) -> None:
        super().__init__()
        hidden = config.hidden_width
        epsilon = _EPSILON[config.variant]
        self.first_IH = parameter(item_count, hidden, role=ParameterRole(encoder=True))
        self.first_bias_H = parameter(hidden)
        bound = item_count**-0.5  # as torch's linear layers
        nn.init.uniform_(self.first_IH, -bound, bound)
        nn.init.uniform_(self.first_bias_H, -bound, bound)
        self.blocks = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(_NUM_BLOCKS - 1))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden, eps=epsilon) for _ in range(_NUM_BLOCKS))
        self.to_mean = nn.Linear(hidden, config.latent_width)
        self.to_log_variance = nn.Linear(hidden, config.latent_width)

    @override
    def forward(
        self, batch: Batch, dropout: float, rng: CounterRng | None
    ) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of each user's posterior."""
        read, weight_N = unit_input(
            batch, by_value=False, dropout=dropout, rng=rng, stream=_DROPOUT
        )
        sum_BH = history_sum(self.first_IH, read.item_N, weight_N, read.pointer_P)
        hidden_BH = self.norms[0](F.silu(sum_BH + self.first_bias_H))
        before_BH = hidden_BH
        for block, norm in zip(self.blocks, list(self.norms)[1:], strict=True):
            hidden_BH = norm(F.silu(block(hidden_BH) + before_BH))
            before_BH = before_BH + hidden_BH
        return self.to_mean(hidden_BH), self.to_log_variance(hidden_BH)


def _without_parameters(module: nn.Module) -> nn.Module:
    """Turn parameters into non-persistent buffers: not trained, and not needed for inference."""
    for part in module.modules():
        for name, held in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, held.detach(), persistent=False)
    return module
