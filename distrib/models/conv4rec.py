"""Conv4Rec: an autoencoder with 1x1 convolutions over the outcomes of each user and item.

Source: "Conv4Rec: A 1-by-1 Convolutional AutoEncoder for User Profiling through Joint Analysis of
Implicit and Explicit Feedbacks", IEEE TNNLS 36(12), 2025 (arXiv 2509.07499). Layer widths and
hyper-parameters are not public; ours are defaults that work.
"""

from typing import Annotated, ClassVar, Literal, NamedTuple, cast

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from typing_extensions import override

from distrib.batch import Batch, level_index
from distrib.config import Config
from distrib.models.base import Model, Opinion, Rows, State, Traits, parameter
from distrib.models.layers import history_sum, inverse_root_length, log_odds, opinion_of
from distrib.noise import Noise
from distrib.objectives import RatingClassesConfig
from distrib.vocabulary import Catalogue, IntArray

_CORRUPTION = 1  # stream of noise
_PRIOR_USERS = 10.0
_MLP_WIDTH = 8
_LEAK = 0.1


class Conv4RecConfig(Config):
    """Hyper-parameters of Conv4Rec."""

    name: Literal["conv4rec"] = "conv4rec"

    traits: ClassVar[Traits] = Traits("outcomes", RatingClassesConfig())

    latent_width: PositiveInt = 100
    """Dimensions of the code, r in the paper; low underfits, high needs more ratings."""

    channel_hidden_width: PositiveInt = 16
    """Hidden channels of the encoder's convolution."""

    channel_width: PositiveInt = 8
    """Output channels of the encoder's convolution; fewer than rating levels are a constraint."""

    decoder: Literal["linear", "mlp"] = "linear"
    """``linear``: the dense layer gives the logits; ``mlp``: two more convolutions follow it."""

    corruption: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Share of the history that the encoder sees as "not observed" in training."""

    def build(self, catalogue: Catalogue) -> "Conv4Rec":
        """Make an untrained model for the catalogue."""
        return Conv4Rec(self, catalogue)


class Conv4RecState(NamedTuple):
    """Users as Conv4Rec sees them."""

    code_BZ: Tensor


class Conv4Rec(Model):
    """Per user and item a softmax over C outcomes: not observed, or one of the rating levels.

    The encoder's convolution takes C values only, one per outcome, so the dense layer over items is
    a sum over the rated items (`history_sum`) of ``D_j^T (c(k) - c(0))``; the part of the unrated
    ones is a constant, kept as the free bias. The dense ``[B, I, C]`` input never exists.

    Differs from the source: the sum is scaled by 1 / sqrt(length of the history); logits have a
    free bias per item and outcome that starts at the log of the item's smoothed frequencies;
    observed cells are hidden from the encoder at random, so that the target is not in the input;
    ReLUs leak, since with few channels a plain one can die at the start and take the code with it.
    """

    def __init__(self, config: Conv4RecConfig, catalogue: Catalogue) -> None:
        super().__init__()
        self.config = config
        self.levels = catalogue.levels
        num_outcomes, item_count = len(self.levels) + 1, catalogue.item_count
        latent, channels = config.latent_width, config.channel_width
        self.channels = nn.Sequential(
            nn.Linear(num_outcomes, config.channel_hidden_width),
            nn.LeakyReLU(_LEAK),
            nn.Linear(config.channel_hidden_width, channels),
            nn.LeakyReLU(_LEAK),
        )
        self.input_IDZ = parameter(item_count, channels, latent)
        self.input_bias_Z = parameter(latent)
        width = num_outcomes if config.decoder == "linear" else _MLP_WIDTH
        self.output_IDZ = parameter(item_count, width, latent)
        self.output_bias_ID = parameter(item_count, width) if config.decoder == "mlp" else None
        self.head = _mlp_head(num_outcomes) if config.decoder == "mlp" else None
        self.prior_IC = parameter(item_count, num_outcomes)
        self._initialise(catalogue)

    def _initialise(self, catalogue: Catalogue) -> None:
        latent = self.config.latent_width
        nn.init.normal_(self.input_IDZ, std=self.config.channel_width**-0.5)
        nn.init.zeros_(self.input_bias_Z)
        nn.init.normal_(self.output_IDZ, std=0.1 * latent**-0.5)
        if self.output_bias_ID is not None:
            nn.init.normal_(self.output_bias_ID, std=1.0)
        with torch.no_grad():
            self.prior_IC.copy_(torch.from_numpy(log_frequencies(catalogue)))

    @override
    def encode(self, batch: Batch, noise: Noise | None = None) -> Conv4RecState:
        """Sum the rated items' contributions, shared convolution first."""
        outcome_N = level_index(batch.value_N, self.levels) + 1
        if noise is not None and self.config.corruption > 0.0:
            draw_N = noise.uniform(_CORRUPTION, batch.user_B[batch.row_N], batch.item_N)
            outcome_N = torch.where(draw_N < self.config.corruption, 0, outcome_N)
        channels = self.config.channel_width
        one_hot_CC = torch.eye(
            len(self.levels) + 1, dtype=self.input_IDZ.dtype, device=outcome_N.device
        )
        value_CD = self.channels(one_hot_CC)
        weight_ND = (value_CD - value_CD[:1])[outcome_N]
        channel_D = torch.arange(channels, device=outcome_N.device)
        index_ND = batch.item_N[:, None] * channels + channel_D
        sum_BZ = history_sum(
            self.input_IDZ.flatten(0, 1),
            index_ND.flatten(),
            weight_ND.flatten(),
            batch.pointer_P * channels,
        )
        scale_B1 = inverse_root_length(batch)[:, None].to(sum_BZ.dtype)
        return Conv4RecState(torch.tanh(sum_BZ * scale_B1 + self.input_bias_Z))

    @override
    def input_tables(self) -> Rows:
        return (self.input_IDZ,)

    @override
    def item_tables(self) -> Rows:
        if self.output_bias_ID is None:
            return self.output_IDZ, self.prior_IC
        return self.output_IDZ, self.prior_IC, self.output_bias_ID

    @override
    def shared_parameters(self) -> tuple[nn.Parameter, ...]:
        return () if self.head is None else tuple(self.head.parameters())

    @override
    def decode_rows(self, state: State, rows: Rows) -> Tensor:
        weight_IDZ, prior_IC = rows[:2]
        # Outcomes first in memory: sums over them then run over whole planes of cells.
        hidden_DBI = torch.matmul(state[0], weight_IDZ.permute(1, 2, 0))
        if self.head is None:
            return (hidden_DBI + prior_IC.T[:, None, :]).permute(1, 2, 0)
        hidden_BID = hidden_DBI.permute(1, 2, 0) + rows[2]
        return cast("Tensor", self.head(hidden_BID)) + prior_IC

    @override
    def ranking_score(self, output: Tensor) -> Tensor:
        return log_odds(output)

    @override
    def opinion(self, output: Tensor) -> Opinion:
        return opinion_of(output, self.levels)

    @override
    def decayed_parameters(self) -> tuple[nn.Parameter, ...]:
        return self.input_IDZ, self.output_IDZ


def log_frequencies(catalogue: Catalogue, prior_users: float = _PRIOR_USERS) -> np.ndarray:
    """Return log frequencies of outcomes by item, smoothed towards those of all items.

    Args:
        catalogue: Holds the counts.
        prior_users: Weight of the frequencies of all items, in users.

    Returns:
        float32 ``[I, C]``: log((count_jk + prior_users * q_k) / (users + prior_users)).
    """
    count_IC = _outcome_counts(catalogue.train_count_IL, catalogue.num_users)
    all_C = (count_IC.sum(0) + 1e-3) / (count_IC.sum() + 1e-3 * count_IC.shape[1])
    smoothed_IC = (count_IC + prior_users * all_C) / (catalogue.num_users + prior_users)
    return np.asarray(np.log(smoothed_IC), dtype=np.float32)


def _outcome_counts(count_IL: IntArray, num_users: int) -> np.ndarray:
    none_I1 = np.maximum(num_users - count_IL.sum(1, keepdims=True), 0)
    return np.concatenate([none_I1, count_IL], axis=1).astype(np.float64)


def _mlp_head(num_outcomes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LeakyReLU(_LEAK),
        nn.Linear(_MLP_WIDTH, 2 * _MLP_WIDTH),
        nn.LeakyReLU(_LEAK),
        nn.Linear(2 * _MLP_WIDTH, num_outcomes),
    )
