"""EASE: a linear item-item model in closed form, for all items at once or by neighborhoods.

Source: Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019; by neighborhoods:
Steck, "Markov Random Fields for Collaborative Filtering", NeurIPS 2019.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeInt, PositiveFloat
from scipy.sparse import csr_array
from torch import Tensor
from typing_extensions import override

from distrib.batch import Batch
from distrib.config import Config
from distrib.models.base import ItemRows, Model, ModelSpec, UserState
from distrib.models.layers import history_sum
from distrib.models.shallow.item_knn import HistoryState, Neighbors, most_similar
from distrib.rng import CounterRng
from distrib.vocabulary import Catalog

_SYSTEMS = 256  # solved at a time


class EaseConfig(Config):
    """Hyper-parameters of EASE."""

    name: Literal["ease"] = "ease"

    spec: ClassVar[ModelSpec] = ModelSpec("scores", None, "closed_form")

    penalty: PositiveFloat = 500.0
    """L2 penalty on all weights, lambda in the paper; larger for denser logs."""

    num_neighbors: NonNegativeInt = 0
    """0 solves for all items together, in 16 x items^2 bytes of memory; otherwise for each item by
    itself, among this many items nearest to it by cosine, in items x neighbors x 12 bytes plus the
    Gram matrix, which grows with the number of co-occurring item pairs."""

    precision: Literal["float64", "float32"] = "float64"
    """Precision of the solution for all items together; float32 halves the memory."""

    def build(self, catalog: Catalog) -> "Ease | Neighbors":
        """Make an unfitted model."""
        if self.num_neighbors:
            return Neighbors(catalog.item_count, min(self.num_neighbors, catalog.item_count))
        return Ease(catalog.item_count)

    def solve(self, gram: csr_array) -> dict[str, Tensor]:
        """Compute the state of the model from X^T X; see `whole_weights`."""
        if self.num_neighbors:
            return neighbor_weights(gram, self.penalty, self.num_neighbors)
        return {"weight_II": whole_weights(gram, self.penalty, getattr(torch, self.precision))}


class Ease(Model):
    """Scores are the sums of the weight rows of the items in the history."""

    def __init__(self, item_count: int) -> None:
        super().__init__()
        self.register_buffer("weight_II", torch.zeros(item_count, item_count))
        self.weight_II: Tensor
        """Row: item in the history; column: item to score."""

    @override
    def encode(self, batch: Batch, rng: CounterRng | None = None) -> HistoryState:
        """Return the history."""
        return HistoryState(batch.pointer_P, batch.item_N)

    @override
    def item_tables(self) -> ItemRows:
        return (self.weight_II.T,)

    @override
    def decode_rows(self, users: UserState, rows: ItemRows) -> Tensor:
        pointer_P, item_N = users
        ones_N = torch.ones(item_N.shape, device=item_N.device)
        return history_sum(rows[0].T.contiguous(), item_N, ones_N, pointer_P)


def whole_weights(gram: csr_array, penalty: float, precision: torch.dtype) -> Tensor:
    """Solve for all items at once: B_ij = -P_ij / P_jj with P = (X^T X + penalty)^-1, B_jj = 0.

    One Cholesky factor, in place; at the end, two matrices of items x items are held.

    Args:
        gram: X^T X of the binary interactions.
        penalty: Lambda.
        precision: Precision of the factor.

    Returns:
        float32 ``[I, I]``; its column j predicts item j.
    """
    matrix_II = torch.from_numpy(gram.toarray()).to(precision)
    matrix_II.diagonal().add_(penalty)
    torch.linalg.cholesky(matrix_II, out=matrix_II)
    inverse_II = torch.cholesky_inverse(matrix_II)
    del matrix_II
    inverse_II.div_(-inverse_II.diagonal().clone())
    inverse_II.fill_diagonal_(0.0)
    return inverse_II.to(torch.float32)


def neighbor_weights(gram: csr_array, penalty: float, num_neighbors: int) -> dict[str, Tensor]:
    """Solve for each item by itself, among its nearest items by cosine.

    An item's column of the full inverse equals that of its neighborhood's inverse if the item is
    conditionally independent of all items outside; with all items as neighbors the two are the
    same. The cost is items x neighbors^3 / 3, the memory that of the Gram matrix.

    Args:
        gram: X^T X of the binary interactions.
        penalty: Lambda.
        num_neighbors: Neighbors of each item.

    Returns:
        State of `Neighbors`.
    """
    near = most_similar(gram, num_neighbors, shrink=0.0)
    num_items, width = near.index_IM.shape
    weight_IM = torch.zeros(num_items, width)
    for low, high in _ranges(num_items):
        own_J = torch.arange(low, high)
        index_JM = near.index_IM[low:high].clamp(max=num_items - 1)
        index_JS = torch.cat([own_J[:, None], index_JM], dim=1)
        is_there_JS = torch.cat(
            [torch.ones(high - low, 1, dtype=torch.bool), near.weight_IM[low:high] > 0], dim=1
        )
        system_JSS = _submatrices(gram, index_JS, is_there_JS)
        system_JSS.diagonal(dim1=1, dim2=2).add_(penalty)
        unit_JS1 = torch.zeros(high - low, width + 1, 1, dtype=torch.float64)
        unit_JS1[:, 0] = 1.0
        column_JS = torch.linalg.solve(system_JSS, unit_JS1)[..., 0]
        weight_IM[low:high] = (-column_JS[:, 1:] / column_JS[:, :1]).float()
    return {"index_IM": near.index_IM, "weight_IM": weight_IM}


def _submatrices(gram: csr_array, index_JS: Tensor, is_there_JS: Tensor) -> Tensor:
    """Return the Gram matrix of each neighborhood; 0 for empty places."""
    found: list[Any] = []
    for index_S in index_JS.numpy():
        order = index_S.argsort()
        part = gram[index_S[order]][:, index_S[order]].toarray()
        back = order.argsort()
        found.append(torch.from_numpy(part[back][:, back]))
    pairs_JSS = is_there_JS[:, :, None] & is_there_JS[:, None, :]
    return torch.stack(found).double() * pairs_JSS


def _ranges(count: int) -> Iterator[tuple[int, int]]:
    for low in range(0, count, _SYSTEMS):
        yield low, min(low + _SYSTEMS, count)
