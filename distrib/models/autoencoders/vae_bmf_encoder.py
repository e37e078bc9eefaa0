"""The encoders of VAE-BMF: from ratings, and latent vectors of rated columns, to a posterior.

Source: see `vae_bmf`.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from distrib.batch import Batch
from distrib.models.layers import history_sum, pair_products, softmax_attention
from distrib.parameters import ParameterRole, with_role
from distrib.rng import CounterRng
from distrib.tiles import Side

PRIOR_RATINGS = 5.0
"""Weight, in ratings, of the expected mean rating when estimating that of a row."""

_MEAN, _VARIANCE = 0, 1  # the two networks
_FLOOR = 0.1  # least linear_safe denominator, as a share of the sum of absolute products
_STEP_BITS = 36  # above any row number, so that row and step share one counter
_BLOCK_ROWS = 4096


class EncoderShape(NamedTuple):
    """The settings of `VaeBmfConfig` that an encoder depends on."""

    latent_width: int
    branch_width: int
    hidden_width: int
    branch_layers: int
    fused_layers: int
    data: bool
    latent: str
    attention: str
    attention_norm: str
    centering: str
    biases: bool

    @classmethod
    def of(cls, config: Any) -> "EncoderShape":
        """Copy them from a `VaeBmfConfig`."""
        return cls(*(getattr(config, name) for name in cls._fields))


class Posterior(NamedTuple):
    """Diagonal normals of some rows, and the offsets of their ratings."""

    mean_BZ: Tensor
    log_variance_BZ: Tensor
    offset_B: Tensor
    """Mean rating plus bias; each is 0 if its setting is off."""


class LatentFactors(NamedTuple):
    """The factors of some rows, whose products are ratings."""

    latent_BZ: Tensor
    variance_BZ: Tensor | None
    """None if the latent vectors are samples."""

    offset_B: Tensor
    """Added to the products; see `Posterior`."""


class Encoder(nn.Module):
    """The networks of one side; each parameter holds two, for mean and for variance.

    Args:
        config: Hyper-parameters of both sides.
        offset_I: Mean ratings of columns, subtracted from their ratings.
        is_there_I: Whether the column has training ratings.
        mean: Expected mean of a row's ratings after subtracting ``offset_I``.
        is_trained: Whether to hold what only training needs.
    """

    def __init__(
        self,
        config: EncoderShape,
        offset_I: Tensor,
        is_there_I: Tensor,
        mean: float,
        *,
        is_trained: bool,
    ) -> None:
        super().__init__()
        self.config, self.mean = config, mean
        columns, code = len(offset_I), config.latent_width
        inner = [config.hidden_width] * config.branch_layers
        widths = [*inner, config.branch_width]
        self._register_latents(offset_I, is_there_I)
        if config.data:
            rating_IH = _uniform(columns, 2 * widths[0], fan=columns)
            self.rating_IH = with_role(rating_IH, ParameterRole(decay=1.0))
            self.rating_first = _Bias(widths[0])
            self.rating_layers = _Layers(widths)
        if config.latent == "full":
            self._register_matrices(2 * widths[0], is_trained=is_trained)
        if config.latent in ("average", "gated"):
            self.latent_WZH = _uniform(2, code, widths[0], fan=code)
        if config.latent == "gated":
            gate_IW = nn.Parameter(torch.full((columns, 2), columns**-0.5))
            self.gate_IW = with_role(gate_IW, ParameterRole(decay=1.0))
        if config.latent != "none":
            self.latent_first = _Bias(widths[0])
            self.latent_layers = _Layers(widths)
        num_branches = int(config.data) + int(config.latent != "none")
        fused = [num_branches * config.branch_width, *[config.hidden_width] * config.fused_layers]
        self.fused_layers = _Layers(fused)
        self.output = _Linear(fused[-1], code)
        if config.biases:
            self.bias_H1 = _uniform(fused[-1], 1, fan=fused[-1])
        if config.attention != "none":
            self.query_WZZ = _uniform(2, code, code, fan=code)
            self.refined = _Linear(2 * code, code)

    def _register_latents(self, offset_I: Tensor, is_there_I: Tensor) -> None:
        """Register the other side's latent vectors, which start as N(0, I)."""
        columns = len(offset_I)
        self.register_buffer("offset_I", offset_I.clone())
        self.register_buffer("code_IZ", torch.randn(columns, self.config.latent_width))
        self.register_buffer("code_offset_I", offset_I.clone())
        self.register_buffer("is_there_I", is_there_I.float())
        width = self.config.latent_width
        self.register_buffer("gram_ZZ", torch.zeros(width, width))
        self.register_buffer("total_Z", torch.zeros(width))
        self.offset_I: Tensor
        self.code_IZ: Tensor
        self.code_offset_I: Tensor
        self.is_there_I: Tensor
        self.gram_ZZ: Tensor
        self.total_Z: Tensor
        self._sum_up()

    def _register_matrices(self, hidden: int, *, is_trained: bool) -> None:
        """Register the latent branch's first layer: its table and, in training, Phi and delta."""
        columns, code = self.code_IZ.shape
        self.register_buffer("base_IH", torch.zeros(columns, hidden))
        self.base_IH: Tensor
        if is_trained:
            self.register_buffer("size_I", torch.zeros(columns), persistent=False)
            self.size_I: Tensor
            delta_IH = nn.Parameter(torch.zeros(columns, hidden))
            self.delta_IH = with_role(delta_IH, ParameterRole(accumulated=True))
            bound = (columns * code) ** -0.5
            values = torch.empty(columns, code, hidden).uniform_(-bound, bound)
            self.register_buffer("matrix_IZH", values, persistent=False)
            self.matrix_IZH: Tensor
            self._tabulate()

    @override
    def forward(self, side: Side, weight_N: Tensor | None = None) -> Posterior:
        """Return the posteriors of some rows, whose branches read weighted interactions."""
        batch = side.batch
        value_N, offset_B = self._centered(side)
        if weight_N is None:
            weight_N = torch.ones_like(value_N)
        else:
            value_N = value_N * weight_N
        branches = []
        if self.config.data:
            sum_BH = history_sum(
                self.rating_IH, batch.item_N, value_N, batch.pointer_P, side.transposed
            )
            branches.append(self.rating_layers(self.rating_first(_by_network(sum_BH, side))))
        if self.config.latent != "none":
            branches.append(self.latent_layers(self.latent_first(self._latent(side, weight_N))))
        fused_WBH = self.fused_layers(torch.cat(branches, dim=2))
        output_WBZ = self.output(fused_WBH)
        if self.config.attention != "none":
            mean_BZ, variance_BZ = output_WBZ[_MEAN], torch.sigmoid(output_WBZ[_VARIANCE])
            shown_WBZ = torch.stack([mean_BZ, variance_BZ])
            query_WBZ = torch.bmm(shown_WBZ, self.query_WZZ)
            met_WBZ = self._attended(query_WBZ, batch)
            output_WBZ = self.refined(torch.cat([shown_WBZ, met_WBZ], dim=2))
        if self.config.biases:
            offset_B = offset_B + (fused_WBH[_MEAN] @ self.bias_H1)[:, 0]
        precise_WBZ = output_WBZ.to(torch.promote_types(output_WBZ.dtype, torch.float32))
        return Posterior(precise_WBZ[_MEAN], F.logsigmoid(precise_WBZ[_VARIANCE]), offset_B)

    def readable(self, batch: Batch) -> Batch:
        """Return the rows with only the columns that training saw."""
        is_within_N = batch.item_N < len(self.code_IZ)
        if not is_within_N.all():
            batch = batch.keep(is_within_N)
        is_there_N = self.is_there_I[batch.item_N] > 0
        return batch if is_there_N.all() else batch.keep(is_there_N)

    def _centered(self, side: Side) -> tuple[Tensor, Tensor]:
        """Return the centered ratings, and the mean rating of each row."""
        batch = side.batch
        if self.config.centering == "none":
            return batch.value_N, batch.value_N.new_zeros(batch.num_users)
        offset_I = self.offset_I.to(batch.value_N.dtype)
        value_N = batch.value_N - offset_I[batch.item_N] - self.mean
        # offset_B = sum / (length + PRIOR_RATINGS); scale_B extends both from a sample to all.
        sum_B = value_N.new_zeros(batch.num_users).index_add(0, batch.row_N, value_N)
        offset_B = sum_B * side.scale_B / (batch.length_B * side.scale_B + PRIOR_RATINGS)
        return value_N - offset_B[batch.row_N], offset_B + self.mean

    def _latent(self, side: Side, weight_N: Tensor) -> Tensor:
        """Return the first layer of the latent branch before bias and ReLU, ``[2, B, H]``."""
        batch, dtype = side.batch, self.output.weight_WHO.dtype
        index_N, pointer_P = batch.item_N, batch.pointer_P
        if self.config.latent == "full":
            # v_j (Phi_j + sign(v_j) (outer) delta_j) = base_j + |v_j|_1 delta_j, for each column j.
            sum_BH = history_sum(self.base_IH, index_N, weight_N, pointer_P)
            if hasattr(self, "delta_IH"):
                size_N = self.size_I[index_N] * weight_N
                found = history_sum(self.delta_IH, index_N, size_N, pointer_P, side.transposed)
                sum_BH = sum_BH + found
            return _by_network(sum_BH.to(dtype), side)
        if self.config.latent == "average":
            count_B1 = batch.length_B.clamp(min=1)[:, None]
            sum_BZ = history_sum(self.code_IZ, index_N, weight_N, pointer_P) / count_B1
            sum_WBZ = sum_BZ.expand(2, -1, -1)
        else:
            gate_NW = F.embedding(index_N, self.gate_IW) * weight_N[:, None]
            sum_WBZ = side.scale_B.to(self.code_IZ.dtype)[:, None] * torch.stack(
                [history_sum(self.code_IZ, index_N, gate_N, pointer_P) for gate_N in gate_NW.T]
            )
        return torch.bmm(sum_WBZ.to(dtype), self.latent_WZH)

    def _attended(self, query_WBZ: Tensor, batch: Batch) -> Tensor:
        """Return the attention-weighted mean of the other side's latent vectors, ``[2, B, Z]``.

        In the precision of ``code_IZ``, at least float32, since sums run over thousands of columns.
        """
        query_QZ = query_WBZ.flatten(0, 1).to(self.code_IZ.dtype)
        if self.config.attention == "global":
            found_QZ = self._attended_of_all(query_QZ)
        else:
            # Q = 2 B: the histories repeat, once for the queries of each network.
            index_N = torch.cat([batch.item_N, batch.item_N])
            pointer_P = torch.cat([batch.pointer_P, batch.pointer_P[1:] + len(batch.item_N)])
            if self.config.attention_norm == "softmax":
                scaled_QZ = query_QZ * query_QZ.shape[1] ** -0.5
                found_QZ = softmax_attention(scaled_QZ, self.code_IZ, index_N, pointer_P)
            else:
                found_QZ = self._linear_local(query_QZ, index_N, pointer_P)
        return found_QZ.view_as(query_WBZ).to(query_WBZ.dtype)

    def _attended_of_all(self, query_QZ: Tensor) -> Tensor:
        latent_IZ = self.code_IZ[self.is_there_I > 0]
        if self.config.attention_norm == "softmax":
            one = (query_QZ[None, None], latent_IZ[None, None], latent_IZ[None, None])
            return F.scaled_dot_product_attention(*one)[0, 0]

        def absolute() -> Tensor:
            parts = latent_IZ.split(_BLOCK_ROWS)
            return torch.stack([(query_QZ @ part.T).abs().sum(1) for part in parts]).sum(0)

        # sum_i (q . v_i) v_i = q sum_i v_i^T v_i = q gram_ZZ, and sum_i q . v_i = q . total_Z.
        denominator_Q = _denominator(self.config.attention_norm, query_QZ @ self.total_Z, absolute)
        return query_QZ @ self.gram_ZZ / denominator_Q[:, None]

    def _linear_local(self, query_QZ: Tensor, index_N: Tensor, pointer_P: Tensor) -> Tensor:
        product_N = pair_products(query_QZ, self.code_IZ, index_N, pointer_P)
        row_N = torch.arange(len(query_QZ), device=index_N.device).repeat_interleave(
            pointer_P.diff(), output_size=len(index_N)
        )
        total_Q = product_N.new_zeros(len(query_QZ)).index_add(0, row_N, product_N)

        def absolute() -> Tensor:
            return torch.zeros_like(total_Q).index_add(0, row_N, product_N.abs())

        sum_QZ = history_sum(self.code_IZ, index_N, product_N, pointer_P)
        denominator_Q = _denominator(self.config.attention_norm, total_Q, absolute)
        return sum_QZ / torch.where(pointer_P.diff() > 0, denominator_Q, 1.0)[:, None]

    def last_latents(self) -> LatentFactors:
        """Return the latent vectors that this encoder reads, as factors."""
        return LatentFactors(self.code_IZ, None, self.code_offset_I)

    @torch.no_grad()
    def fold(self) -> None:
        """Add the deltas to the matrices; the encoder's output does not change."""
        if not hasattr(self, "delta_IH"):
            return
        matrix_IZH = self.matrix_IZH
        for low, high in pairwise([*range(0, len(matrix_IZH), _BLOCK_ROWS), len(matrix_IZH)]):
            delta_IH = self.delta_IH[low:high].to(matrix_IZH.dtype)
            direction_IZ = self.code_IZ[low:high].to(matrix_IZH.dtype).sign()
            matrix_IZH[low:high] += direction_IZ[:, :, None] * delta_IH[:, None]
        # v_j sign(v_j) = |v_j|_1, so the new table of v_j Phi_j needs no product with Phi.
        self.base_IH += self.size_I[:, None] * self.delta_IH
        self.delta_IH.zero_()

    @torch.no_grad()
    def read(self, latent_IZ: Tensor, offset_I: Tensor) -> None:
        """Set the latent vectors to read from now on; NaN for columns without training ratings."""
        is_there_I = ~latent_IZ.isnan().any(1)
        self.is_there_I.copy_(is_there_I)
        self.code_IZ.copy_(latent_IZ.nan_to_num(0.0))
        self.code_offset_I.copy_(offset_I.nan_to_num(0.0))
        self._sum_up()
        self._tabulate()

    @torch.no_grad()
    def _sum_up(self) -> None:
        """Compute the sums that linear attention to all columns needs."""
        latent_IZ = self.code_IZ[self.is_there_I > 0]
        self.gram_ZZ.copy_(latent_IZ.T @ latent_IZ)
        self.total_Z.copy_(latent_IZ.sum(0))

    @torch.no_grad()
    def _tabulate(self) -> None:
        """Compute the table of the latent branch for the current latent vectors."""
        if not hasattr(self, "delta_IH"):
            return
        self.size_I.copy_(self.code_IZ.abs().sum(1))
        matrix_IZH = self.matrix_IZH
        for low, high in pairwise([*range(0, len(matrix_IZH), _BLOCK_ROWS), len(matrix_IZH)]):
            latent_IZ = self.code_IZ[low:high].to(matrix_IZH.dtype)
            self.base_IH[low:high] = torch.bmm(latent_IZ[:, None], matrix_IZH[low:high])[:, 0]


def dropout_weight(
    dropout: float, batch: Batch, rng: CounterRng, stream: int, step_1: Tensor
) -> Tensor | None:
    """Return the dropout weight of each interaction; None without dropout."""
    keep = 1.0 - dropout
    if keep == 1.0:
        return None
    place_B = batch.user_B + (step_1 << _STEP_BITS)
    draw_N = rng.uniform(stream, place_B[batch.row_N], batch.item_N)
    return (draw_N < keep).to(batch.value_N.dtype) / keep


def _denominator(norm: str, total_Q: Tensor, absolute: Callable[[], Tensor]) -> Tensor:
    """Return the denominators of linear attention, the sums of products ``total_Q``.

    For ``linear_safe``, their magnitude is at least `_FLOOR` times the sum of absolute
    products; where this floor applies, it is a constant for the gradient.
    """
    if norm == "linear":
        return total_Q
    with torch.no_grad():
        floor_Q = (_FLOOR * absolute()).clamp(min=1e-12)
        signed_Q = torch.where(total_Q < 0, -floor_Q, floor_Q)
    return torch.where(total_Q.abs() < floor_Q, signed_Q, total_Q)


class _Linear(nn.Module):
    """A linear layer of two networks at once."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight_WHO = _uniform(2, inputs, outputs, fan=inputs)
        self.bias_W1O = nn.Parameter(torch.zeros(2, 1, outputs))

    @override
    def forward(self, input_WBH: Tensor) -> Tensor:
        return torch.baddbmm(self.bias_W1O, input_WBH, self.weight_WHO)


class _Bias(nn.Module):
    """Bias and ReLU of a first layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias_W1H = nn.Parameter(torch.zeros(2, 1, width))

    @override
    def forward(self, sum_WBH: Tensor) -> Tensor:
        return torch.relu(sum_WBH + self.bias_W1H)


class _Layers(nn.ModuleList):
    """Hidden layers from each width to the next."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__(_Linear(*pair) for pair in pairwise(widths))

    @override
    def forward(self, hidden_WBH: Tensor) -> Tensor:
        for layer in self:
            hidden_WBH = torch.relu(layer(hidden_WBH))
        return hidden_WBH


def _by_network(sum_BH: Tensor, side: Side) -> Tensor:
    """Scale up sums over samples, and split them by network, ``[2, B, H / 2]``."""
    scaled_BH = sum_BH * side.scale_B.to(sum_BH.dtype)[:, None]
    return scaled_BH.view(len(sum_BH), 2, sum_BH.shape[1] // 2).transpose(0, 1)


def _uniform(*shape: int, fan: int) -> nn.Parameter:
    """Make a parameter that is initialized as in torch's linear layers."""
    return nn.Parameter(torch.empty(*shape).uniform_(-(fan**-0.5), fan**-0.5))
