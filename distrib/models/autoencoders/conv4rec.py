"""Conv4Rec: an autoencoder with 1x1 convolutions over the classes of each user-item pair.

Source: "Conv4Rec: A 1-by-1 Convolutional AutoEncoder for User Profiling through Joint Analysis of
Implicit and Explicit Feedbacks", IEEE TNNLS 36(12), 2025 (arXiv 2509.07499). Layer widths and
hyper-parameters are not public; ours are defaults that work. Its loss is
`distrib.objectives.rating_classes`.
"""

from typing import Annotated, ClassVar, Literal, NamedTuple, cast

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from typing_extensions import override

from distrib.batch import Batch, level_index
from distrib.config import Config
from distrib.models.base import ItemRows, Model, ModelSpec, UserState
from distrib.models.capabilities import InteractionHead, ItemVectors
from distrib.models.layers import history_sum, left_out, pair_products
from distrib.models.outputs import ClassOutput
from distrib.objectives import RatingClassesConfig
from distrib.parameters import ParameterRole, parameter, with_role
from distrib.rng import CounterRng
from distrib.vocabulary import Catalog, IntArray

_CORRUPTION = 1  # random stream
_PRIOR_USERS = 10.0
_MLP_WIDTH = 8
_LEAK = 0.1
_SLOPE = 2.0  # initial norm of the levels' slopes

_ENCODER, _DECODER = (
    ParameterRole(encoder=True, decay=1.0),
    ParameterRole(decoder=True, decay=1.0),
)
_TABLE, _SHARED = ParameterRole(decoder=True), ParameterRole(shared=True)


class Conv4RecConfig(Config):
    """Hyper-parameters of Conv4Rec."""

    name: Literal["conv4rec"] = "conv4rec"

    spec: ClassVar[ModelSpec] = ModelSpec("rating_classes", RatingClassesConfig())

    latent_width: PositiveInt = 200
    """Latent dimensions, r in the paper; low underfits, high needs more ratings."""

    rating_width: NonNegativeInt = 100
    """Further latent dimensions, which decode ratings while the others decode interactions; 0: both
    are decoded from the same dimensions, as with the decoders other than ``ordinal``."""

    encoder: Literal["conv", "dense"] = "conv"
    """``dense``: a row per item and level in place of the shared convolution; an ablation."""

    channel_hidden_width: PositiveInt = 16
    """Hidden channels of the encoder's convolution."""

    channel_width: PositiveInt = 8
    """Output channels of the encoder's convolution; fewer than rating levels are a constraint."""

    decoder: Literal["linear", "mlp", "ordinal"] = "ordinal"
    """``linear``: the dense layer gives the logits; ``mlp``: two more convolutions follow it;
    ``ordinal``: it gives two channels, the log-odds of an interaction and a position on the rating
    scale, and a convolution turns the second into logits of levels."""

    scale: Literal["history", "visible"] = "visible"
    """The encoder's sum is divided by the square root of a length; in training, that of the whole
    history, or of what corruption left of it. In inference the two are the same."""

    rating_decay: NonNegativeFloat = 1.0
    """Times ``optimizer.weight_decay`` is that of the table that decodes ratings: on sparse logs
    the ratings overfit long before the interactions do. With the decoder
    ``ordinal`` only, as the others have no such table."""

    corruption: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Share of the history that the encoder sees as "not observed" in training."""

    def build(self, catalog: Catalog) -> "Conv4Rec":
        """Make an untrained model for the catalog."""
        return Conv4Rec(self, catalog)


class Conv4RecState(NamedTuple):
    """User state of Conv4Rec."""

    latent_BZ: Tensor


class Conv4Rec(Model):
    """For each user-item pair, a softmax over C classes: not observed, or one of the rating levels.

    The encoder's convolution has only C different inputs, one per class, so the dense layer over
    items is a sum over the rated items (`history_sum`) of ``D_j^T (c(k) - c(0))``; the part of
    unrated items is a constant, absorbed by the bias. The dense ``[B, I, C]`` input never exists.

    Differs from the source: the sum is scaled by 1 / sqrt(length of the history); logits have a
    free bias per item and class that starts at the log of the item's smoothed frequencies;
    observed entries are hidden from the encoder at random, so that the target is not in the input;
    ReLUs are leaky, since with few channels plain ones can die at the start, which leaves the
    latent vector constant. The ``ordinal`` decoder is ours: with s the log-odds and v the position
    on the scale, its logits are 0 for "not observed" and s + log softmax_k(slope_k v + bias_k) for
    level k. So levels are learned from observed entries alone, and training decodes one number for
    each other pair. With it, half of the encoder's hidden channels start with a ramp over the
    levels.
    """

    def __init__(self, config: Conv4RecConfig, catalog: Catalog) -> None:
        super().__init__()
        self.config = config
        self.levels = catalog.levels
        self.output = ClassOutput(self.levels)
        num_levels, item_count = len(self.levels), catalog.item_count
        num_classes = num_levels + 1
        self.channels = _convolution(config, num_classes) if config.encoder == "conv" else None
        channels = config.channel_width if config.encoder == "conv" else num_levels
        is_ordinal = config.decoder == "ordinal"
        self.rating_width = config.rating_width if is_ordinal else 0
        latent = config.latent_width + self.rating_width
        self.input_IDZ = parameter(item_count, channels, latent, role=_ENCODER)
        self.input_bias_Z = parameter(latent)
        width = {"linear": num_classes, "mlp": _MLP_WIDTH, "ordinal": 1}[config.decoder]
        self.output_IDZ = parameter(item_count, width, config.latent_width, role=_DECODER)
        read = self.rating_width or config.latent_width
        role = _DECODER._replace(decay=config.rating_decay)
        self.rating_IZ = parameter(item_count, read, role=role) if is_ordinal else None
        self.slope_L = parameter(num_levels, role=_SHARED) if is_ordinal else None
        self.output_bias_ID = self.head = None
        if config.decoder == "mlp":
            self.output_bias_ID = parameter(item_count, width, role=_TABLE)
            self.head = _mlp_head(num_classes)
        self.prior_IC = parameter(item_count, num_classes, role=_TABLE)
        self._initialize(catalog)

    def _initialize(self, catalog: Catalog) -> None:
        nn.init.normal_(self.input_IDZ, std=self.input_IDZ.shape[1] ** -0.5)
        nn.init.zeros_(self.input_bias_Z)
        nn.init.normal_(self.output_IDZ, std=0.1 * self.output_IDZ.shape[-1] ** -0.5)
        if self.rating_IZ is not None and self.slope_L is not None:
            nn.init.normal_(self.rating_IZ, std=0.1 * self.rating_IZ.shape[-1] ** -0.5)
            place_L = torch.tensor(self.levels) - sum(self.levels) / len(self.levels)
            with torch.no_grad():
                self.slope_L.copy_(_SLOPE * place_L / place_L.norm().clamp(min=1e-6))
                if self.channels is not None:
                    _add_ramp(cast("Tensor", self.channels[0].weight), place_L)
        if self.output_bias_ID is not None:
            nn.init.normal_(self.output_bias_ID, std=1.0)
        with torch.no_grad():
            prior_IC = torch.from_numpy(log_frequencies(catalog))
            if self.slope_L is not None:  # the first column is then minus the log-odds
                prior_IC = prior_IC - torch.logsumexp(prior_IC[:, 1:], dim=1, keepdim=True)
            self.prior_IC.copy_(prior_IC)

    @override
    def encode(self, batch: Batch, rng: CounterRng | None = None) -> Conv4RecState:
        """Sum the contributions of the rated items."""
        read, length_B, weight_N = batch, batch.length_B, torch.ones_like(batch.value_N)
        if rng is not None and self.config.corruption > 0.0:
            draw_N = rng.uniform(_CORRUPTION, batch.user_B[batch.row_N], batch.item_N)
            keep_N = draw_N >= self.config.corruption
            read, kept_N = left_out(batch, keep_N)
            weight_N = keep_N.to(weight_N.dtype) if kept_N is None else weight_N[kept_N]
            if self.config.scale == "visible":
                length_B = batch.kept_pointer(keep_N).diff()
        level_N = level_index(read.value_N, self.levels)
        sum_of = self._dense if self.channels is None else self._conv
        sum_BZ = sum_of(read, level_N, weight_N)
        scale_B1 = length_B.clamp(min=1).to(torch.float32).rsqrt()[:, None].to(sum_BZ.dtype)
        return Conv4RecState(torch.tanh(sum_BZ * scale_B1 + self.input_bias_Z))

    def _conv(self, read: Batch, level_N: Tensor, weight_N: Tensor) -> Tensor:
        """Sum each item's channels, weighted by the convolution's output for the level."""
        assert self.channels is not None
        channels, device = self.config.channel_width, level_N.device
        one_hot_CC = torch.eye(len(self.levels) + 1, dtype=self.input_IDZ.dtype, device=device)
        value_CD = self.channels(one_hot_CC)
        weight_ND = (value_CD - value_CD[:1])[level_N + 1]
        if weight_N.is_cuda:  # elsewhere all are 1
            weight_ND = weight_ND * weight_N[:, None].to(weight_ND.dtype)
        index_ND = read.item_N[:, None] * channels + torch.arange(channels, device=device)
        return history_sum(
            self.input_IDZ.flatten(0, 1),
            index_ND.flatten(),
            weight_ND.flatten(),
            read.pointer_P * channels,
        )

    def _dense(self, read: Batch, level_N: Tensor, weight_N: Tensor) -> Tensor:
        """Sum the rows of the items at their levels."""
        index_N = read.item_N * len(self.levels) + level_N
        return history_sum(self.input_IDZ.flatten(0, 1), index_N, weight_N, read.pointer_P)

    @override
    def item_tables(self) -> ItemRows:
        if self.rating_IZ is not None:
            return self.output_IDZ, self.prior_IC, self.rating_IZ
        if self.output_bias_ID is None:
            return self.output_IDZ, self.prior_IC
        return self.output_IDZ, self.prior_IC, self.output_bias_ID

    def user_embedding(self, users: UserState) -> Tensor:
        return users[0] if self.slope_L is None else users[0][:, : self.config.latent_width]

    def item_vectors(self) -> ItemVectors | None:
        if self.slope_L is None:
            return None
        return ItemVectors(self.output_IDZ[:, 0], -self.prior_IC[:, 0])

    @override
    def decode_rows(self, users: UserState, rows: ItemRows) -> Tensor:
        weight_IDZ, prior_IC = rows[:2]
        if self.slope_L is not None:
            return self._ordinal(users[0], weight_IDZ[:, 0], prior_IC, rows[2])
        # Classes come first in memory, so that sums over them run over contiguous [B, I] planes.
        hidden_DBI = torch.matmul(users[0], weight_IDZ.permute(1, 2, 0))
        if self.head is None:
            return (hidden_DBI + prior_IC.T[:, None, :]).permute(1, 2, 0)
        hidden_BID = hidden_DBI.permute(1, 2, 0) + rows[2]
        return cast("Tensor", self.head(hidden_BID)) + prior_IC

    def _ordinal(
        self, latent_BZ: Tensor, weight_IZ: Tensor, prior_IC: Tensor, rating_IZ: Tensor
    ) -> Tensor:
        """Decode interactions and levels of all pairs."""
        logit_BI = self._interaction_logits((latent_BZ,), (weight_IZ[:, None], prior_IC))
        place_BI = self._rating_code(latent_BZ) @ rating_IZ.T
        slope_L = cast("Tensor", self.slope_L)
        level_LBI = place_BI * slope_L[:, None, None] + prior_IC.T[1:, None, :]
        level_LBI = logit_BI + torch.log_softmax(level_LBI, dim=0)
        return torch.cat([torch.zeros_like(logit_BI)[None], level_LBI]).permute(1, 2, 0)

    def _interaction_logits(self, users: UserState, rows: ItemRows) -> Tensor:
        weight_IDZ, prior_IC = rows
        latent_BZ = users[0][:, : self.config.latent_width]
        return torch.addmm(-prior_IC[:, 0], latent_BZ, weight_IDZ[:, 0].T)

    def _rating_code(self, latent_BZ: Tensor) -> Tensor:
        return latent_BZ[:, self.config.latent_width :] if self.rating_width else latent_BZ

    def interaction_head(self) -> InteractionHead | None:
        """Return separate decoders of log-odds and levels; see `HasInteractionHead`."""
        if self.slope_L is None:
            return None
        tables = (self.output_IDZ, self.prior_IC)
        return InteractionHead(tables, self._interaction_logits, self._rating_logits)

    def _rating_logits(self, users: UserState, pairs: Batch) -> Tensor:
        """Decode the levels of some pairs, ``[N, L]``."""
        assert self.rating_IZ is not None
        assert self.slope_L is not None
        latent_BZ = self._rating_code(users[0])
        place_N = pair_products(latent_BZ, self.rating_IZ, pairs.item_N, pairs.pointer_P)
        return place_N[:, None] * self.slope_L + self.prior_IC[pairs.item_N, 1:]

    @override
    def score_pairs(self, users: UserState, pairs: Batch) -> Tensor:
        if self.slope_L is None:
            return super().score_pairs(users, pairs)
        latent_BZ = users[0][:, : self.config.latent_width]
        weight_IZ = self.output_IDZ[:, 0]
        logit_N = pair_products(latent_BZ, weight_IZ, pairs.item_N, pairs.pointer_P)
        logit_N1 = (logit_N - self.prior_IC[pairs.item_N, 0])[:, None]
        level_NL = torch.log_softmax(self._rating_logits(users, pairs), dim=-1)
        return torch.cat([torch.zeros_like(logit_N1), logit_N1 + level_NL], dim=1)


def log_frequencies(catalog: Catalog, prior_users: float = _PRIOR_USERS) -> np.ndarray:
    """Return log frequencies of classes by item, smoothed toward those of all items.

    Args:
        catalog: Holds the counts.
        prior_users: Weight of the frequencies of all items, in users.

    Returns:
        float32 ``[I, C]``: log((count_jk + prior_users * q_k) / (users + prior_users)).
    """
    count_IC = _outcome_counts(catalog.train_count_IL, catalog.num_users)
    all_C = (count_IC.sum(0) + 1e-3) / (count_IC.sum() + 1e-3 * count_IC.shape[1])
    smoothed_IC = (count_IC + prior_users * all_C) / (catalog.num_users + prior_users)
    return np.asarray(np.log(smoothed_IC), dtype=np.float32)


def _outcome_counts(count_IL: IntArray, num_users: int) -> np.ndarray:
    none_I1 = np.maximum(num_users - count_IL.sum(1, keepdims=True), 0)
    return np.concatenate([none_I1, count_IL], axis=1).astype(np.float64)


def _convolution(config: Conv4RecConfig, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_classes, config.channel_hidden_width),
        nn.LeakyReLU(_LEAK),
        nn.Linear(config.channel_hidden_width, config.channel_width),
        nn.LeakyReLU(_LEAK),
    )


def _add_ramp(weight_HC: Tensor, place_L: Tensor) -> None:
    """Start half of the hidden channels with a rise or fall over the levels.

    Some purely random starts separate the levels badly and do not recover.
    """
    ramp_L = place_L / place_L.abs().max().clamp(min=1e-6)
    half = len(weight_HC) // 2
    sign_H1 = 1.0 - 2.0 * (torch.arange(half) % 2)[:, None]
    weight_HC[:half, 1:] += sign_H1 * ramp_L


def _mlp_head(num_classes: int) -> nn.Sequential:
    head = nn.Sequential(
        nn.LeakyReLU(_LEAK),
        nn.Linear(_MLP_WIDTH, 2 * _MLP_WIDTH),
        nn.LeakyReLU(_LEAK),
        nn.Linear(2 * _MLP_WIDTH, num_classes),
    )
    for weight in head.parameters():
        with_role(weight, _SHARED)
    return head
