"""Item-item models that keep a few neighbors of each item, and item k-nearest neighbors.

Source: Sarwar, Karypis, Konstan, Riedl, "Item-based Collaborative Filtering Recommendation
Algorithms", WWW 2001 (cosine); shrinkage as in Bell, Koren, "Scalable Collaborative Filtering with
Jointly Derived Neighborhood Interpolation Weights", ICDM 2007.
"""

from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, PositiveInt
from scipy.sparse import csr_array
from torch import Tensor
from typing_extensions import override

from distrib.batch import Batch
from distrib.config import Config
from distrib.models.base import ItemRows, Model, ModelSpec, UserState
from distrib.rng import CounterRng
from distrib.vocabulary import Catalog


class ItemKnnConfig(Config):
    """Hyper-parameters of item k-nearest neighbors."""

    name: Literal["item_knn"] = "item_knn"

    spec: ClassVar[ModelSpec] = ModelSpec("scores", None, "closed_form")

    num_neighbors: PositiveInt = 100
    """Neighbors to keep of each item."""

    shrink: Annotated[float, Field(ge=0.0)] = 10.0
    """Added to the denominator of the cosine; shrinks similarities that rest on few users."""

    def build(self, catalog: Catalog) -> "Neighbors":
        """Make an unfitted model."""
        return Neighbors(catalog.item_count, min(self.num_neighbors, catalog.item_count))

    def solve(self, gram: csr_array) -> dict[str, Tensor]:
        """Compute the state of the model from X^T X of the binary interactions."""
        return most_similar(gram, self.num_neighbors, shrink=self.shrink)._asdict()


class Similar(NamedTuple):
    """The neighbors of each item, nearest first."""

    index_IM: Tensor
    """int64 position; padded with the number of items."""

    weight_IM: Tensor
    """float32; padded with 0."""


class HistoryState(NamedTuple):
    """User state of an item-item model: the history."""

    pointer_P: Tensor
    item_N: Tensor


class Neighbors(Model):
    """The score of an item is the sum of the weights of its neighbors in the history."""

    def __init__(self, item_count: int, num_neighbors: int) -> None:
        super().__init__()
        self.item_count = item_count
        shape = (item_count, num_neighbors)
        self.register_buffer("index_IM", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("weight_IM", torch.zeros(shape))
        self.index_IM: Tensor
        self.weight_IM: Tensor

    @override
    def encode(self, batch: Batch, rng: CounterRng | None = None) -> HistoryState:
        """Return the history."""
        return HistoryState(batch.pointer_P, batch.item_N)

    @override
    def item_tables(self) -> ItemRows:
        return self.index_IM, self.weight_IM

    @override
    def decode_rows(self, users: UserState, rows: ItemRows) -> Tensor:
        """Join each item of a history with the decoded items that have it as a neighbor."""
        (pointer_P, item_N), (index_JM, weight_JM) = users, rows
        num_users, (num_scored, width) = len(pointer_P) - 1, index_JM.shape
        order_E = torch.argsort(index_JM.flatten(), stable=True)
        degree_I = torch.bincount(index_JM.flatten(), minlength=self.item_count + 1)
        start_I = degree_I.cumsum(0) - degree_I
        fan_N = degree_I[item_N]
        before_N = fan_N.cumsum(0) - fan_N
        total = int(fan_N.sum())
        place_F = torch.arange(total, device=item_N.device)
        place_F += (start_I[item_N] - before_N).repeat_interleave(fan_N, output_size=total)
        edge_F = order_E[place_F]
        row_B = torch.arange(num_users, device=item_N.device)
        row_N = row_B.repeat_interleave(pointer_P.diff(), output_size=len(item_N))
        row_F = row_N.repeat_interleave(fan_N, output_size=total)
        score = torch.zeros(num_users * num_scored, device=item_N.device)
        place_of_score = row_F * num_scored + edge_F // max(width, 1)
        score.index_add_(0, place_of_score, weight_JM.flatten()[edge_F])
        return score.view(num_users, num_scored)


def most_similar(gram: csr_array, num_neighbors: int, *, shrink: float) -> Similar:
    """Find the most similar items: n_ij / (sqrt(n_i n_j) + shrink).

    Args:
        gram: n_ij, X^T X of the binary interactions.
        num_neighbors: Neighbors of each item, capped at the number of items.
        shrink: See `ItemKnnConfig`.

    Returns:
        Neighbors; ties go to the lower position.
    """
    num_items = gram.shape[0]
    width = min(num_neighbors, num_items)
    root_I = np.sqrt(gram.diagonal().astype(np.float64))
    index_IM = np.full((num_items, width), num_items, dtype=np.int64)
    weight_IM = np.zeros((num_items, width), dtype=np.float32)
    for item in range(num_items):
        part = slice(gram.indptr[item], gram.indptr[item + 1])
        other = gram.indices[part].astype(np.int64)
        alike = gram.data[part] / (root_I[item] * root_I[other] + shrink + 1e-12)
        alike[other == item] = 0.0
        if len(alike) > width:  # sorting a few is cheaper than all; keeps ties at the cutoff
            near = np.flatnonzero(alike >= np.partition(alike, -width)[-width])
            other, alike = other[near], alike[near]
        best = np.lexsort((other, -alike))[:width]
        best = best[alike[best] > 0]
        index_IM[item, : len(best)] = other[best]
        weight_IM[item, : len(best)] = alike[best]
    return Similar(torch.from_numpy(index_IM), torch.from_numpy(weight_IM))
