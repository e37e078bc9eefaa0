"""The feed of models that read both users and items: tiles of some users x some items.

The tiles of an epoch, their order and content are pure functions of (seed, epoch). The users of a
tile are split over ranks; every rank holds all its items.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import NonNegativeInt, PositiveInt

from distrib.batch import Batch
from distrib.config import Config
from distrib.data.feeds.base import BATCHES_AHEAD, BatchSharding, RankBatch, ahead, own_rows
from distrib.data.feeds.collate import gather
from distrib.data.history_arrays import HistoryArrays, IntArray
from distrib.rng import CounterRng
from distrib.tiles import Side, Tile, Transposed

_KEPT_BYTES = 1 << 30
_USERS, _ITEMS = 0, 1


class TileConfig(Config):
    """How training tiles users x items; for models that read both."""

    order: Literal["nested", "shuffled", "sequential", "edges"] = "nested"
    """``nested``: all tiles of the first group of users, then of the next; ``shuffled``: the same
    tiles in random order; ``sequential``: users alone in one epoch, items alone in the next,
    against the last latent vectors of the other side; ``edges``: ratings in random order, with
    their users and items, for catalogs so sparse that tiles would be empty."""

    items: PositiveInt = 100
    """Items per tile; ``train.batch_users`` is the number of users per tile."""

    ratings: PositiveInt = 10_000
    """Ratings per step when the order is ``edges``."""

    max_history: NonNegativeInt = 0
    """Maximum interactions read per user or item, sampled each epoch and scaled up in sums; 0: all.
    A popular item may have as many interactions as there are users."""


class Ratings(NamedTuple):
    """Training histories of both sides."""

    users: HistoryArrays
    items: HistoryArrays
    """Items with a training rating; ``item_N`` holds user indices."""

    num_columns: tuple[int, int]
    """Number of item indices in user histories, and of user indices in item histories."""


class TileFeed:
    """See `Feed`; batches are `Tile`s and count ratings instead of users."""

    def __init__(
        self, ratings: Ratings, valid: HistoryArrays, sharding: BatchSharding, config: TileConfig
    ) -> None:
        self.num_users = ratings.users.num_users
        self.sharding, self.config = sharding, config
        self._ratings, self._valid = ratings, valid
        self._sides = (ratings.users, ratings.items)
        self._epoch_tiles: _EpochTiles | None = None

    def num_steps(self, epoch: int) -> int:
        """Return the number of tiles of an epoch; see `Feed`."""
        return self._tiles_of(epoch).num_steps

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[RankBatch]:
        """Yield this rank's part of each tile; see `Feed`."""
        plan = self._tiles_of(epoch)
        steps = range(first_step, plan.num_steps)
        return ahead((plan.tile(step) for step in steps), BATCHES_AHEAD)

    def training_parts(self) -> Iterator[tuple[HistoryArrays, IntArray]]:
        """Yield one part, of users; see `Feed`."""
        yield self._ratings.users, own_rows(self._ratings.users, self.sharding)

    def item_parts(self) -> Iterator[tuple[HistoryArrays, IntArray]]:
        """Yield one part, of items; see `Feed`."""
        yield self._ratings.items, own_rows(self._ratings.items, self.sharding)

    def valid_parts(self) -> Iterator[tuple[HistoryArrays, IntArray]]:
        """Yield one part; see `Feed`."""
        yield self._valid, own_rows(self._valid, self.sharding)

    def _tiles_of(self, epoch: int) -> "_EpochTiles":
        if self._epoch_tiles is None or self._epoch_tiles.epoch != epoch:
            kinds: dict[str, Callable[..., _EpochTiles]] = {
                "sequential": _Turn,
                "edges": _Edges,
            }
            kind = kinds.get(self.config.order, _Grid)
            self._epoch_tiles = kind(self._ratings, self.sharding, self.config, epoch)
        return self._epoch_tiles


class _EpochTiles(ABC):
    """The tiles of one epoch."""

    num_steps: int

    def __init__(
        self, ratings: Ratings, sharding: BatchSharding, config: TileConfig, epoch: int
    ) -> None:
        self.ratings, self.sharding, self.config, self.epoch = ratings, sharding, config, epoch
        self.sides = (ratings.users, ratings.items)
        self.rng = np.random.default_rng([sharding.seed, epoch])

    @abstractmethod
    def tile(self, step: int) -> RankBatch:
        """Return this rank's part of a tile."""

    def side(self, kind: int, wanted_B: IntArray, tag: int, share: float = 1.0) -> Side:
        """Gather rows of one side; the sample of long histories depends on ``tag``."""
        batch, _ = gather(self.sides[kind], wanted_B)
        scale_B = torch.ones(batch.num_users)
        if self.config.max_history:
            seed = self.sharding.seed, 2 * self.epoch + kind
            batch, scale_B = _sampled(batch, self.config.max_history, CounterRng.of(*seed), tag)
        num_columns = self.ratings.num_columns[kind]
        transposed = Transposed.of(batch.item_N, batch.pointer_P, num_columns)
        ones_B = torch.ones(batch.num_users)
        return Side(batch, transposed, scale_B, ones_B, torch.tensor([share]))


class _Grid(_EpochTiles):
    """Every group of users x every group of items; tiles without a rating are skipped."""

    def __init__(
        self, ratings: Ratings, sharding: BatchSharding, config: TileConfig, epoch: int
    ) -> None:
        super().__init__(ratings, sharding, config, epoch)
        sizes = (sharding.batch_users, config.items)
        self.parts = tuple(
            balanced_tiles(rows, size, self.rng)
            for rows, size in zip(self.sides, sizes, strict=True)
        )
        places = [_places(parts) for parts in self.parts]
        self._bucket(*places)
        shape = len(self.parts[_USERS]), len(self.parts[_ITEMS])
        is_met = np.diff(self.bounds).reshape(shape) > 0
        self.num_met = is_met.sum(1), is_met.sum(0)
        self.pairs = self._ordered(config.order)
        self.num_steps = len(self.pairs)
        self.kept: OrderedDict[tuple[int, int], Side] = OrderedDict()
        self.kept_bytes = 0

    def _bucket(self, users: "_Places", items: "_Places") -> None:
        """Sort all ratings by tile, then by row of the user in the tile."""
        rows = self.ratings.users
        user_N = np.repeat(np.arange(rows.num_users), np.diff(rows.pointer_P))
        row_of_item = np.zeros(self.ratings.num_columns[_USERS], dtype=np.int64)
        row_of_item[self.ratings.items.number_B] = np.arange(self.ratings.items.num_users)
        item_N = row_of_item[rows.item_N]
        num_pairs = len(self.parts[_USERS]) * len(self.parts[_ITEMS])
        pair_N = users.tile_R[user_N] * len(self.parts[_ITEMS]) + items.tile_R[item_N]
        row_N = users.row_R[user_N]
        largest = max(map(len, self.parts[_USERS]))
        order_N = np.argsort(pair_N * largest + row_N, kind="stable")
        self.bounds = np.concatenate([[0], np.bincount(pair_N, minlength=num_pairs).cumsum()])
        self.row_N = row_N[order_N].astype(np.int32)
        self.column_N = items.row_R[item_N][order_N].astype(np.int32)
        self.value_N = rows.value_N[order_N]

    def _ordered(self, order: str) -> IntArray:
        """Return the tiles that hold ratings, in training order."""
        num_users, num_items = (len(parts) for parts in self.parts)
        if order == "shuffled":
            pairs = self.rng.permutation(num_users * num_items)
        else:
            inner = [self.rng.permutation(num_items) for _ in range(num_users)]
            users = self.rng.permutation(num_users)
            pairs = np.concatenate(
                [user * num_items + items for user, items in zip(users, inner, strict=True)]
            )
        return pairs[np.diff(self.bounds)[pairs] > 0]

    def tile(self, step: int) -> RankBatch:
        pair = int(self.pairs[step])
        user_part, item_part = divmod(pair, len(self.parts[_ITEMS]))
        low, high = _own_range(self.ratings.users, self.parts[_USERS][user_part], self.sharding)
        start, stop = self.bounds[pair], self.bounds[pair + 1]
        first, last = start + np.searchsorted(self.row_N[start:stop], [low, high])
        users = self._kept(_USERS, user_part, self.parts[_USERS][user_part][low:high])
        items = self._kept(_ITEMS, item_part, self.parts[_ITEMS][item_part])
        pairs = _pairs(
            self.row_N[first:last].astype(np.int64) - low,
            self.column_N[first:last].astype(np.int64),
            self.value_N[first:last],
            users.batch.user_B,
        )
        transposed = Transposed.of(pairs.item_N, pairs.pointer_P, items.batch.num_users)
        tile = Tile(users, items, pairs, transposed, torch.tensor([step]))
        return RankBatch(tile, tile.pairs, int(stop - start))

    def _kept(self, kind: int, part: int, wanted_B: IntArray) -> Side:
        """Return a side of a tile from an LRU cache; sides recur within an epoch."""
        key = (kind, part)
        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key]
        share = 1.0 if kind == _USERS else 1.0 / self.sharding.world_size
        side = self.side(kind, wanted_B, part, share)
        times = float(self.num_met[kind][part])
        side = side._replace(repeats_B=torch.full_like(side.repeats_B, times))
        self.kept[key] = side
        self.kept_bytes += _size(side)
        while self.kept_bytes > _KEPT_BYTES and len(self.kept) > 1:
            self.kept_bytes -= _size(self.kept.popitem(last=False)[1])
        return side


class _Turn(_EpochTiles):
    """Users alone in even epochs, items alone in odd ones."""

    def __init__(
        self, ratings: Ratings, sharding: BatchSharding, config: TileConfig, epoch: int
    ) -> None:
        super().__init__(ratings, sharding, config, epoch)
        self.kind = epoch % 2
        size = (sharding.batch_users, config.items)[self.kind]
        self.parts = balanced_tiles(self.sides[self.kind], size, self.rng)
        self.num_steps = len(self.parts)

    def tile(self, step: int) -> RankBatch:
        part = self.parts[step]
        rows = self.sides[self.kind]
        low, high = _own_range(rows, part, self.sharding)
        pairs, _ = gather(rows, part[low:high])
        mine = self.side(self.kind, part[low:high], step)
        users, items = (mine, None) if self.kind == _USERS else (None, mine)
        columns = self.ratings.num_columns[self.kind]
        transposed = Transposed.of(pairs.item_N, pairs.pointer_P, columns)
        count = int(np.diff(rows.pointer_P)[part].sum())
        tile = Tile(users, items, pairs, transposed, torch.tensor([step]))
        return RankBatch(tile, tile.pairs, count)


class _Edges(_EpochTiles):
    """Ratings in random order, a fixed number per step."""

    def __init__(
        self, ratings: Ratings, sharding: BatchSharding, config: TileConfig, epoch: int
    ) -> None:
        super().__init__(ratings, sharding, config, epoch)
        rows = ratings.users
        self.order = self.rng.permutation(len(rows.item_N))
        self.row_of_item = np.zeros(ratings.num_columns[_USERS], dtype=np.int64)
        self.row_of_item[ratings.items.number_B] = np.arange(ratings.items.num_users)
        self.num_steps = -(-len(self.order) // config.ratings)

    def tile(self, step: int) -> RankBatch:
        size = self.config.ratings
        chosen = np.sort(self.order[step * size : (step + 1) * size])
        rows = self.ratings.users
        user_N = np.searchsorted(rows.pointer_P, chosen, side="right") - 1
        users, row_N = np.unique(user_N, return_inverse=True)
        items, column_N = np.unique(self.row_of_item[rows.item_N[chosen]], return_inverse=True)
        low, high = _own_range(rows, users, self.sharding)
        mine = (row_N >= low) & (row_N < high)
        here = [np.bincount(row_N), np.bincount(column_N)]
        sides = []
        for kind, wanted in ((_USERS, users[low:high]), (_ITEMS, items)):
            share = 1.0 if kind == _USERS else 1.0 / self.sharding.world_size
            side = self.side(kind, wanted, step, share)
            count_B = here[kind][low:high] if kind == _USERS else here[kind]
            length_B = np.diff(self.sides[kind].pointer_P)[wanted]
            repeats_B = torch.from_numpy(length_B / count_B).float()
            sides.append(side._replace(repeats_B=repeats_B))
        pairs = _pairs(
            row_N[mine] - low, column_N[mine], rows.value_N[chosen][mine], sides[0].batch.user_B
        )
        transposed = Transposed.of(pairs.item_N, pairs.pointer_P, len(items))
        tile = Tile(sides[0], sides[1], pairs, transposed, torch.tensor([step]))
        return RankBatch(tile, tile.pairs, len(chosen))


def balanced_tiles(rows: HistoryArrays, size: int, rng: np.random.Generator) -> list[IntArray]:
    """Split rows into groups that are balanced in size and in number of interactions.

    Rows are sorted by length; of each run of as many rows as there are groups, every group gets
    one at random.

    Args:
        rows: Histories.
        size: Maximum rows per group.
        rng: Random generator.

    Returns:
        Rows of each group.
    """
    num_tiles = max(1, -(-rows.num_users // size))
    lots = rng.random(rows.num_users)
    by_length = np.lexsort((lots, -np.diff(rows.pointer_P)))
    stretch = np.arange(rows.num_users) // num_tiles
    within = np.lexsort((rng.random(rows.num_users), stretch))
    tile_R = np.empty(rows.num_users, dtype=np.int64)
    tile_R[by_length[within]] = np.arange(rows.num_users) % num_tiles
    order = np.argsort(tile_R, kind="stable")
    return np.split(order, np.bincount(tile_R, minlength=num_tiles).cumsum()[:-1])


class _Places(NamedTuple):
    """Group of each row, and its position there."""

    tile_R: IntArray
    row_R: IntArray


def _places(parts: list[IntArray]) -> _Places:
    lengths = np.array([len(part) for part in parts])
    tile_R, row_R = np.empty((2, lengths.sum()), dtype=np.int64)
    everyone = np.concatenate(parts)
    tile_R[everyone] = np.repeat(np.arange(len(parts)), lengths)
    row_R[everyone] = np.concatenate([np.arange(length) for length in lengths])
    return _Places(tile_R, row_R)


def _own_range(rows: HistoryArrays, part: IntArray, sharding: BatchSharding) -> tuple[int, int]:
    """Return this rank's range of a tile's rows, balanced in interactions over ranks."""
    before = np.concatenate([[0], np.diff(rows.pointer_P)[part].cumsum()])
    shares = before[-1] * np.arange(sharding.world_size + 1) / sharding.world_size
    cuts = np.searchsorted(before, shares)
    cuts[-1] = len(part)
    return int(cuts[sharding.rank]), int(cuts[sharding.rank + 1])


def _pairs(
    row_N: IntArray,
    column_N: IntArray,
    value_N: npt.NDArray[np.float32],
    user_B: torch.Tensor,
) -> Batch:
    """Make a batch from ratings sorted by row."""
    counts = np.bincount(row_N, minlength=len(user_B))
    pointer_P = torch.from_numpy(np.concatenate([[0], counts.cumsum()]).astype(np.int64))
    return Batch(user_B, pointer_P, torch.from_numpy(column_N), torch.from_numpy(value_N))


def _sampled(batch: Batch, most: int, noise: CounterRng, tag: int) -> tuple[Batch, torch.Tensor]:
    """Keep at most ``most`` interactions per row; return the inverse sampling rate of each row.

    The sample depends on row and tag alone, not on the rest of the batch.
    """
    row_N = batch.row_N.numpy()
    lots_N = noise.uniform(tag, batch.user_B[batch.row_N], batch.item_N).numpy()
    order = np.lexsort((lots_N, row_N))
    place_N = np.arange(len(row_N)) - batch.pointer_P.numpy()[row_N]
    keep_N = np.zeros(len(row_N), dtype=bool)
    keep_N[order] = place_N < most
    scale_B = batch.length_B.float() / batch.length_B.clamp(min=1, max=most)
    return batch.keep(torch.from_numpy(keep_N)), scale_B


def _size(part: Any) -> int:
    """Return the bytes of all tensors in a tuple of tuples."""
    if isinstance(part, tuple):
        return sum(map(_size, part))
    return part.nbytes if isinstance(part, torch.Tensor) else 0
