import hashlib
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from distrib.config import load, sealed
from distrib.data.config import CleaningConfig, DataConfig
from distrib.data.dataset import Dataset
from distrib.data.feeds.loader import load_training_data
from distrib.data.logs import text
from distrib.data.logs.config import Columns, CsvSource, MatrixSource, ParquetSource, SyntheticLog
from distrib.data.logs.rating_scale import RatingsConfig
from distrib.data.prepare.job import prepare
from distrib.data.schema import Role, Subset
from distrib.data.splits.rules import (
    EntrywiseSplit,
    GivenSplit,
    GlobalTimeSplit,
    LeaveLastSplit,
    LiangSplit,
    NoSplit,
    StrongGeneralizationSplit,
)
from distrib.errors import DataError
from distrib.run_file import RunFile
from distrib.storage import Folder
from tests.forked_workers import running

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parent.parent.parent
STARS = RatingsConfig(levels=(1.0, 2.0, 3.0, 4.0, 5.0))
COLUMNS = Columns(user="who", item="what", rating="stars", time="when")


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def history_arrays(folder):
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
    vocabulary = Dataset.open(config.prepared).vocabulary
    assert vocabulary.ids.to_pylist() == ["x", "y", "z"]
    found = {row["user"]: row for row in history_arrays(tmp_path / "p")}
    rated = dict(zip(found["a"]["items"], found["a"]["ratings"], strict=True))
    assert rated == {1: 4.0, 2: 1.0, 0: 5.0}
    assert found["a"]["items"][2] == 0  # the others are of one time, in any order
    assert manifest.counts.tied == 2
    assert found["b"]["times"] == [30, 40]
    assert manifest.counts.users == 2
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
        assert prepare(config).counts.rejected == {"duplicate": 2}
        found.append(history_arrays(tmp_path / name))
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
    with pytest.raises(DataError, match="no rows left"):
        prepare(
            config.model_copy(
                update={
                    "cleaning": CleaningConfig(keep_above=2.0, min_user_items=50),
                    "prepared": str(tmp_path / "q"),
                }
            )
        )
    counts = prepare(config).counts
    assert counts.read == 104
    assert counts.kept == 2
    assert counts.rejected == {
        "missing id": 1,
        "rating outside scale": 1,
        "not above threshold": 40,
        "user too short": 60,
    }
    assert counts.read == counts.kept + sum(counts.rejected.values())


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
        split=StrongGeneralizationSplit(valid_users=10, test_users=10),
    )
    manifest = prepare(config)
    rows = history_arrays(tmp_path / "p")
    vocabulary = Dataset.open(config.prepared).vocabulary
    training = [row for row in rows if row["subset"] == Subset.TRAIN]
    assert len(training) == vocabulary.num_users == 20
    assert manifest.counts.rejected == {"item unseen in training": 20}
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
    for row in history_arrays(tmp_path / "p"):
        for item, rating, role in zip(row["items"], row["ratings"], row["roles"], strict=True):
            total[role] += 1
            counts[item, int(rating) - 1] += role == Role.INPUT
    np.testing.assert_array_equal(Dataset.open(config.prepared).vocabulary.train_count_IL, counts)
    named = manifest.counts.interactions_by_role
    assert named == {role.name.lower(): total[role] for role in Role if total[role]}


REAL = {  # as in the README: rows, users, items
    "ml100k_conv4rec": (100_000, 943, 1_682),
    "ml1m_conv4rec": (1_000_209, 6_040, 3_706),
    "ml_latest_small_mult_vae": (100_836, 610, 9_724),
    "coat_conv4rec": (6_960 + 4_640, 290, 300),
    "diginetica_mult_vae": (467_631, 62_502, 43_229),
    "lastfm_mult_vae": (92_834, 1_892, 17_632),
}


@pytest.mark.parametrize("name", sorted(REAL))
def test_every_real_log_has_its_published_size(cluster, real_data, tmp_path, name):
    environment = {"DISTRIB_DATA": str(real_data)}
    file = load(RunFile, ROOT / f"configs/{name}.toml", environment=environment)
    config = file.data.model_copy(
        update={"prepared": str(tmp_path / "all"), "split": NoSplit(), "cleaning": CleaningConfig()}
    )
    if file.data.split.name == "given":
        config = config.model_copy(update={"split": file.data.split})
    counts = prepare(config).counts
    assert (counts.kept, counts.users, counts.items) == REAL[name]
    assert counts.rejected == {}
    own = prepare(file.data.model_copy(update={"prepared": str(tmp_path / "own")})).counts
    assert own.read == counts.read == own.kept + sum(own.rejected.values())


def test_coat_keeps_the_files_apart(cluster, real_data, tmp_path):
    source = MatrixSource(path=str(real_data / "coat/train.ascii"))
    split = GivenSplit(test=str(real_data / "coat/test.ascii"))
    config = DataConfig(
        prepared=str(tmp_path / "keep"), source=source, ratings=STARS, split=split, num_shards=2
    )
    counts = prepare(config).counts
    assert counts.interactions_by_role == {"input": 6_960, "test_target": 4_640}
    drops = {"prepared": str(tmp_path / "drop"), "split": GivenSplit(test=split.test, known="drop")}
    counts = prepare(config.model_copy(update=drops)).counts
    assert counts.rejected == {"already known": 366}
    assert counts.interactions_by_role == {"input": 6_960, "test_target": 4_640 - 366}


SPLITS = [
    EntrywiseSplit(),
    EntrywiseSplit(train_share=0.6, valid_share=0.2, exact=True),
    StrongGeneralizationSplit(valid_users=30, test_users=30),
    LiangSplit(valid_users=30, test_users=30),
    LeaveLastSplit(),
    GlobalTimeSplit(),
]


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split.name)
def test_nothing_held_out_is_in_what_training_reads(cluster, tmp_path, split):
    """Training rows, counts of the vocabulary, and histories of items."""
    source = SyntheticLog(num_users=300, num_items=60, num_interactions=5_000)
    config = DataConfig(
        prepared=str(tmp_path / "p"), source=source, split=split, item_histories=True, num_shards=3
    )
    manifest = prepare(config)
    folder = Folder(config.prepared)
    trained, held_out = set(), set()
    for shard in manifest.shards:
        for place, row in enumerate(Dataset.open(folder).table(shard).to_pylist()):
            number = shard.shard + 3 * place
            for item, rating, role in zip(row["items"], row["ratings"], row["roles"], strict=True):
                is_trained = row["subset"] == Subset.TRAIN and role <= Role.TRAIN_TARGET
                (trained if is_trained else held_out).add((number, item, rating))
    assert held_out
    assert not trained & held_out
    rows = ray.get(load_training_data(folder, "resident").refs[0])
    users = np.repeat(rows.number_B, np.diff(rows.pointer_P)).tolist()
    read = set(zip(users, rows.item_N.tolist(), rows.value_N.tolist(), strict=True))
    assert read == trained
    vocabulary = Dataset.open(folder).vocabulary
    counted = Counter((item, rating) for _, item, rating in trained)
    for item, counts in enumerate(vocabulary.train_count_IL.tolist()):
        assert counts == [counted[item, level] for level in vocabulary.levels]
    assert vocabulary.num_users == len({number for number, _, _ in trained})
    by_item = set()
    for entry in manifest.item_histories:
        for place, row in enumerate(Dataset.open(folder).table(entry).to_pylist()):
            cells = zip(row["users"], row["ratings"], row["roles"], row["subsets"], strict=True)
            by_item |= {
                (user, entry.first_item + place, rating)
                for user, rating, role, subset in cells
                if subset == Subset.TRAIN and role <= Role.TRAIN_TARGET
            }
    assert by_item == trained


def test_histories_of_items_are_those_of_users_turned_round(cluster, tmp_path):
    source = SyntheticLog(num_users=500, num_items=40, num_interactions=6_000)
    config = DataConfig(
        prepared=str(tmp_path / "p"), source=source, item_histories=True, num_shards=4
    )
    manifest = prepare(config)
    folder, ids = Folder(config.prepared), Dataset.open(config.prepared).vocabulary.ids.to_pylist()
    from_users, from_items = set(), set()
    for shard in manifest.shards:
        for place, row in enumerate(Dataset.open(folder).table(shard).to_pylist()):
            number = shard.shard + 4 * place
            cells = zip(row["items"], row["ratings"], row["times"], row["roles"], strict=True)
            from_users |= {(number, ids[item], *rest) for item, *rest in cells}
    names = []
    for entry in manifest.item_histories:
        for row in Dataset.open(folder).table(entry).to_pylist():
            names.append(row["item"])
            assert row["times"] == sorted(row["times"])
            cells = zip(row["users"], row["ratings"], row["times"], row["roles"], strict=True)
            from_items |= {(user, row["item"], *rest) for user, *rest in cells}
    assert names == ids
    assert from_items == from_users
    assert len(manifest.item_histories) > 1


def apart(config, cpus, kills):
    script = str(ROOT / "tests/data/prepare_apart.py"), config.model_dump_json()
    # It looks for what to kill among the processes below its own.
    command = [sys.executable, *script] if kills else running(*script)
    return subprocess.Popen(
        [*command, str(cpus), str(kills)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.long
def test_bytes_depend_neither_on_cpus_nor_on_lost_workers(forked_workers, tmp_path):
    source = SyntheticLog(num_users=20_000, num_items=300, num_interactions=600_000)
    found = {}

    def begin(cpus, kills):
        folder = str(tmp_path / str(cpus))
        config = DataConfig(prepared=folder, source=source, item_histories=True, num_shards=4)
        return apart(config, cpus, kills), kills

    for runs in ({1: 0, 4: 0}, {2: 3}):  # what is killed alone, so that it takes its time
        begun = {cpus: begin(cpus, kills) for cpus, kills in runs.items()}
        for cpus, (process, kills) in begun.items():
            output, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-2000:]
            killed = json.loads(next(x for x in output.splitlines() if x.startswith(b"[")))
            assert len(killed) == kills
            found[cpus] = digests(tmp_path / str(cpus))
    assert found[1] == found[2] == found[4]


@pytest.mark.long
def test_a_killed_job_leaves_nothing_that_looks_finished(cluster, tmp_path):
    source = SyntheticLog(num_users=20_000, num_items=300, num_interactions=600_000)
    config = DataConfig(prepared=str(tmp_path / "p"), source=source, num_shards=4)
    process = apart(config, 2, 0)
    while not (tmp_path / "p" / "histories").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    (tmp_path / "p" / "histories" / "part-00099.parquet").write_text("of another attempt")
    with pytest.raises(DataError, match="nothing complete is prepared there"):
        Dataset.open(config.prepared)
    prepare(config)
    whole = config.model_copy(update={"prepared": str(tmp_path / "q")})
    prepare(whole)
    assert digests(tmp_path / "p") == digests(tmp_path / "q")


def test_a_folder_of_someone_else_is_not_written_into(cluster, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "thesis.txt").write_text("years of work")
    config = DataConfig(
        prepared=str(tmp_path / "p"), source=csv(tmp_path, ["a,x,5,1"]), ratings=STARS
    )
    with pytest.raises(DataError, match=r"did not write \(thesis\.txt\)"):
        prepare(config)


def test_damaged_rows_beyond_the_first_range_have_the_line_of_the_file(
    cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr(text, "RANGE_BYTES", 4_000)
    lines = [f"u{n % 50},i{n},{n % 5 + 1},{n}" for n in range(2_000)]
    for line in (3, 700, 1_999):
        lines[line] = f"u,i,9,{line}"
    config = DataConfig(
        prepared=str(tmp_path / "p"), source=csv(tmp_path, lines), ratings=STARS, split=NoSplit()
    )
    manifest = prepare(config)
    assert len(manifest.quarantine) == 3
    found = pq.read_table(tmp_path / "p" / "quarantine").sort_by("line").to_pylist()
    assert [(row["line"], row["text"]) for row in found] == [
        (line + 2, f"u,i,9,{line}") for line in (3, 700, 1_999)
    ]
    assert {row["reason"] for row in found} == {"rating outside scale"}
    assert manifest.counts.rejected == {"rating outside scale": 3}


def test_a_core_is_reached_over_all_shards_and_each_reason_is_counted(cluster, tmp_path):
    lines = [f"u{u},i{i},5,1" for u in range(6) for i in range(6)]
    lines += [f"u{u},rare{u},5,1" for u in range(6)] + [f"short,i{i},5,1" for i in range(4)]
    cleaning = CleaningConfig(min_user_items=5, min_item_users=3)
    config = DataConfig(
        prepared=str(tmp_path / "p"),
        source=csv(tmp_path, lines),
        ratings=STARS,
        cleaning=cleaning,
        split=NoSplit(),
    )
    counts = prepare(config).counts
    assert (counts.users, counts.items, counts.kept) == (6, 6, 36)
    assert counts.rejected == {"item too rare": 6, "user too short": 4}
    # Once: the items of `short` count 7 users, and only then does it go.
    once = cleaning.model_copy(update={"min_item_users": 7, "iterate_kcore": False})
    settings = {"cleaning": once, "prepared": str(tmp_path / "q")}
    with pytest.raises(DataError, match=r"'user too short': 28, 'item too rare': 18"):
        prepare(config.model_copy(update=settings))


def test_one_user_with_a_million_interactions(cluster, tmp_path):
    columns = {"who": np.zeros(1_000_000, np.int64), "what": np.arange(1_000_000)}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    source = ParquetSource(
        path=str(tmp_path / "log.parquet"), columns=Columns(user="who", item="what")
    )
    counts = prepare(DataConfig(prepared=str(tmp_path / "p"), source=source)).counts
    assert (counts.users, counts.kept) == (1, 1_000_000)


def test_times_in_another_unit_are_warned_of(cluster, tmp_path, capfd):
    source = csv(tmp_path, ["a,x,5,1600000000123"])
    config = DataConfig(prepared=str(tmp_path / "p"), source=source, ratings=STARS, split=NoSplit())
    prepare(config)
    warned = [line for line in capfd.readouterr().err.splitlines() if "suspect_time_unit" in line]
    assert json.loads(warned[0])["likely"] == "ms"
    assert len(warned) == 1


def test_parquet_rows_without_a_time_are_kept_as_the_oldest(cluster, tmp_path):
    table = {"who": [1, 1], "what": [7, 8], "stars": [5.0, 4.0], "when": [9, None]}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    source = ParquetSource(path=str(tmp_path / "log.parquet"), columns=COLUMNS)
    prepare(DataConfig(prepared=str(tmp_path / "p"), source=source, ratings=STARS, split=NoSplit()))
    assert [(row["items"], row["times"]) for row in history_arrays(tmp_path / "p")] == [
        ([1, 0], [0, 9])
    ]


def test_the_manifest_is_json_without_a_clock(cluster, tmp_path):
    config = DataConfig(
        prepared=str(tmp_path / "p"),
        source=csv(tmp_path, ["a,x,5,1"]),
        ratings=STARS,
        split=NoSplit(),
    )
    manifest = prepare(config)
    document = json.loads((tmp_path / "p" / "manifest.json").read_text())
    assert document == sealed(manifest.to_json())
    assert "time" not in manifest.to_json()


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
    shard = prepare(config).shards[0]
    path = tmp_path / "p" / shard.name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="content differs from the manifest"):
        Dataset.open(config.prepared).table(shard)


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
    cleaning = CleaningConfig(min_user_items=100)
    counts = prepare(config.model_copy(update={"cleaning": cleaning})).counts
    assert (counts.users, counts.kept, counts.rejected) == (50, 5000, {})


def test_a_header_alone_is_an_empty_log(cluster, tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("who,what,stars,when")
    source = CsvSource(path=str(path), columns=COLUMNS)
    with pytest.raises(DataError, match="no rows left of 0"):
        prepare(DataConfig(prepared=str(tmp_path / "p"), source=source, ratings=STARS))
