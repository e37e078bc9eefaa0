"""The resident feed: histories read once through Ray Data, shared by all workers of a node."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import ray.data

from distrib.batch import Batch
from distrib.data.collate import IntArray, Rows, asked_rows, gather, merge, rows_of, training_rows
from distrib.data.prepared import load_manifest, read_part, user_number
from distrib.data.schema import Role
from distrib.storage import Folder


class RankBatch(NamedTuple):
    """One rank's part of a global batch."""

    batch: Batch
    num_users: int
    """Users of the global batch, over all ranks."""


class Resident(NamedTuple):
    """References to rows in the object store; cheap to pass to workers."""

    train: ray.ObjectRef
    valid: ray.ObjectRef
    num_train: int
    num_valid: int
    num_bytes: int


def load_resident(prepared: Folder) -> Resident:
    """Read a prepared folder into the object store; the order of users is that of the shards.

    Args:
        prepared: A prepared folder.

    Returns:
        References that workers can read from.

    Raises:
        DataError: Nothing complete is prepared there.
    """
    manifest = load_manifest(prepared)
    pieces = [
        {"order": order, **{key: shard[key] for key in ("shard", "name", "sha256")}}
        for order, shard in enumerate(manifest["shards"])
    ]
    num_shards = manifest["recipe"]["num_shards"]
    url = str(prepared)

    def read(piece: pa.Table) -> pa.Table:
        entry = piece.to_pylist()[0]
        table = read_part(Folder(url), entry, ["subset", "items", "ratings", "roles"])
        rows = rows_of(table, *user_number(entry["shard"], num_shards))
        subset_B = table["subset"].to_numpy()
        parts = (training_rows(rows, subset_B), asked_rows(rows, Role.VALID_TARGET))
        return pa.table(
            {
                "order": [entry["order"]],
                **{
                    f"{kind}_{name}": [part]
                    for kind, rows in zip(("train", "valid"), parts, strict=True)
                    for name, part in rows._asdict().items()
                },
            }
        )

    dataset = ray.data.from_items(pieces, override_num_blocks=len(pieces))
    blocks = dataset.map_batches(read, batch_size=1, batch_format="pyarrow").to_arrow_refs()
    train, valid, sizes = _assembled.remote(*blocks)
    num_train, num_valid, num_bytes = ray.get(sizes)
    return Resident(train, valid, num_train, num_valid, num_bytes)


@ray.remote(num_returns=3)
def _assembled(*blocks: pa.Table) -> Any:
    """Join the shards in order; the results lie in the object store without a copy in a heap."""
    entries = [(row, block) for block in blocks for row in range(len(block))]
    entries.sort(key=lambda entry: entry[1]["order"][entry[0]].as_py())

    def joined(kind: str) -> Rows:
        return merge(
            [
                Rows(*(block[f"{kind}_{name}"][row].values.to_numpy() for name in Rows._fields))
                for row, block in entries
            ]
        )

    train, valid = joined("train"), joined("valid")
    return train, valid, (train.num_users, valid.num_users, train.num_bytes + valid.num_bytes)


class Feed:
    """World-size-free batches: global batch t of an epoch is a slice of one permutation.

    Every user comes exactly once an epoch, none is dropped, and all ranks take equally many steps;
    a rank's part of the last batch may be empty.
    """

    def __init__(
        self, rows: Rows, *, batch_users: int, seed: int, rank: int, world_size: int
    ) -> None:
        self.rows = rows
        self.batch_users = batch_users
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

    @property
    def num_steps(self) -> int:
        """Global batches in an epoch."""
        return -(-self.rows.num_users // self.batch_users)

    def batches(self, epoch: int) -> Iterator[RankBatch]:
        """Yield this rank's part of each global batch of an epoch."""
        order = epoch_order(self.rows.num_users, self.seed, epoch)
        for start in range(0, len(order), self.batch_users):
            chosen = order[start : start + self.batch_users]
            mine = np.array_split(chosen, self.world_size)[self.rank]
            yield RankBatch(gather(self.rows, mine)[0], len(chosen))


def epoch_order(num_users: int, seed: int, epoch: int) -> IntArray:
    """Return the order of users in an epoch, a pure function of its arguments."""
    return np.random.default_rng([seed, epoch]).permutation(num_users)
