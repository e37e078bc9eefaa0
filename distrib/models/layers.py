"""Layers that at least two models use."""

import functools
import warnings
from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from distrib.batch import Batch
from distrib.models.base import ItemRows, UserState
from distrib.models.capabilities import ItemVectors
from distrib.rng import CounterRng
from distrib.tiles import Transposed
from distrib.vocabulary import Catalog

_FEW_PAIRS = 4


def history_sum(
    table: Tensor,
    index_N: Tensor,
    weight_N: Tensor,
    pointer_P: Tensor,
    transposed: Transposed | None = None,
) -> Tensor:
    """Sum weighted rows of a table over each history; the sparse first layer.

    Equal to a multi-hot matrix times the table, at a cost proportional to the interactions. The
    gradient of the table is the same sum over the users of each row: no two threads add to one
    place, so it is deterministic, and popular rows are summed in float32 in any precision.

    Args:
        table: ``[rows, H]``.
        index_N: int64 row of each entry.
        weight_N: Weight of each entry; differentiable.
        pointer_P: int64 bounds of each history's entries.
        transposed: The entries sorted by table row, if histories are summed more than once.

    Returns:
        ``[B, H]``, zero for an empty history.
    """
    result: Tensor = _HistorySum.apply(  # type: ignore[no-untyped-call]
        table, index_N, weight_N.to(table.dtype), pointer_P, transposed
    )
    return result


class _HistorySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        index_N: Tensor,
        weight_N: Tensor,
        pointer_P: Tensor,
        transposed: Transposed | None,
    ) -> Tensor:
        ctx.save_for_backward(table, index_N, weight_N, pointer_P)
        ctx.transposed = transposed
        return _bag(table, index_N, weight_N, pointer_P)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BH: Tensor) -> tuple[Tensor | None, ...]:
        table, index_N, weight_N, pointer_P = ctx.saved_tensors
        by_table = by_weight = None
        if ctx.needs_input_grad[0]:
            by_item = ctx.transposed or Transposed.of(index_N, pointer_P, table.shape[0])
            by_table = _transposed_bag(gradient_BH.contiguous(), weight_N, by_item)
        if ctx.needs_input_grad[2]:
            by_weight = _products(gradient_BH, table, index_N, pointer_P)
        return by_table, None, by_weight, None, None


def pair_products(
    latent_BZ: Tensor,
    table: Tensor,
    index_N: Tensor,
    pointer_P: Tensor,
    transposed: Transposed | None = None,
) -> Tensor:
    """Multiply each user's embedding with the table rows that are listed for the user.

    Equal to selecting entries of ``latent_BZ @ table.T``, at a cost proportional to these entries,
    forward and backward.

    Args:
        latent_BZ: User embeddings.
        table: ``[rows, Z]``.
        index_N: int64 row of each entry.
        pointer_P: int64 bounds of each user's entries.
        transposed: The entries sorted by table row, if known.

    Returns:
        ``[N]``.
    """
    result: Tensor = _PairProducts.apply(latent_BZ, table, index_N, pointer_P, transposed)  # type: ignore[no-untyped-call]
    return result


class _PairProducts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        latent_BZ: Tensor,
        table: Tensor,
        index_N: Tensor,
        pointer_P: Tensor,
        transposed: Transposed | None,
    ) -> Tensor:
        ctx.is_short = _are_few(latent_BZ, index_N)
        ctx.transposed = transposed
        if ctx.is_short:
            row_N = _rows(pointer_P, index_N.shape[0])
            ctx.save_for_backward(latent_BZ, table, index_N, row_N)
            picked_NZ = latent_BZ.index_select(0, row_N)
            return picked_NZ.mul_(table.index_select(0, index_N)).sum(1)
        ctx.save_for_backward(latent_BZ, table, index_N, pointer_P)
        return _products(latent_BZ, table, index_N, pointer_P)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_N: Tensor) -> tuple[Tensor | None, ...]:
        latent_BZ, table, index_N, pointer_P = ctx.saved_tensors
        by_code = by_table = None
        if ctx.is_short:
            row_N, gradient_N1 = pointer_P, gradient_N[:, None]
            if ctx.needs_input_grad[0]:
                added_NZ = table.index_select(0, index_N).mul_(gradient_N1)
                by_code = torch.zeros_like(latent_BZ).index_add_(0, row_N, added_NZ)
            if ctx.needs_input_grad[1]:
                added_NZ = latent_BZ.index_select(0, row_N).mul_(gradient_N1)
                by_table = torch.zeros_like(table).index_add_(0, index_N, added_NZ)
            return by_code, by_table, None, None, None
        if ctx.needs_input_grad[0]:
            by_code = _bag(table, index_N, gradient_N, pointer_P)
        if ctx.needs_input_grad[1]:
            by_item = ctx.transposed or Transposed.of(index_N, pointer_P, table.shape[0])
            by_table = _transposed_bag(latent_BZ, gradient_N, by_item)
        return by_code, by_table, None, None, None


def _are_few(latent_BZ: Tensor, index_N: Tensor) -> bool:
    """Return whether to gather rows pair by pair, which is faster for a few pairs of each user.

    On the CPU only: a GPU would add to one place in no particular order. In whole precision only:
    sums over the pairs of a row would be rounded.
    """
    is_exact = latent_BZ.dtype in (torch.float32, torch.float64)
    are_few = index_N.shape[0] <= _FEW_PAIRS * latent_BZ.shape[0]
    return is_exact and are_few and latent_BZ.device.type == "cpu"


def softmax_attention(
    query_BZ: Tensor, table: Tensor, index_N: Tensor, pointer_P: Tensor
) -> Tensor:
    """Average table rows over each history, weighted by the softmax of their query products.

    The cost is proportional to the interactions, forward and backward; the table gets no gradient.

    Args:
        query_BZ: Query of each user.
        table: ``[rows, Z]``.
        index_N: int64 row of each interaction.
        pointer_P: int64 bounds of each user's interactions.

    Returns:
        ``[B, Z]``, zero for an empty history.
    """
    result: Tensor = _SoftmaxAttention.apply(query_BZ, table, index_N, pointer_P)  # type: ignore[no-untyped-call]
    return result


class _SoftmaxAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_BZ: Tensor, table: Tensor, index_N: Tensor, pointer_P: Tensor
    ) -> Tensor:
        row_N = _rows(pointer_P, index_N.shape[0])
        share_N = _products(query_BZ, table, index_N, pointer_P)
        lowest = torch.finfo(share_N.dtype).min
        largest_B = share_N.new_full((query_BZ.shape[0],), lowest)
        largest_B.scatter_reduce_(0, row_N, share_N, "amax")
        share_N = share_N.sub_(largest_B[row_N]).exp_()
        total_B = torch.zeros_like(largest_B).index_add_(0, row_N, share_N)
        share_N = share_N.div_(total_B[row_N])
        mean_BZ = _bag(table, index_N, share_N, pointer_P)
        ctx.save_for_backward(table, index_N, pointer_P, share_N, mean_BZ, row_N)
        return mean_BZ

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BZ: Tensor) -> tuple[Tensor | None, ...]:
        table, index_N, pointer_P, share_N, mean_BZ, row_N = ctx.saved_tensors
        # With a = softmax(p) and mean = sum_m a_m v_m: d(g . mean)/dp_n = a_n (g . v_n - g . mean).
        by_share_N = _products(gradient_BZ, table, index_N, pointer_P)
        mean_of_them_B = (gradient_BZ * mean_BZ).sum(1)
        by_product_N = (by_share_N - mean_of_them_B[row_N]).mul_(share_N)
        return _bag(table, index_N, by_product_N, pointer_P), None, None, None


def linear(latent_BZ: Tensor, rows: ItemRows) -> Tensor:
    """Decode by a linear layer: rows of its weights and, where it has some, their biases."""
    weight_IZ, *biases = rows
    if not biases:
        return latent_BZ @ weight_IZ.T
    return torch.addmm(biases[0], latent_BZ, weight_IZ.T)


def linear_pairs(latent_BZ: Tensor, tables: ItemRows, pairs: Batch) -> Tensor:
    """Decode the stored pairs only, ``[N]``, by the same layer."""
    weight_IZ, *biases = tables
    products_N = pair_products(latent_BZ, weight_IZ, pairs.item_N, pairs.pointer_P)
    return products_N + biases[0][pairs.item_N] if biases else products_N


class LinearDecoder:
    """Mixin of models whose scores are a linear layer over ``users[0]``.

    The model's `item_tables` are the weights, with one row per item, and maybe biases.
    """

    @abstractmethod
    def item_tables(self) -> ItemRows:
        """See `Model`."""

    def decode_rows(self, users: UserState, rows: ItemRows) -> Tensor:
        """Multiply with the rows; see `Model`."""
        return linear(users[0], rows)

    def score_pairs(self, users: UserState, pairs: Batch) -> Tensor:
        """Multiply pair by pair; see `Model`."""
        return linear_pairs(users[0], self.item_tables(), pairs)

    def user_embedding(self, users: UserState) -> Tensor:
        """Return the input of the layer; see `HasEmbeddings`."""
        return users[0]

    def item_vectors(self) -> ItemVectors:
        """Return the rows and biases; see `HasEmbeddings`."""
        return ItemVectors(*self.item_tables())


def _rows(pointer_P: Tensor, count: int) -> Tensor:
    rows = torch.arange(pointer_P.shape[0] - 1, device=pointer_P.device)
    return rows.repeat_interleave(pointer_P.diff(), output_size=count)


def _products(latent_BZ: Tensor, table: Tensor, index_N: Tensor, pointer_P: Tensor) -> Tensor:
    if table.dtype in (torch.float32, torch.float64):
        _receive_beta_gradient()
        zeros_N = latent_BZ.new_zeros(index_N.shape[0])
        size = (latent_BZ.shape[0], table.shape[0])
        wanted = torch.sparse_csr_tensor(pointer_P, index_N, zeros_N, size, check_invariants=False)
        found = torch.sparse.sampled_addmm(wanted, latent_BZ.contiguous(), table.T, beta=0.0)
        sampled: Tensor = found.values()
        return sampled
    sum_mode, no_padding = 0, -1
    row_N = _rows(pointer_P, index_N.shape[0])
    products: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        latent_BZ.contiguous(), table, index_N, pointer_P, row_N, sum_mode, no_padding
    )
    return products


@functools.cache
def _receive_beta_gradient() -> None:
    """Trigger torch's beta warning for sparse CSR tensors once, silenced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        bounds = torch.zeros(1, dtype=torch.int64)
        torch.sparse_csr_tensor(bounds, bounds[:0], torch.zeros(0), (0, 0))


def _transposed_bag(latent_BZ: Tensor, weight_N: Tensor, by_item: Transposed) -> Tensor:
    """Sum, for each row of a table, the weighted embeddings of the users that list it."""
    return _bag(latent_BZ, by_item.row_N, weight_N[by_item.order_N], by_item.pointer_P)


def _bag(table: Tensor, index_N: Tensor, weight_N: Tensor, pointer_P: Tensor) -> Tensor:
    return F.embedding_bag(
        index_N,
        table,
        pointer_P,
        mode="sum",
        per_sample_weights=weight_N,
        include_last_offset=True,
    )


def inverse_root_length(batch: Batch) -> Tensor:
    """Return 1 / sqrt(number of interactions) for each user, 1 for an empty history, ``[B]``."""
    return batch.length_B.clamp(min=1).to(torch.float32).rsqrt()


class EncoderInput(NamedTuple):
    """Input of a first layer."""

    batch: Batch
    weight_N: Tensor


def unit_input(
    batch: Batch,
    *,
    by_value: bool,
    dropout: float = 0.0,
    rng: CounterRng | None = None,
    stream: int,
) -> EncoderInput:
    """Scale histories to unit length, then drop interactions and scale up the rest.

    Args:
        batch: Histories.
        by_value: Whether interactions weigh by rating; otherwise all weigh the same.
        dropout: Share of interactions to drop in training.
        rng: Source of the dropout; None for inference.
        stream: Random stream of the dropout.

    Returns:
        The remaining interactions with their weights.
    """
    if by_value:
        square_B = batch.value_N.new_zeros(batch.num_users).index_add(
            0, batch.row_N, batch.value_N.square()
        )
        weight_N = batch.value_N * square_B.clamp(min=1e-12).rsqrt()[batch.row_N]
    else:
        weight_N = inverse_root_length(batch)[batch.row_N]
    if rng is None or dropout == 0.0:
        return EncoderInput(batch, weight_N)
    keep = 1.0 - dropout
    keep_N = rng.uniform(stream, batch.user_B[batch.row_N], batch.item_N) < keep
    read, kept_N = left_out(batch, keep_N)
    return EncoderInput(read, (weight_N * keep_N if kept_N is None else weight_N[kept_N]) / keep)


def left_out(batch: Batch, keep_N: Tensor) -> tuple[Batch, Tensor | None]:
    """Leave interactions out, on the host; on a device the host would wait for their number.

    Args:
        batch: Histories.
        keep_N: bool, which interactions stay.

    Returns:
        The histories with what stays, and its places; on a device the histories as they are, and
        None: the caller gives weight 0 to the others.
    """
    if keep_N.is_cuda:
        return batch, None
    return batch.keep_places(keep_N)


def normal_sample(
    mean_BZ: Tensor, log_variance_BZ: Tensor, batch: Batch, rng: CounterRng, stream: int
) -> Tensor:
    """Draw each user's latent vector from its posterior by the reparameterization trick."""
    dimension_Z = torch.arange(mean_BZ.shape[1], device=mean_BZ.device)
    draw_BZ = rng.normal(stream, batch.user_B[:, None], dimension_Z)
    return mean_BZ + torch.exp(0.5 * log_variance_BZ) * draw_BZ.to(mean_BZ.dtype)


def item_mean(catalog: Catalog, prior_ratings: float = 1.0) -> Tensor:
    """Return the mean training rating of each item, smoothed toward the global mean, ``[I]``."""
    count_IL = np.asarray(catalog.train_count_IL, dtype=np.float64)
    level_L = np.asarray(catalog.levels)
    total = max(count_IL.sum(), 1.0)
    mean = float(count_IL.sum(0) @ level_L / total) if count_IL.any() else float(level_L.mean())
    mean_I = (count_IL @ level_L + prior_ratings * mean) / (count_IL.sum(1) + prior_ratings)
    return torch.from_numpy(mean_I).to(torch.float32)
