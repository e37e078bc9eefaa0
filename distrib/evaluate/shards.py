"""Test users of a prepared folder, shard by shard."""

from typing import Any

import pyarrow as pa

from distrib.data.dataset import read_part, user_number
from distrib.data.feeds.collate import Rows, asked_rows, rows_of, trained_numbers
from distrib.data.schema import Role
from distrib.models.shallow.popularity import Popularity
from distrib.score.scorer import Scorer
from distrib.storage import Folder


def model_and_popularity(bundle: str, device: str = "cpu") -> tuple[Scorer, Scorer]:
    """Return the scorer of a bundle, and that of popularity on the same items."""
    scorer = Scorer.from_bundle(Folder(bundle), device=device)
    popularity = Popularity(scorer.vocabulary.catalogue)
    return scorer, Scorer(popularity, scorer.vocabulary, device=device)


def shard_pieces(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the shards, with what gives the numbers of their users."""
    num_shards = manifest["recipe"]["num_shards"]
    return [
        {**{key: shard[key] for key in ("name", "sha256", "shard")}, "num_shards": num_shards}
        for shard in manifest["shards"]
    ]


def test_rows(prepared: Folder, shard: dict[str, Any]) -> tuple[Rows, pa.Table]:
    """Return the users of a shard who have test targets, and the table of all its users."""
    table = read_part(prepared, shard)
    rows = rows_of(table, *user_number(shard["shard"], shard["num_shards"]))
    known = trained_numbers(rows, table["subset"].to_numpy())
    return asked_rows(known, Role.TEST_TARGET), table
