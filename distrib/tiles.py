"""Users x items tiles, which models with encoders of both sides train on."""

from typing import NamedTuple

import torch
from torch import Tensor

from distrib.batch import Batch
from distrib.devices import each, sent


class Transposed(NamedTuple):
    """The interactions of a batch sorted by item, for sums by item."""

    order_N: Tensor
    """int64 place of each among the interactions of the batch."""

    pointer_P: Tensor
    """int64 ``[items + 1]`` bounds of each item's interactions."""

    row_N: Tensor
    """int64 row within the batch."""

    @classmethod
    def of(cls, item_N: Tensor, pointer_P: Tensor, item_count: int) -> "Transposed":
        """Sort interactions by item, in a stable order."""
        rows = torch.arange(pointer_P.shape[0] - 1, device=item_N.device)
        row_N = rows.repeat_interleave(pointer_P.diff(), output_size=item_N.shape[0])
        order_N = torch.argsort(item_N, stable=True)
        # Unlike `bincount`, this does not make the host wait for the largest item.
        counts = torch.zeros(item_count + 1, dtype=torch.int64, device=item_N.device)
        counts.scatter_add_(0, item_N + 1, torch.ones_like(item_N))
        return cls(order_N, counts.cumsum(0), row_N[order_N])


class Side(NamedTuple):
    """The rows of a tile on one side, users or items."""

    batch: Batch
    """Their whole histories, or a sample of each; for items, ``item_N`` holds users."""

    transposed: Transposed | None
    """None if the histories are summed only once."""

    scale_B: Tensor
    """float32; number of interactions that each one represents; 1 unless histories are samples."""

    repeats_B: Tensor
    """float32; number of tiles per epoch that contain each row; for a row with another share of its
    ratings in each tile, the inverse of that share."""

    share_1: Tensor
    """float32; this rank's share of these rows, if other ranks hold them, too."""

    @classmethod
    def whole(cls, batch: Batch) -> "Side":
        """Make a side of whole histories that are in one tile only."""
        one_B = torch.ones(batch.num_users, device=batch.item_N.device)
        return cls(batch, None, one_B, one_B, one_B.new_ones(1))


class Tile(NamedTuple):
    """Some users, some items, and the ratings between them."""

    users: Side | None
    items: Side | None
    """A side is None if it is not encoded, but used by its last latent vectors."""

    pairs: Batch
    """The ratings, to decode: rows are those of ``users``, and ``item_N`` holds rows of ``items``.
    If one side is None, rows are those of the other, and ``item_N`` holds numbers of the missing
    one."""

    transposed: Transposed
    """The ratings, sorted by item."""

    step_1: Tensor
    """int64; position of the tile in the epoch."""

    @property
    def num_rows(self) -> int:
        """Rows of ``pairs``; see `TrainInput`."""
        return self.pairs.num_users

    def to(self, device: torch.device | str) -> "Tile":
        """Return the tile on a device."""
        return each(self, lambda part: sent(part, device))

    def split(self, num_parts: int) -> list["Tile"]:
        """Return the tile itself; tiles are made in the wanted size."""
        assert num_parts == 1  # micro-batches of tiles are rejected before any worker starts
        return [self]
