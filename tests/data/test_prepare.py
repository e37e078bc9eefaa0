import hashlib
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from distrib.data.cleaning import CleaningConfig, RatingsConfig
from distrib.data.config import DataConfig
from distrib.data.prepare import prepare
from distrib.data.prepared import load_vocabulary, read_part
from distrib.data.schema import Role, Subset
from distrib.data.sources import (
    Columns,
    CsvSource,
    MovieLensSource,
    ParquetSource,
    SyntheticLog,
)
from distrib.data.splits import NoSplit, StrongGeneralisationSplit
from distrib.errors import DataError
from distrib.storage import Folder

pytestmark = pytest.mark.ray
STARS = RatingsConfig(levels=(1.0, 2.0, 3.0, 4.0, 5.0))
COLUMNS = Columns(user="who", item="what", rating="stars", time="when")


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows_of(folder):
    return pq.read_table(folder / "histories").to_pylist()


def test_a_rerun_gives_the_same_bytes(cluster, tmp_path):
    source = SyntheticLog(num_users=5000, num_items=80, num_interactions=60_000)
    for name in ("one", "two"):
        prepare(DataConfig(prepared=str(tmp_path / name), source=source, num_shards=3))
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert len(digests(tmp_path / "one")) == 3 + 2
    before = digests(tmp_path / "one")
    prepare(DataConfig(prepared=str(tmp_path / "one"), source=source, num_shards=3))
    assert digests(tmp_path / "one") == before


def csv(tmp_path, lines, name="log.csv"):
    path = tmp_path / name
    path.write_text("who,what,stars,when\n" + "\n".join(lines) + "\n")
    return CsvSource(path=str(path), columns=COLUMNS)


def test_histories_hold_what_the_log_says_in_order_of_time(cluster, tmp_path):
    lines = ["b,y,2,30", "a,x,5,20", "a,y,4,10", "a,z,1,10", "b,x,3,40"]
    config = DataConfig(
        prepared=str(tmp_path / "p"),
        source=csv(tmp_path, lines),
        ratings=STARS,
        split=NoSplit(),
        num_shards=2,
    )
    manifest = prepare(config)
    vocabulary = load_vocabulary(Folder(config.prepared))
    assert vocabulary.ids.to_pylist() == ["x", "y", "z"]
    found = {row["user"]: row for row in rows_of(tmp_path / "p")}
    assert found["a"]["items"] == [1, 2, 0]  # a tie in time goes by item
    assert found["a"]["ratings"] == [4.0, 1.0, 5.0]
    assert found["b"]["times"] == [30, 40]
    assert manifest["counts"]["users"] == 2
    assert vocabulary.train_count_IL.sum() == 5
    assert vocabulary.train_count_IL[0].tolist() == [0, 0, 1, 0, 1]


def test_duplicates_keep_the_latest_whatever_the_order_of_lines(cluster, tmp_path):
    lines = ["a,x,5,10", "a,x,2,30", "a,x,4,20", "a,y,3,1", "b,x,1,1"]
    found = []
    for name, order in (("one", lines), ("two", lines[::-1])):
        config = DataConfig(
            prepared=str(tmp_path / name),
            source=csv(tmp_path, order),
            ratings=STARS,
            split=NoSplit(),
        )
        assert prepare(config)["counts"]["rejected"] == {"duplicate": 2}
        found.append(rows_of(tmp_path / name))
    assert found[0] == found[1]
    assert {row["user"]: row["ratings"] for row in found[0]} == {"a": [3.0, 2.0], "b": [1.0]}


def test_every_row_read_is_kept_or_rejected_by_name(cluster, tmp_path):
    lines = [f"u{n},i{n % 5},{n % 5 + 1},{n}" for n in range(100)] + ["u1,i9,8,1", "u2,,1,1"]
    lines += [f"short,i{n},5,1" for n in range(2)]
    config = DataConfig(
        prepared=str(tmp_path / "p"),
        source=csv(tmp_path, lines),
        ratings=STARS,
        split=NoSplit(),
        cleaning=CleaningConfig(keep_above=2.0, min_user_items=2),
    )
    with pytest.raises(DataError, match="nothing left"):
        prepare(
            config.model_copy(
                update={
                    "cleaning": CleaningConfig(keep_above=2.0, min_user_items=50),
                    "prepared": str(tmp_path / "q"),
                }
            )
        )
    counts = prepare(config)["counts"]
    assert counts["read"] == 104
    assert counts["kept"] == 2
    assert counts["rejected"] == {
        "missing id": 1,
        "rating outside scale": 1,
        "not above threshold": 40,
        "user too short": 60,
    }
    assert counts["read"] == counts["kept"] + sum(counts["rejected"].values())


def test_a_mostly_damaged_log_is_refused_with_its_counts(cluster, tmp_path):
    source = csv(tmp_path, ["a,x,9,1", "b,x,5,1"])
    with pytest.raises(DataError, match=r"1 of 2 rows are damaged.*'rating outside scale': 1"):
        prepare(DataConfig(prepared=str(tmp_path / "p"), source=source, ratings=STARS))
    assert not (tmp_path / "p" / "manifest.json").exists()


def test_a_folder_of_another_preparation_is_not_touched(cluster, tmp_path):
    source = csv(tmp_path, ["a,x,5,1", "b,x,5,1"])
    config = DataConfig(prepared=str(tmp_path / "p"), source=source, ratings=STARS, split=NoSplit())
    prepare(config)
    before = digests(tmp_path / "p")
    with pytest.raises(DataError, match=r"another preparation \(differs in num_shards\)"):
        prepare(config.model_copy(update={"num_shards": 3}))
    assert digests(tmp_path / "p") == before


def test_nothing_held_out_is_in_counts_or_vocabulary(cluster, tmp_path):
    """Held-out users' own items are unknown to training, and so is all they are asked."""
    lines = [f"u{n},common{k},5,1" for n in range(40) for k in range(6)]
    lines += [f"u{n},own{n},5,1" for n in range(40)]
    config = DataConfig(
        prepared=str(tmp_path / "p"),
        source=csv(tmp_path, lines),
        ratings=STARS,
        split=StrongGeneralisationSplit(valid_users=10, test_users=10),
    )
    manifest = prepare(config)
    rows = rows_of(tmp_path / "p")
    vocabulary = load_vocabulary(Folder(config.prepared))
    training = [row for row in rows if row["subset"] == Subset.TRAIN]
    assert len(training) == vocabulary.num_users == 20
    assert manifest["counts"]["rejected"] == {"item unseen in training": 20}
    counted = Counter(item for row in training for item in row["items"])
    assert vocabulary.train_count_IL.sum(1).tolist() == [counted[n] for n in range(len(vocabulary))]
    assert sorted(vocabulary.ids.to_pylist()) == sorted(
        {f"common{k}" for k in range(6)} | {f"own{row['user'][1:]}" for row in training}
    )


def test_entrywise_counts_are_those_of_the_training_part(cluster, tmp_path):
    source = SyntheticLog(num_users=2000, num_items=30, num_interactions=20_000)
    config = DataConfig(prepared=str(tmp_path / "p"), source=source, ratings=STARS)
    manifest = prepare(config)
    counts = np.zeros((30, 5), dtype=int)
    total = Counter()
    for row in rows_of(tmp_path / "p"):
        for item, rating, role in zip(row["items"], row["ratings"], row["roles"], strict=True):
            total[role] += 1
            counts[item, int(rating) - 1] += role == Role.INPUT
    np.testing.assert_array_equal(load_vocabulary(Folder(config.prepared)).train_count_IL, counts)
    named = manifest["counts"]["interactions_by_role"]
    assert named == {role.name.lower(): total[role] for role in Role if total[role]}


def test_real_movielens_counts(cluster, real_data, tmp_path):
    """Published sizes of ML-100K and ml-latest-small, in two of the three layouts."""
    for path, users, items, rows in (
        ("ml-100k/u.data", 943, 1682, 100_000),
        ("ml-latest-small/ratings.csv", 610, 9724, 100_836),
    ):
        config = DataConfig(
            prepared=str(tmp_path / path), source=MovieLensSource(path=str(real_data / path))
        )
        counts = prepare(config)["counts"]
        assert (counts["users"], counts["items"], counts["kept"]) == (users, items, rows)
        assert counts["rejected"] == {}


def test_parquet_rows_without_a_time_are_kept_as_the_oldest(cluster, tmp_path):
    table = {"who": [1, 1], "what": [7, 8], "stars": [5.0, 4.0], "when": [9, None]}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    source = ParquetSource(path=str(tmp_path / "log.parquet"), columns=COLUMNS)
    prepare(DataConfig(prepared=str(tmp_path / "p"), source=source, ratings=STARS, split=NoSplit()))
    assert [(row["items"], row["times"]) for row in rows_of(tmp_path / "p")] == [([1, 0], [0, 9])]


def test_the_manifest_is_json_without_a_clock(cluster, tmp_path):
    config = DataConfig(
        prepared=str(tmp_path / "p"),
        source=csv(tmp_path, ["a,x,5,1"]),
        ratings=STARS,
        split=NoSplit(),
    )
    manifest = prepare(config)
    assert json.loads((tmp_path / "p" / "manifest.json").read_text()) == manifest
    assert "time" not in manifest


def test_a_log_that_has_changed_is_not_taken_for_the_old_one(cluster, tmp_path):
    config = DataConfig(
        prepared=str(tmp_path / "p"),
        source=csv(tmp_path, ["a,x,5,1"]),
        ratings=STARS,
        split=NoSplit(),
    )
    prepare(config)
    csv(tmp_path, ["a,x,5,1", "b,x,5,1"])
    with pytest.raises(DataError, match=r"another preparation \(differs in files\)"):
        prepare(config)


def test_a_damaged_shard_is_refused(cluster, tmp_path):
    config = DataConfig(
        prepared=str(tmp_path / "p"),
        source=csv(tmp_path, ["a,x,5,1"]),
        ratings=STARS,
        split=NoSplit(),
    )
    shard = prepare(config)["shards"][0]
    path = tmp_path / "p" / shard["name"]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="content differs from the manifest"):
        read_part(Folder(config.prepared), shard)


def test_a_shard_larger_than_rays_blocks_stays_whole(cluster, tmp_path, monkeypatch):
    """Users must not be cut in two; Ray cuts what a task returns at its target block size."""
    context = ray.data.DataContext.get_current()
    monkeypatch.setattr(context, "target_max_block_size", 20_000)
    lines = [f"user-{n % 50},item-{n},{n % 5 + 1},{n}" for n in range(5000)]
    config = DataConfig(
        prepared=str(tmp_path / "p"),
        source=csv(tmp_path, lines),
        ratings=STARS,
        split=NoSplit(),
        num_shards=1,
    )
    counts = prepare(config.model_copy(update={"cleaning": CleaningConfig(min_user_items=100)}))[
        "counts"
    ]
    assert (counts["users"], counts["kept"], counts["rejected"]) == (50, 5000, {})


def test_a_header_alone_is_an_empty_log(cluster, tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("who,what,stars,when")
    source = CsvSource(path=str(path), columns=COLUMNS)
    with pytest.raises(DataError, match=r"nothing left of 0 row\(s\)"):
        prepare(DataConfig(prepared=str(tmp_path / "p"), source=source, ratings=STARS))
