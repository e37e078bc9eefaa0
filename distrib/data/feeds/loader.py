"""Load training histories: once through Ray Data, or file by file on the ranks."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import ray
import ray.data
import torch

from distrib.data.dataset import Dataset, DatasetManifest, ItemShardEntry, ShardEntry
from distrib.data.feeds.base import BatchSharding, Feed, Reads, ResidentRows
from distrib.data.feeds.resident import ResidentFeed
from distrib.data.feeds.streaming import Shard, StreamingFeed
from distrib.data.history_arrays import (
    BYTES_PER_INTERACTION,
    BYTES_PER_USER,
    HistoryArrays,
    empty_like,
    merge,
)
from distrib.data.schema import Role

FeedKind = Literal["resident", "streaming"]

_SHARE_OF_STORE = 0.3
"""Share of a node's object store for histories; joining them needs twice their size."""

_RETRY_S = 120.0  # for a store that does not respond


class TrainingData(NamedTuple):
    """What ranks need to open a feed; cheap to serialize."""

    dataset: Dataset
    kind: FeedKind
    shards: tuple[Shard, ...]
    """Shards that training reads, of users or of items."""

    num_train: int
    num_valid: int
    num_bytes: int
    """Memory of all training and validation histories."""

    refs: tuple[ray.ObjectRef, ray.ObjectRef, ray.ObjectRef] | None
    """For a resident feed: `_Parts` in the object store."""

    held: "_Parts | None" = None
    """For a resident feed of this process alone."""

    def resident(self) -> ResidentRows:
        """Return the histories of a resident feed, zero-copy from the object store."""
        manifest = self.dataset.manifest
        columns = (manifest.counts.items, manifest.user_index_size)
        train, valid, items = self.held or ray.get(list(self.refs or ()))
        return ResidentRows(train, valid, items, columns, manifest.made_from.feedback)

    def open_rows(
        self, sharding: BatchSharding, *, window_users: int, device: torch.device | None = None
    ) -> Feed:
        """Open a rank's feed of whole histories.

        Args:
            sharding: Rank and batch size.
            window_users: Users in the shuffle window of a streaming feed.
            device: Where a resident feed keeps the rows; host memory when None.

        Returns:
            The feed.
        """
        if self.kind == "resident":
            found = self.resident()
            return ResidentFeed(found.train, found.valid, sharding, device)
        return StreamingFeed(self.dataset, self.shards, sharding, window_users=window_users)


def kind_of(feed: str, manifest: DatasetManifest) -> FeedKind:
    """Choose the kind of feed: resident if the histories fit into every node's object store.

    Args:
        feed: ``auto``, or the kind itself.
        manifest: Manifest of the prepared dataset.

    Returns:
        The kind.
    """
    if feed != "auto":
        return "resident" if feed == "resident" else "streaming"
    stores = [
        node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]
    ]
    fits = expected_bytes(manifest) <= _SHARE_OF_STORE * min(stores, default=0)
    return "resident" if fits else "streaming"


def expected_bytes(manifest: DatasetManifest) -> int:
    """Estimate the memory of all training and validation histories."""
    counts = manifest.counts
    trained = counts.interactions(Role.INPUT, Role.TRAIN_TARGET)
    held_out = trained + manifest.num_valid if manifest.num_valid else 0
    users = 2 * BYTES_PER_USER * counts.users
    return BYTES_PER_INTERACTION * (trained + held_out) + users


def load_training_data(url: str, kind: FeedKind, reads: Reads = "users") -> TrainingData:
    """Read a prepared dataset into the object store, or only count what its shards hold.

    Args:
        url: Folder of the prepared dataset.
        kind: From `kind_of`.
        reads: Whose histories training reads; validation always reads those of users.

    Returns:
        What ranks need; users are in shard order.

    Raises:
        DataError: The folder holds no complete prepared dataset.
    """
    dataset = Dataset.open(url, retry_s=_RETRY_S)
    entries = _entries(dataset, reads)
    is_resident = kind == "resident"

    def described(piece: pa.Table) -> pa.Table:
        order = piece["order"][0].as_py()
        parts = _parts(dataset, entries[order], reads)
        return _described(order, parts, is_resident=is_resident)

    pieces = ray.data.from_items(
        [{"order": order} for order in range(len(entries))], override_num_blocks=len(entries)
    )
    blocks = pieces.map_batches(described, batch_size=1, batch_format="pyarrow").to_arrow_refs()
    *refs, facts = _assembled.remote(is_resident, *blocks)
    data = _counted(dataset, kind, reads, ray.get(facts))
    return data._replace(refs=tuple(refs)) if is_resident else data


def read_training_data(url: str, kind: FeedKind, reads: Reads = "users") -> TrainingData:
    """Read a prepared dataset in this process, for a rank that is alone; see `load_training_data`.

    Args:
        url: Folder of the prepared dataset.
        kind: From `kind_of`.
        reads: Whose histories training reads.

    Returns:
        What the rank needs.

    Raises:
        DataError: The folder holds no complete prepared dataset.
    """
    dataset = Dataset.open(url, retry_s=_RETRY_S)
    facts, held = [], []
    for entry in _entries(dataset, reads):
        parts = _parts(dataset, entry, reads)
        facts.append(parts.facts)
        if kind == "resident":
            held.append(parts)
    data = _counted(dataset, kind, reads, facts)
    if not held:
        return data
    return data._replace(held=_Parts(*(merge(list(kind)) for kind in zip(*held, strict=True))))


def _entries(dataset: Dataset, reads: Reads) -> list[ShardEntry | ItemShardEntry]:
    """Return the shards that training and validation read."""
    items = () if reads == "users" else dataset.manifest.item_histories or ()
    return [*dataset.manifest.shards, *items]


def _counted(
    dataset: Dataset, kind: FeedKind, reads: Reads, facts: Sequence["_Facts"]
) -> TrainingData:
    """Return what is known of training data, without the histories themselves."""
    kept = dataset.manifest.item_histories or () if reads == "items" else dataset.manifest.shards
    found = zip(_entries(dataset, reads), facts, strict=True)
    return TrainingData(
        dataset,
        kind,
        tuple(Shard(entry, fact.num_train) for entry, fact in found if entry in kept),
        num_train=sum(fact.num_train for fact in facts),
        num_valid=sum(fact.num_valid for fact in facts),
        num_bytes=sum(fact.num_bytes for fact in facts),
        refs=None,
    )


class _Facts(NamedTuple):
    """Sizes of a shard."""

    num_train: int
    num_valid: int
    num_bytes: int


class _Parts(NamedTuple):
    """Histories read from one shard."""

    train: HistoryArrays
    valid: HistoryArrays
    items: HistoryArrays
    """Item histories if training reads both sides; empty otherwise."""

    @property
    def facts(self) -> _Facts:
        """Sizes of the parts."""
        num_bytes = sum(part.num_bytes for part in self)
        return _Facts(self.train.num_users, self.valid.num_users, num_bytes)


def _parts(dataset: Dataset, entry: ShardEntry | ItemShardEntry, reads: Reads) -> _Parts:
    """Read the training and validation histories of a shard."""
    if isinstance(entry, ItemShardEntry):
        found = dataset.item_training(entry)
        nothing = empty_like(found)
        if reads == "both":
            return _Parts(nothing, nothing, found)
        return _Parts(found, nothing, nothing)
    train, valid = dataset.train_and_valid(entry)
    nothing = empty_like(train)
    return _Parts(nothing if reads == "items" else train, valid, nothing)


def _described(order: int, parts: _Parts, *, is_resident: bool) -> pa.Table:
    columns = {name: [value] for name, value in parts.facts._asdict().items()}
    return pa.table({"order": [order]} | columns | (_columns(parts) if is_resident else {}))


def _columns(parts: _Parts) -> dict[str, list[Any]]:
    return {
        f"{kind}_{name}": [part]
        for kind, rows in parts._asdict().items()
        for name, part in rows._asdict().items()
    }


@ray.remote(num_returns=4)
def _assembled(is_resident: bool, *blocks: pa.Table) -> Any:
    """Join the shards in order; results go to the object store without a copy on the heap."""
    entries = [(row, block) for block in blocks for row in range(len(block))]
    entries.sort(key=lambda entry: entry[1]["order"][entry[0]].as_py())
    facts = [
        _Facts(*(block[name][row].as_py() for name in _Facts._fields)) for row, block in entries
    ]

    def joined(kind: str) -> HistoryArrays:
        return merge(
            [
                HistoryArrays(
                    *(
                        block[f"{kind}_{name}"][row].values.to_numpy()
                        for name in HistoryArrays._fields
                    )
                )
                for row, block in entries
            ]
        )

    if not is_resident:
        return None, None, None, facts
    return *map(joined, _Parts._fields), facts
