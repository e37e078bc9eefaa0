"""Lookup of users in a prepared folder by id."""

import threading
from collections import OrderedDict
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from distrib.data.dataset import Dataset
from distrib.data.schema import Role, Subset
from distrib.data.splits.rules import shard_of
from distrib.ids import id_of
from distrib.serve.schemas import History

_COLUMNS = ["user", "items", "ratings", "roles", "subset"]


class StoredUsers:
    """Reads the shard that a user's id hashes to, with an LRU cache of shards.

    Args:
        prepared: A prepared folder.
        cached_shards: Size of the cache.

    Raises:
        DataError: The folder holds no prepared data.
    """

    def __init__(self, prepared: str, cached_shards: int) -> None:
        self._dataset = Dataset.open(prepared)
        self._vocabulary = self._dataset.vocabulary
        manifest = self._dataset.manifest
        self._num_shards = manifest.made_from.num_shards
        self._entries = {entry.shard: entry for entry in manifest.shards}
        self._cached_shards = cached_shards
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def data(self) -> str:
        """Hash of the data; equals the bundle's ``data`` if the model was trained on it."""
        return self._dataset.hash

    def find(self, user: str) -> tuple[History, int] | None:
        """Return a user's history in original ids, and the user index of training.

        Args:
            user: The id as a string.

        Returns:
            None if there is no such user; the index is -1 for users that training did not see.

        Raises:
            DataError: The shard is damaged or cannot be read.
        """
        kind = self._kind
        key = id_of(user, "int" if pa.types.is_integer(kind) else "string")
        if key is None:
            return None
        shard = int(shard_of(pa.array([key], kind), self._num_shards)[0])
        if shard not in self._entries:
            return None
        table = self._shard(shard)
        row = pc.index(table["user"], pa.scalar(key, kind)).as_py()
        return None if row < 0 else self._history(table, row, shard)

    @cached_property
    def _kind(self) -> pa.DataType:
        """Type of user ids."""
        return self._shard(next(iter(self._entries)))["user"].type

    def _history(self, table: pa.Table, row: int, shard: int) -> tuple[History, int]:
        found: dict[str, Any] = table.slice(row, 1).to_pylist()[0]
        items = self._vocabulary.ids.take(pa.array(found["items"], pa.int64())).to_pylist()
        is_rated = len(self._vocabulary.levels) > 1
        ratings = found["ratings"] if is_rated else None
        trains = found["subset"] == Subset.TRAIN and any(
            role <= Role.TRAIN_TARGET for role in found["roles"]
        )
        first, step = self._dataset.numbering(shard)
        history = History.model_construct(items=items, ratings=ratings)
        return history, first + step * row if trains else -1

    def _shard(self, shard: int) -> pa.Table:
        with self._lock:
            return self._read(shard)

    def _read(self, shard: int) -> pa.Table:
        if shard in self._cache:
            self._cache.move_to_end(shard)
            return self._cache[shard]
        table = self._dataset.table(self._entries[shard], _COLUMNS)
        self._cache[shard] = table
        while len(self._cache) > max(self._cached_shards, 1):
            self._cache.popitem(last=False)
        return table
