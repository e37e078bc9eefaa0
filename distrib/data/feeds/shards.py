"""One shard of a prepared folder as arrays for training and validation."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from distrib.data.dataset import read_part, user_number
from distrib.data.feeds.collate import (
    Rows,
    asked_rows,
    item_training_rows,
    rows_of,
    select,
    trained_numbers,
    training_rows,
)
from distrib.data.schema import Role
from distrib.storage import Folder, patiently

_RETRY_S = 120.0  # for a store that does not answer

_USER_COLUMNS = ["subset", "items", "ratings", "roles"]

_ITEM_COLUMNS = ["users", "ratings", "roles", "subsets"]


def read_shard(prepared: Folder, entry: Mapping[str, Any], num_shards: int) -> tuple[Rows, Rows]:
    """Read a shard of a prepared folder.

    Args:
        prepared: The folder.
        entry: The manifest's entry of a shard of users, or of items.
        num_shards: From the manifest's recipe.

    Returns:
        What training reads, and what validation asks; items are asked nothing.
    """
    if "first_item" in entry:
        train = read_item_rows(prepared, entry)
        return train, nobody_of(train)
    rows, subset_B = read_user_rows(prepared, entry, num_shards)
    return training_rows(rows, subset_B), validation_rows(rows, subset_B)


def read_item_rows(prepared: Folder, entry: Mapping[str, Any]) -> Rows:
    """Read the training histories of the items of a shard."""
    table = patiently(lambda: read_part(prepared, entry, _ITEM_COLUMNS), for_s=_RETRY_S)
    return item_training_rows(table, entry["first_item"])


def read_user_rows(prepared: Folder, entry: Mapping[str, Any], num_shards: int) -> tuple[Rows, Any]:
    """Read the histories of the users of a shard, and the subset that each user is in."""
    table = patiently(lambda: read_part(prepared, entry, _USER_COLUMNS), for_s=_RETRY_S)
    rows = rows_of(table, *user_number(entry["shard"], num_shards))
    return rows, table["subset"].to_numpy()


def validation_rows(rows: Rows, subset_B: Any) -> Rows:
    """Return the users of a shard with validation targets, and what they may be scored from."""
    return asked_rows(trained_numbers(rows, subset_B), Role.VALID_TARGET)


def nobody_of(rows: Rows) -> Rows:
    """Return no rows of the same kinds."""
    nothing = np.zeros(len(rows.item_N), dtype=bool), np.zeros(rows.num_users, dtype=bool)
    return select(rows, *nothing)
