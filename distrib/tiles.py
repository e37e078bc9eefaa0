"""Tiles of users and items that meet: what models of both sides read in training."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from distrib.batch import Batch


class Transposed(NamedTuple):
    """The same interactions, in the order of their items: what sums by item need, made once."""

    order_N: Tensor
    """int64 place of each among the interactions of the batch."""

    pointer_P: Tensor
    """int64 ``[items + 1]`` bounds of each item's."""

    row_N: Tensor
    """int64 row within the batch."""

    @classmethod
    def of(cls, item_N: Tensor, pointer_P: Tensor, item_count: int) -> "Transposed":
        """Sort interactions by item, in a stable order."""
        rows = torch.arange(pointer_P.shape[0] - 1, device=item_N.device)
        row_N = rows.repeat_interleave(pointer_P.diff(), output_size=item_N.shape[0])
        order_N = torch.argsort(item_N, stable=True)
        counts = torch.bincount(item_N, minlength=item_count)
        bounds = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return cls(order_N, bounds, row_N[order_N])


class Side(NamedTuple):
    """The rows of a block on one side, users or items."""

    batch: Batch
    """Their whole histories, or a sample of each; of an item, the ``item_N`` are users."""

    transposed: Transposed | None
    """None where they are summed once only."""

    scale_B: Tensor
    """float32; how many interactions each one stands for: 1 unless histories are samples."""

    repeats_B: Tensor
    """float32; in how many blocks of a pass each row comes; for a row with another share of its
    ratings in each block, the inverse of that share."""

    share_1: Tensor
    """float32; the part of these rows that this rank answers for, where others hold them, too."""

    @classmethod
    def whole(cls, batch: Batch) -> "Side":
        """Make a side of whole histories that are met once."""
        one_B = torch.ones(batch.num_users, device=batch.item_N.device)
        return cls(batch, None, one_B, one_B, one_B.new_ones(1))


class Tile(NamedTuple):
    """Some users, some items, and the ratings where they meet."""

    users: Side | None
    items: Side | None
    """None where these stand for themselves, by their last codes."""

    cells: Batch
    """The ratings; rows are those of ``users``, ``item_N`` are rows of ``items``. Where items are
    alone, rows are theirs; where one side is alone, ``item_N`` are numbers of the other."""

    transposed: Transposed
    """Of the cells."""

    step_1: Tensor
    """int64; place of the block in the pass."""

    @property
    def pairs(self) -> Batch:
        """The pairs to decode."""
        return self.cells

    def to(self, device: torch.device | str) -> "Tile":
        """Return the block on a device."""
        return _moved(self, device)  # type: ignore[no-any-return]

    def split(self, num_parts: int) -> list["Tile"]:
        """Return the block itself; blocks are made of the size that is wanted."""
        assert num_parts == 1  # micro-batches of blocks are refused before any worker starts
        return [self]


def _moved(part: Any, device: torch.device | str) -> Any:
    if isinstance(part, tuple):
        return type(part)(*(_moved(inner, device) for inner in part))
    return part.to(device) if isinstance(part, Tensor) else part


TrainInput = Batch | Tile
"""What a step reads."""
