"""A log that grows: what a prepared folder holds then, and what of it has not changed."""

import random

import numpy as np
import pyarrow.parquet as pq
import pytest

from distrib.data.config import CleaningConfig, DataConfig
from distrib.data.dataset import Dataset
from distrib.data.logs.config import Columns, CsvSource
from distrib.data.logs.rating_scale import RatingsConfig
from distrib.data.prepare.job import preflight, prepare
from distrib.data.splits.rules import (
    EntrywiseSplit,
    GlobalTimeSplit,
    LeaveLastSplit,
    LiangSplit,
    NoSplit,
    StrongGeneralizationSplit,
)
from distrib.errors import ConfigError, DataError
from distrib.storage import Folder

pytestmark = pytest.mark.ray
COLUMNS = Columns(user="who", item="what", rating="stars", time="when")
STARS = RatingsConfig(levels=(1.0, 2.0, 3.0, 4.0, 5.0))


def lines(users, items, count, seed):
    rng = random.Random(seed)
    return [
        f"u{rng.choice(users)},i{rng.choice(items)},{rng.randint(1, 5)},{rng.randint(0, 10**6)}"
        for _ in range(count)
    ]


def write(folder, name, rows):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(["who,what,stars,when", *rows]) + "\n")


def config_of(tmp_path, name, **changes):
    source = CsvSource(path=str(tmp_path / "log"), columns=COLUMNS)
    settings = {"source": source, "ratings": STARS, "split": EntrywiseSplit(), "num_shards": 4}
    return DataConfig(prepared=str(tmp_path / name), **{**settings, **changes})


def histories(config):
    """All histories by user, items by original id; a user's number in the prepared data also."""
    folder = Folder(config.prepared)
    dataset = Dataset.open(folder)
    manifest, ids = dataset.manifest, dataset.vocabulary.ids.to_pylist()
    found, numbers = {}, {}
    for shard in manifest.shards:
        first, step = dataset.numbering(shard.shard)
        for place, row in enumerate(Dataset.open(folder).table(shard).to_pylist()):
            row["items"] = [ids[n] for n in row["items"]]
            numbers[row["user"]] = first + step * place
            found[row.pop("user")] = row
    return found, numbers


@pytest.mark.parametrize("split", [EntrywiseSplit(), LeaveLastSplit(), NoSplit()], ids=repr)
def test_extending_gives_what_preparing_both_logs_gives(cluster, tmp_path, split):
    write(tmp_path / "log", "day1.csv", lines(range(40), range(30), 400, seed=1))
    grown = config_of(tmp_path, "grown", split=split, extend=True, item_histories=True)
    prepare(grown)
    before, old_numbers = histories(grown)
    old_ids = Dataset.open(grown.prepared).vocabulary.ids.to_pylist()
    write(tmp_path / "log", "day2.csv", lines(range(20, 60), range(20, 50), 300, seed=2))
    extended = prepare(grown)
    at_once = config_of(tmp_path, "at_once", split=split, item_histories=True)
    whole = prepare(at_once)
    found, numbers = histories(grown)
    assert found == histories(at_once)[0]
    assert extended.counts == whole.counts
    assert extended.times == whole.times
    vocabulary, other = (Dataset.open(c.prepared).vocabulary for c in (grown, at_once))
    assert vocabulary.num_users == other.num_users
    assert vocabulary.ids.to_pylist()[: len(old_ids)] == old_ids
    assert len(vocabulary) > len(old_ids)
    places = other.positions(vocabulary.ids)
    np.testing.assert_array_equal(vocabulary.train_count_IL, other.train_count_IL[places])
    assert {user: numbers[user] for user in before} == old_numbers
    by_item = [item_histories(c.prepared) for c in (grown, at_once)]
    assert by_item[0] == by_item[1]


def item_histories(prepared):
    manifest = Dataset.open(prepared).manifest
    rows = [r for e in manifest.item_histories for r in Dataset.open(prepared).table(e).to_pylist()]
    return {
        row["item"]: sorted(zip(row["times"], row["ratings"], row["roles"], strict=True))
        for row in rows
    }


def test_only_touched_shards_are_rewritten_and_nothing_is_added_twice(cluster, tmp_path):
    write(tmp_path / "log", "day1.csv", lines(range(40), range(30), 400, seed=1))
    config = config_of(tmp_path, "p", num_shards=16, extend=True, max_damaged_share=0.6)
    first = prepare(config)
    write(tmp_path / "log", "day2.csv", ["u3,i1,5,7", "u3,i99,4,8"])
    second = prepare(config)
    stays = {e.name for e in first.shards} & {e.name for e in second.shards}
    assert len(stays) == len(first.shards) - 1 > 8
    assert second.counts.read == 402
    present = {path.name for path in (tmp_path / "p" / "histories").iterdir()}
    assert present == {e.name.split("/")[1] for e in second.shards}
    assert pq.read_table(tmp_path / "p" / "histories").num_rows == second.counts.users
    assert prepare(config) == second
    write(tmp_path / "log", "day3.csv", ["new,i99,1,9", ",i1,5,1"])
    third = prepare(config)
    assert third.counts.users == second.counts.users + 1
    assert third.counts.rejected["missing id"] == 1
    assert [entry.name for entry in third.quarantine] == ["quarantine/part-00002-g2.parquet"]
    assert third.generation == 2
    assert prepare(config.model_copy(update={"extend": False})) == third


def test_held_out_users_stay_held_out(cluster, tmp_path):
    write(tmp_path / "log", "day1.csv", lines(range(60), range(20), 900, seed=1))
    split = StrongGeneralizationSplit(valid_users=10, test_users=10)
    config = config_of(tmp_path, "p", split=split, extend=True)
    prepare(config)
    before, _ = histories(config)
    write(tmp_path / "log", "day2.csv", lines(range(80), range(25), 300, seed=2))
    manifest = prepare(config)
    after, _ = histories(config)
    assert {user: after[user]["subset"] for user in before} == {
        user: row["subset"] for user, row in before.items()
    }
    counts = manifest.counts
    assert counts.read == counts.kept + sum(counts.rejected.values()) == 1200
    vocabulary = Dataset.open(config.prepared).vocabulary
    trained = [row for row in after.values() if row["subset"] == 0]
    assert vocabulary.num_users == len(trained) == counts.training_users
    assert vocabulary.train_count_IL.sum() == sum(len(row["items"]) for row in trained)


def test_a_log_without_times_goes_on_in_its_own_order(cluster, tmp_path):
    columns = Columns(user="who", item="what")
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "1.csv").write_text("who,what\na,z\na,y\nb,x\n")
    source = CsvSource(path=str(tmp_path / "log"), columns=columns)
    config = config_of(
        tmp_path, "p", source=source, ratings=RatingsConfig(), split=NoSplit(), extend=True
    )
    prepare(config)
    (tmp_path / "log" / "2.csv").write_text("who,what\na,w\na,z\nc,v\n")
    prepare(config)
    found, _ = histories(config)
    assert found["a"]["items"] == ["y", "w", "z"]  # the last z counts
    assert found["a"]["times"] == [0, 0, 0]


INEXACT = [
    (CleaningConfig(min_user_items=2), EntrywiseSplit(), "min_user_items = 2: dropped"),
    (CleaningConfig(min_item_users=3), EntrywiseSplit(), "min_item_users = 3: dropped"),
    (CleaningConfig(duplicates="mean"), EntrywiseSplit(), "'mean' needs every rating"),
    (CleaningConfig(keep_above=3.5), EntrywiseSplit(), "keep_above = 3.5: dropped ratings"),
    (CleaningConfig(), LiangSplit(), "'liang_2018' depends on the whole log"),
    (CleaningConfig(), EntrywiseSplit(exact=True), "'entrywise' depends on the whole log"),
    (CleaningConfig(), GlobalTimeSplit(), "set valid_from and test_from"),
]


@pytest.mark.parametrize(("cleaning", "split", "reason"), INEXACT)
def test_what_cannot_be_extended_exactly_is_refused_at_once(tmp_path, cleaning, split, reason):
    write(tmp_path / "log", "day1.csv", ["u1,i1,5,7"])
    rounding = RatingsConfig(levels=STARS.levels, rounding="nearest")
    settings = {"cleaning": cleaning, "split": split, "ratings": rounding, "extend": True}
    with pytest.raises(ConfigError, match=reason):
        preflight(config_of(tmp_path, "p", **settings))


def test_another_preparation_or_a_changed_file_is_not_extended(cluster, tmp_path):
    write(tmp_path / "log", "day1.csv", lines(range(40), range(30), 60, seed=1))
    config = config_of(tmp_path, "p", extend=True)
    prepare(config)
    write(tmp_path / "log", "day1.csv", lines(range(40), range(30), 61, seed=3))
    other = config.model_copy(update={"max_damaged_share": 0.2})
    with pytest.raises(DataError) as found:
        prepare(other)
    for reason in ("max_damaged_share differs", "day1.csv has changed"):
        assert reason in str(found.value)


@pytest.mark.parametrize("policy", ["last", "first", "max", "keep"])
def test_doubles_over_several_files_are_settled_as_at_once(cluster, tmp_path, policy):
    cleaning = CleaningConfig(duplicates=policy)
    grown = config_of(tmp_path, "grown", cleaning=cleaning, extend=True)
    for day in (1, 2, 3):
        write(tmp_path / "log", f"day{day}.csv", lines(range(20), range(10), 100, seed=day))
        counts = prepare(grown).counts
    at_once = config_of(tmp_path, "at_once", cleaning=cleaning)
    assert prepare(at_once).counts == counts
    assert histories(grown)[0] == histories(at_once)[0]


def test_a_failed_extension_leaves_no_damaged_rows_of_its_own(cluster, tmp_path):
    write(tmp_path / "log", "day1.csv", ["u1,i1,5,7", "u2,i1,5,7"])
    config = config_of(tmp_path, "p", extend=True)
    prepare(config)
    write(tmp_path / "log", "day2.csv", ["u3,i1,9,7"])
    with pytest.raises(DataError, match="1 of 1 rows are damaged"):
        prepare(config)
    write(tmp_path / "log", "day2.csv", ["u3,i1,4,7"])
    assert prepare(config).quarantine == ()
    assert not list((tmp_path / "p" / "quarantine").glob("*"))
    write(tmp_path / "log", "day3.csv", [])
    manifest = prepare(config)
    assert manifest.counts.users == 3
    assert any(name.endswith("day3.csv") for name in manifest.recipe["files"])
    assert prepare(config) == manifest


def test_without_times_a_file_cannot_come_before_known_ones(cluster, tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "2.csv").write_text("who,what\na,z\n")
    source = CsvSource(path=str(tmp_path / "log"), columns=Columns(user="who", item="what"))
    config = config_of(
        tmp_path, "p", source=source, ratings=RatingsConfig(), split=NoSplit(), extend=True
    )
    prepare(config)
    (tmp_path / "log" / "1.csv").write_text("who,what\na,y\n")
    with pytest.raises(DataError, match=r"1\.csv comes before known files"):
        prepare(config)
