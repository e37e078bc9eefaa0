"""Where training histories come from: read once through Ray Data, or file by file on the ranks."""

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import ray
import ray.data
import torch

from distrib.data.collate import Rows, merge
from distrib.data.feed import (
    Dealing,
    Feed,
    ResidentFeed,
    Shard,
    StreamingFeed,
    nobody_of,
    read_shard,
)
from distrib.data.prepared import load_manifest
from distrib.data.schema import Role
from distrib.storage import Folder

Kind = Literal["resident", "streaming"]

_BYTES_PER_INTERACTION = 9
_BYTES_PER_USER = 16
_SHARE_OF_STORE = 0.3
"""Of a node's object store that histories may take; while they are joined, they lie there twice."""


class Source(NamedTuple):
    """What ranks need to open a feed; cheap to pass to them."""

    prepared: str
    kind: Kind
    shards: tuple[Shard, ...]
    """Those that training reads, of users or of items."""

    asked: tuple[Mapping[str, Any], ...]
    """Entries of the users' shards, for validation."""

    num_shards: int
    num_train: int
    num_valid: int
    num_bytes: int
    """Of all training and validation histories in memory."""

    rows: tuple[ray.ObjectRef, ray.ObjectRef] | None
    """Of a resident feed: training and validation rows in the object store."""

    def open(
        self, dealing: Dealing, *, window_users: int, device: torch.device | None = None
    ) -> Feed:
        """Open a rank's feed.

        Args:
            dealing: Who asks, for how much.
            window_users: Users that a streaming feed shuffles at a time.
            device: Where a resident feed should keep the rows, if not in the host's memory.

        Returns:
            The feed.
        """
        if self.rows is not None:
            train, valid = ray.get(list(self.rows))
            return ResidentFeed(train, valid, dealing, device)
        return StreamingFeed(
            Folder(self.prepared),
            self.shards,
            dealing,
            asked=self.asked,
            num_shards=self.num_shards,
            window_users=window_users,
        )


def kind_of(feed: str, manifest: Mapping[str, Any]) -> Kind:
    """Choose the kind of feed: resident where the histories fit into every node's object store.

    Args:
        feed: ``auto``, or the kind itself.
        manifest: Of the prepared data.

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


def expected_bytes(manifest: Mapping[str, Any]) -> int:
    """Return about how much memory all training and validation histories take."""
    counts = manifest["counts"]
    by_role = counts["interactions_by_role"]
    trains, trained, asked = (
        int(by_role.get(role.name.lower(), 0))
        for role in (Role.INPUT, Role.TRAIN_TARGET, Role.VALID_TARGET)
    )
    held_out = trains + trained + asked if asked else 0
    users = 2 * _BYTES_PER_USER * int(counts["users"])
    return _BYTES_PER_INTERACTION * (trains + trained + held_out) + users


def load_source(prepared: Folder, kind: Kind, rows: Literal["users", "items"] = "users") -> Source:
    """Read a prepared folder into the object store, or look at its shards.

    Args:
        prepared: A prepared folder.
        kind: From `kind_of`.
        rows: Whose histories training reads; validation asks users always.

    Returns:
        What ranks need; the order of users is that of the shards.

    Raises:
        DataError: Nothing complete is prepared there.
    """
    manifest = load_manifest(prepared)
    num_shards = manifest["recipe"]["num_shards"]
    asked = tuple(_entry(shard, "shard") for shard in manifest["shards"])
    read_by = {"users": asked, "items": ()}
    if rows == "items":
        parts = manifest["item_histories"]
        read_by["items"] = tuple(_entry(part, "first_item") for part in parts)
    entries = [*asked, *read_by["items"]]
    pieces = [{"order": order, "entry": json.dumps(entry)} for order, entry in enumerate(entries)]
    is_resident = kind == "resident"

    def read(piece: pa.Table) -> pa.Table:
        row = piece.to_pylist()[0]
        parts = _parts(prepared, json.loads(row["entry"]), num_shards, rows)
        return _described(row["order"], *parts, is_resident=is_resident)

    dataset = ray.data.from_items(pieces, override_num_blocks=len(pieces))
    blocks = dataset.map_batches(read, batch_size=1, batch_format="pyarrow").to_arrow_refs()
    train, valid, facts = _assembled.remote(is_resident, *blocks)
    found = ray.get(facts)
    shards = tuple(
        Shard(entry, fact["num_train"])
        for entry, fact in zip(entries, found, strict=True)
        if entry in read_by[rows]
    )
    num_train, num_valid, num_bytes = (
        sum(fact[key] for fact in found) for key in ("num_train", "num_valid", "num_bytes")
    )
    return Source(
        str(prepared),
        kind,
        shards,
        asked,
        num_shards,
        num_train=num_train,
        num_valid=num_valid,
        num_bytes=num_bytes,
        rows=(train, valid) if is_resident else None,
    )


def _parts(
    prepared: Folder, entry: Mapping[str, Any], num_shards: int, rows: str
) -> tuple[Rows, Rows]:
    """Read what training reads of a shard, and what validation asks of it."""
    train, valid = read_shard(prepared, entry, num_shards)
    trains = rows == "users" or "first_item" in entry
    return (train if trains else nobody_of(train)), valid


def _described(order: int, train: Rows, valid: Rows, *, is_resident: bool) -> pa.Table:
    facts = {
        "order": [order],
        "num_train": [train.num_users],
        "num_valid": [valid.num_users],
        "num_bytes": [train.num_bytes + valid.num_bytes],
    }
    return pa.table(facts | (_columns(train=train, valid=valid) if is_resident else {}))


def _entry(found: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    return {key: found[key] for key in (place, "name", "sha256")}


def _columns(**parts: Rows) -> dict[str, list[Any]]:
    return {
        f"{kind}_{name}": [part]
        for kind, rows in parts.items()
        for name, part in rows._asdict().items()
    }


@ray.remote(num_returns=3)
def _assembled(is_resident: bool, *blocks: pa.Table) -> Any:
    """Join the shards in order; the results lie in the object store without a copy in a heap."""
    entries = [(row, block) for block in blocks for row in range(len(block))]
    entries.sort(key=lambda entry: entry[1]["order"][entry[0]].as_py())
    names = ("num_train", "num_valid", "num_bytes")
    facts = [{name: block[name][row].as_py() for name in names} for row, block in entries]

    def joined(kind: str) -> Rows:
        return merge(
            [
                Rows(*(block[f"{kind}_{name}"][row].values.to_numpy() for name in Rows._fields))
                for row, block in entries
            ]
        )

    if not is_resident:
        return None, None, facts
    return joined("train"), joined("valid"), facts
