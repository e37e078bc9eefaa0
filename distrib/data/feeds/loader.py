"""Where training histories come from: read once through Ray Data, or file by file on the ranks."""

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import ray
import ray.data
import torch

from distrib.data.dataset import load_manifest, user_numbers
from distrib.data.feeds.base import Dealing, Feed
from distrib.data.feeds.collate import BYTES_PER_INTERACTION, BYTES_PER_USER, Rows, merge
from distrib.data.feeds.resident import ResidentFeed
from distrib.data.feeds.shards import nobody_of, read_shard
from distrib.data.feeds.streaming import Shard, StreamingFeed
from distrib.data.feeds.tiles import BlockConfig, BlockFeed, Ratings
from distrib.data.schema import Role
from distrib.storage import Folder

Kind = Literal["resident", "streaming"]

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

    rows: tuple[ray.ObjectRef, ray.ObjectRef, ray.ObjectRef] | None
    """Of a resident feed, in the object store: what training reads, what validation asks, and
    histories of items, where training reads both."""

    num_columns: tuple[int, int]
    """Items that users may list, and numbers of users that items may list."""

    reads: Literal["users", "items", "both"]

    def open(
        self,
        dealing: Dealing,
        *,
        window_users: int,
        blocks: BlockConfig | None = None,
        device: torch.device | None = None,
    ) -> Feed:
        """Open a rank's feed.

        Args:
            dealing: Who asks, for how much.
            window_users: Users that a streaming feed shuffles at a time.
            blocks: How users and items meet, where training reads both.
            device: Where a resident feed should keep the rows, if not in the host's memory.

        Returns:
            The feed.
        """
        if self.rows is not None:
            train, valid, items = ray.get(list(self.rows))
            if self.reads == "both":
                ratings = Ratings(train, items, self.num_columns)
                return BlockFeed(ratings, valid, dealing, blocks or BlockConfig())
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
    users = 2 * BYTES_PER_USER * int(counts["users"])
    return BYTES_PER_INTERACTION * (trains + trained + held_out) + users


def load_source(
    prepared: Folder, kind: Kind, rows: Literal["users", "items", "both"] = "users"
) -> Source:
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
    of_items: tuple[Mapping[str, Any], ...] = ()
    if rows != "users":
        of_items = tuple(_entry(part, "first_item") for part in manifest["item_histories"])
    read = of_items if rows == "items" else asked
    entries = [*asked, *of_items]
    pieces = [{"order": order, "entry": json.dumps(entry)} for order, entry in enumerate(entries)]
    is_resident = kind == "resident"

    def described(piece: pa.Table) -> pa.Table:
        row = piece.to_pylist()[0]
        parts = _parts(prepared, json.loads(row["entry"]), num_shards, rows)
        return _described(row["order"], parts, is_resident=is_resident)

    dataset = ray.data.from_items(pieces, override_num_blocks=len(pieces))
    blocks = dataset.map_batches(described, batch_size=1, batch_format="pyarrow").to_arrow_refs()
    *refs, facts = _assembled.remote(is_resident, *blocks)
    found = ray.get(facts)
    shards = tuple(
        Shard(entry, fact["num_train"])
        for entry, fact in zip(entries, found, strict=True)
        if entry in read
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
        rows=tuple(refs) if is_resident else None,
        num_columns=(manifest["counts"]["items"], user_numbers(manifest)),
        reads=rows,
    )


class _Parts(NamedTuple):
    """What is read of one shard."""

    train: Rows
    valid: Rows
    items: Rows
    """Where training reads both; nobody's otherwise."""


def _parts(prepared: Folder, entry: Mapping[str, Any], num_shards: int, reads: str) -> _Parts:
    """Read what training reads of a shard, and what validation asks of it."""
    found, valid = read_shard(prepared, entry, num_shards)
    nobody, is_of_items = nobody_of(found), "first_item" in entry
    if reads == "both" and is_of_items:
        return _Parts(nobody, valid, found)
    trains = reads == "both" or is_of_items == (reads == "items")
    return _Parts(found if trains else nobody, valid, nobody)


def _described(order: int, parts: _Parts, *, is_resident: bool) -> pa.Table:
    facts = {
        "order": [order],
        "num_train": [parts.train.num_users],
        "num_valid": [parts.valid.num_users],
        "num_bytes": [sum(part.num_bytes for part in parts)],
    }
    return pa.table(facts | (_columns(**parts._asdict()) if is_resident else {}))


def _entry(found: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    return {key: found[key] for key in (place, "name", "sha256")}


def _columns(**parts: Rows) -> dict[str, list[Any]]:
    return {
        f"{kind}_{name}": [part]
        for kind, rows in parts.items()
        for name, part in rows._asdict().items()
    }


@ray.remote(num_returns=4)
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
        return None, None, None, facts
    return *map(joined, _Parts._fields), facts
