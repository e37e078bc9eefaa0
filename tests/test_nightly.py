"""Night after night on a log that grows."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distrib.checkpoint.bundle import load_bundle
from distrib.config import load
from distrib.data.dataset import RowCounts
from distrib.errors import ConfigError, TakenOverError
from distrib.fence import ATTEMPT
from distrib.nightly import NIGHTLY_RUNS, nightly, preflight
from distrib.run_file import RunFile
from distrib.scoring.commit import SUCCESS
from distrib.storage import Folder
from tests.run_files import TINY_MODEL

TEXT = (
    """
run = "{folder}/run"
[data]
prepared = "{folder}/data"
split = {{ name = "none" }}
extend = true
num_shards = 2
[data.source]
format = "parquet"
path = "{folder}/log/"
columns = {{ user = "u", item = "i", time = "t" }}
"""
    + TINY_MODEL
    + """
[train]
num_epochs = 1
batch_users = 32
[score]
k = 3
"""
)


def write_day(folder, day, users):
    rng = np.random.default_rng(day)
    count = 8 * len(users)
    (folder / "log").mkdir(exist_ok=True)
    columns = {
        "u": np.repeat(users, 8),
        "i": rng.integers(0, 20 + 5 * day, count),
        "t": np.arange(count) + 10_000 * day,
    }
    pq.write_table(pa.table(columns), folder / f"log/day-{day}.parquet")


@pytest.fixture
def file(tmp_path):
    folder = tmp_path
    (folder / "run.toml").write_text(TEXT.format(folder=folder))
    write_day(folder, 1, np.arange(40))
    return load(RunFile, folder / "run.toml")


def prepared_as(digest, held_out=0):
    """What a night needs of a manifest."""
    roles = {"input": 100, "valid_target": held_out, "test_target": 0}
    counts = RowCounts(
        read=100,
        kept=100,
        rejected={},
        users=10,
        items=10,
        training_users=10,
        interactions_by_role=roles,
        users_by_subset={"train": 10},
    )
    return SimpleNamespace(hash=digest, forgets=(), counts=counts)


def ledger(file):
    return Folder(file.run).read_json(NIGHTLY_RUNS)["runs"]


def published(file):
    return Folder(file.run).read_json(f"recommendations/{SUCCESS}")


def listed(file):
    """All items of all lists."""
    folder = Folder(f"{file.run}/recommendations")
    tables = [folder.read_parquet(n) for n in folder.data_files() if n.endswith(".parquet")]
    return pa.concat_tables(tables)["items"].combine_chunks().flatten().to_pylist()


@pytest.mark.ray
def test_nights_follow_each_other(cluster, file, monkeypatch, capfd):
    folder = Folder(file.run)
    preflight(file)
    first = nightly(file, "2026-01-01")
    assert first.new
    assert published(file)["counts"]["users"] == 40
    assert len(load_bundle(folder / "bundle").vocabulary) <= 25

    # Nothing came: nothing is done, however often.
    again = nightly(file, "2026-01-02")
    assert (again.night, again.new) == ("2026-01-01", False)
    assert [nightly_run["name"] for nightly_run in ledger(file)] == ["2026-01-01"]

    # A product is recalled: the lists follow, with the model that there is.
    recalled = listed(file)[0]
    deny = folder_of(file) / "deny.csv"
    deny.write_text(f"item\n{recalled}\n")
    text = f'score.policy={{deny="{deny}"}}'
    ruled = load(RunFile, folder_of(file) / "run.toml", overrides=(text,))
    follows = nightly(ruled, "2026-01-02")
    assert (follows.night, follows.new) == ("2026-01-01", False)
    assert recalled not in listed(file)
    assert published(file)["counts"]["users"] == 40

    # Something came, and the night is cut off between training and lists.
    write_day(folder_of(file), 2, np.arange(30, 60))
    before = folder.read("bundle/manifest.json")
    with monkeypatch.context() as patch:
        patch.setattr("distrib.nightly.score", cut_off)
        with pytest.raises(KeyboardInterrupt):
            nightly(file, "2026-01-02")
    assert folder.read("bundle/manifest.json") == before  # the last night's model goes on
    assert published(file)["counts"]["users"] == 40
    assert [nightly_run["is_done"] for nightly_run in ledger(file)] == [True, False]

    # The next day's job finishes it under its own name, from what is complete.
    second = nightly(file, "2026-01-03")
    assert second.night == "2026-01-02"
    assert published(file)["counts"]["users"] == 60
    assert folder.read("bundle/manifest.json") != before
    assert '"event": "warm_start"' in capfd.readouterr().err
    run = folder.read_json("nights/2026-01-02/run.json")
    assert run["loop"]["warm_start"].endswith("nights/2026-01-01")
    assert [nightly_run["is_done"] for nightly_run in ledger(file)] == [True, True]


def test_a_night_makes_its_soft_labels_itself(cluster, file, tmp_path):
    text = (tmp_path / "run.toml").read_text()
    text += """
[objective]
name = "soft_target"
label = { kind = "stored", path = "of each night" }
[soften]
nightly = true
num_clusters = 2
num_neighbors = 4
min_mass_on_target = 0.0
"""
    (tmp_path / "run.toml").write_text(text)
    file = load(RunFile, tmp_path / "run.toml")
    preflight(file)
    assert nightly(file, "one").new
    night = Path(file.run) / "nights/one"
    history = Folder(str(night)).read_json("history.json")
    assert history[-1]["losses"]["others"] > 0
    assert (night / "soft_labels" / SUCCESS).exists()
    assert load_bundle(Folder(str(night / "base/bundle"))).config == file.model
    write_day(tmp_path, 2, np.arange(30, 60))
    assert nightly(file, "two").new
    for run, start in (("two", "nights/one"), ("two/base", "nights/one/base")):
        started = Folder(file.run).read_json(f"nights/{run}/run.json")["loop"]["warm_start"]
        assert started.endswith(start)
    plain = load(RunFile, tmp_path / "run.toml", overrides=('objective={name="multinomial"}',))
    with pytest.raises(ConfigError, match="but the objective has no stored label"):
        preflight(plain)


def test_three_nights_are_kept_and_a_day_may_have_two(tmp_path, monkeypatch):
    """The ledger alone; what a night does is replaced by what it leaves."""
    (tmp_path / "run.toml").write_text(TEXT.format(folder=tmp_path))
    file = load(RunFile, tmp_path / "run.toml")
    hashes = iter("abcde")
    monkeypatch.setattr("distrib.nightly.prepare", lambda _: prepared_as(next(hashes)))
    monkeypatch.setattr("distrib.nightly.launch", lambda config: Folder(config.run).write("x", b""))
    monkeypatch.setattr("distrib.nightly.score", lambda *_: None)
    monkeypatch.setattr("distrib.nightly.copy_bundle", lambda *_: None)
    for day in (1, 2, 3, 4):
        assert nightly(file, f"2026-01-0{day}").new
    names = ["2026-01-02", "2026-01-03", "2026-01-04"]
    assert [nightly_run["name"] for nightly_run in ledger(file)] == names
    assert sorted(Folder(f"{file.run}/nights").folders()) == names
    assert nightly(file, "2026-01-04").night == "2026-01-04-1"
    assert ledger(file)[-1]["is_done"]


def test_a_night_that_was_cut_off_begins_anew_when_more_came(tmp_path, monkeypatch):
    (tmp_path / "run.toml").write_text(TEXT.format(folder=tmp_path))
    file = load(RunFile, tmp_path / "run.toml")
    hashes = iter("aab")
    trained = []

    def launch(config):
        trained.append(Folder(config.run).exists("begun"))
        Folder(config.run).write("begun", b"")
        if len(trained) < 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("distrib.nightly.prepare", lambda _: prepared_as(next(hashes)))
    monkeypatch.setattr("distrib.nightly.launch", launch)
    monkeypatch.setattr("distrib.nightly.score", lambda *_: None)
    monkeypatch.setattr("distrib.nightly.copy_bundle", lambda *_: None)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            nightly(file, "2026-01-01")
    assert nightly(file, "2026-01-02").night == "2026-01-01"
    assert trained == [False, True, False]  # it went on with the same data, not with other


def test_of_two_attempts_the_later_one_publishes(tmp_path, monkeypatch):
    (tmp_path / "run.toml").write_text(TEXT.format(folder=tmp_path))
    file = load(RunFile, tmp_path / "run.toml")
    published = []

    def another_begins(*_):
        Folder(file.run).write_json(ATTEMPT, {"token": "of another"})

    monkeypatch.setattr("distrib.nightly.prepare", lambda _: prepared_as("a"))
    monkeypatch.setattr("distrib.nightly.launch", lambda _: None)
    monkeypatch.setattr("distrib.nightly.score", another_begins)
    monkeypatch.setattr("distrib.nightly.copy_bundle", lambda *_: published.append(1))
    with pytest.raises(TakenOverError, match="a later start of this job has taken it over"):
        nightly(file, "2026-01-01")
    assert not published
    assert not ledger(file)[-1]["is_done"]


@pytest.mark.parametrize("held_out", [0, 12])
def test_a_night_says_what_its_split_holds_out(held_out, tmp_path, monkeypatch, capfd):
    (tmp_path / "run.toml").write_text(TEXT.format(folder=tmp_path))
    split = 'data.split={name = "entrywise"}'
    file = load(RunFile, tmp_path / "run.toml", overrides=[split] if held_out else [])
    monkeypatch.setattr("distrib.nightly.prepare", lambda _: prepared_as("a", held_out))
    monkeypatch.setattr("distrib.nightly.launch", cut_off)
    with pytest.raises(KeyboardInterrupt):
        nightly(file)
    said = '"split": "entrywise", "interactions": 12, "advice": "to train on all, set'
    assert (said in capfd.readouterr().err) == bool(held_out)


def cut_off(*_):
    raise KeyboardInterrupt


def folder_of(file):
    return Path(file.run).parent
