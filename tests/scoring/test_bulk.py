"""Bulk scoring on a cluster: each user exactly once, also after failures."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distrib.checkpoint.bundle import BUNDLE
from distrib.config import checked
from distrib.data.config import DataConfig
from distrib.data.dataset import Dataset
from distrib.data.prepare.job import prepare
from distrib.errors import CheckpointError, ConfigError, DataError
from distrib.scoring.bulk.job import _FragmentActor, plan_scoring, preflight, score
from distrib.scoring.commit import SUCCESS, Success
from distrib.scoring.export import export
from distrib.scoring.policy import PolicyConfig, ScoreConfig
from distrib.scoring.scorer import Scorer
from distrib.scoring.tables import recommend_table
from distrib.scoring.vectors import ExactIndex, ExportConfig
from distrib.storage import Folder
from tests.world import data_of, write_log, write_model

ROOT = Path(__file__).parent.parent.parent


def scored(world, output, **more):
    run, data = world
    return score(run, data.prepared, ScoreConfig(**{"k": 5, "output": str(output)} | more))


def lists(output):
    folder = Folder(str(output))
    return pa.concat_tables(folder.read_parquet(name) for name in folder.files(".parquet"))


def digests(output):
    paths = sorted(Path(output).glob("part-*.parquet"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def calm(world, tmp_path_factory):
    """What one undisturbed start wrote."""
    output = tmp_path_factory.mktemp("calm") / "out"
    return output, scored(world, output)


def test_everyone_is_scored_and_the_books_balance(world, calm):
    run, data = world
    output, result = calm
    counts = result.counts
    assert counts.users == counts.users_read == 200
    assert counts.users_rejected == {}
    success = json.loads((output / SUCCESS).read_text())
    bundle = Folder(run).read_json(f"{BUNDLE}/manifest.json")
    assert success["recipe"]["bundle"] == bundle["files"]
    assert success["recipe"]["vocabulary"] == bundle["vocabulary"]
    assert {e["name"]: e["sha256"] for e in success["files"]} == digests(output)
    assert sorted(path.name for path in output.iterdir()) == [SUCCESS, *digests(output)]
    direct, _ = recommend_table(
        Scorer.from_bundle(Folder(run) / BUNDLE),
        pq.read_table(f"{data.prepared}/histories"),
        Dataset.open(data.prepared).vocabulary,
        ScoreConfig(k=5),
    )
    found = lists(output).sort_by("user")
    assert found["items"].to_pylist() == direct.sort_by("user")["items"].to_pylist()


def test_a_second_start_goes_on_with_what_is_not_there(world, calm, tmp_path, capsys):
    run, data = world
    output, _ = calm
    # State left by an interrupted run: one part complete, one truncated, one missing.
    config = ScoreConfig(k=5, output=str(tmp_path / "torn"))
    publication = plan_scoring(run, data.prepared, config).publication
    kept, half, _ = Success.model_validate_json((output / SUCCESS).read_text()).files
    for entry, content in ((kept, (output / kept.name).read_bytes()), (half, b"half of a par")):
        publication.work.write(entry.name.replace(f"-{publication._tag}", ""), content)
    name = kept.name.replace(f"-{publication._tag}", "")
    publication.note(kept.model_copy(update={"name": name}))
    capsys.readouterr()
    result = scored(world, tmp_path / "torn")
    reported = [
        json.loads(line) for line in capsys.readouterr().err.splitlines() if "resumed" in line
    ]
    assert [event["left"] for event in reported] == [2]
    assert digests(tmp_path / "torn") == digests(output)
    assert result.counts.users == 200


@pytest.mark.parametrize("form", ["nested", "long"])
@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_lists_are_a_table_as_they_are_files(world, tmp_path, catalog, kind, form):
    named = {} if kind == "delta" else {"catalog": "shop", "name": "web.lists"}
    table = checked(ScoreConfig, {"table": {"format": kind, **named}}, where="here").table
    form = {"layout": form} | ({"outputs": ("score", "embedding")} if form == "nested" else {})
    files = tmp_path / "files"
    scored(world, files, **form)
    for _ in range(2):
        assert scored(world, tmp_path / "table", table=table, **form).counts.users == 200
    if kind == "delta":
        found = pytest.importorskip("deltalake").DeltaTable(str(tmp_path / "table"))
        assert found.version() == 0
        rows = found.to_pyarrow_table()
    else:
        rows = catalog.load_table("web.lists").scan().to_arrow()
    order = [(name, "ascending") for name in ("user", "rank") if name in rows.column_names]
    plain = lists(files).sort_by(order)
    names = [name for name in plain.column_names if name != "history_digest"]  # signed there
    assert rows.select(names).sort_by(order).to_pylist() == plain.select(names).to_pylist()
    later = scored(
        world, tmp_path / "later", incremental_from=str(tmp_path / "table"), table=None, **form
    )
    assert later.counts.users_unchanged == 200


def test_a_start_that_fails_leaves_last_nights_lists(world, calm, tmp_path):
    output = tmp_path / "lists"
    shutil.copytree(calm[0], output)
    (tmp_path / "new").mkdir()
    good = {"user": [1], "items": [[1]], "ratings": [[1.0]]}
    pq.write_table(pa.table(good), tmp_path / "new" / "a.parquet")
    pq.write_table(pa.table({**good, "items": [1]}), tmp_path / "new" / "b.parquet")
    for more, message in (
        ({"outputs": ("deviation",)}, "predicts .*, but not deviation"),
        (
            {"histories": str(tmp_path / "new")},
            r"new/b.parquet: column 'items' is int64, not a list",
        ),
        ({"histories": str(tmp_path / "new" / "a.parquet")}, "is a file; set score.histories"),
    ):
        with pytest.raises(DataError, match=message):
            scored(world, output, **more)
    with pytest.raises(ConfigError, match="is the output folder"):
        scored(world, output, incremental_from=str(output))
    scored(world, tmp_path / "later", incremental_from=str(output))
    with pytest.raises(ConfigError, match="is the output folder, or builds on it"):
        scored(world, output, incremental_from=str(tmp_path / "later"))
    assert digests(output) == digests(calm[0])


def test_files_in_folders_are_scored_and_repeated_starts_change_nothing(world, tmp_path):
    for place, user in (("a.parquet", 1), ("date=1/b.parquet", 2), ("_old/c.parquet", 3)):
        path = tmp_path / "in" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"user": [user], "items": [[1]], "ratings": [[1.0]]}), path)
    scored(world, tmp_path / "out", histories=str(tmp_path / "in"))
    assert lists(tmp_path / "out")["user"].to_pylist() == [1, 2]


def test_actors_refuse_a_bundle_that_was_written_since(world, tmp_path):
    _, data = world
    run = write_model(tmp_path / "run", data)
    config = ScoreConfig(k=5, output=str(tmp_path / "out"))
    work = plan_scoring(run, data.prepared, config)
    write_model(tmp_path / "run", data, seed=4)
    with pytest.raises(CheckpointError, match="changed since scoring was planned"):
        _FragmentActor(work, config, None)


def test_only_users_who_changed_are_scored_again(world, calm, tmp_path):
    run, data = world
    first, _ = calm
    log = Path(data.source.path)
    grown = tmp_path / "log"
    grown.mkdir()
    (grown / "0.csv").write_bytes((log / "0.csv").read_bytes())
    later = data_of(tmp_path / "later", grown)
    prepare(later)
    with (grown / "1.csv").open("w") as file:
        file.write("user,item,rating,time\n7,59,5,900000\n7,58,1,900001\n500,3,4,900002\n")
    prepare(later.model_copy(update={"extend": True}))
    result = scored(
        world, tmp_path / "second", histories=later.prepared, incremental_from=str(first)
    )
    assert set(lists(tmp_path / "second")["user"].to_pylist()) == {7, 500}
    assert result.counts.users_unchanged == 199
    with pytest.raises(DataError, match="was scored with another policy"):
        preflight(run, data.prepared, ScoreConfig(k=4, incremental_from=str(first)))
    with pytest.raises(DataError, match="not a complete scoring run"):
        preflight(run, data.prepared, ScoreConfig(k=5, incremental_from=str(tmp_path / "none")))


def test_raw_events_are_prepared_and_scored(world, tmp_path):
    write_log(tmp_path / "new.csv", range(1000, 1040), seed=5)
    events = data_of(tmp_path / "events", tmp_path / "new.csv")
    result = scored(world, tmp_path / "out", events=events)
    assert result.counts.users == 40
    assert set(lists(tmp_path / "out")["user"].to_pylist()) == set(range(1000, 1040))
    with pytest.raises(ConfigError, match=r"score.events.split = 'entrywise'"):
        scored(world, tmp_path / "o", events=DataConfig(prepared="x", split={"name": "entrywise"}))


def test_vectors_of_everyone_and_everything_are_exported(world, tmp_path):
    run, data = world
    config = ExportConfig(output=str(tmp_path / "vectors"))
    result = export(run, data.prepared, config, ScoreConfig())
    assert result.users.users == 200
    assert result.items == len(Dataset.open(data.prepared).vocabulary)
    users = lists(tmp_path / "vectors" / "users").sort_by("user")
    vectors = np.array(users["embedding"].to_pylist(), dtype=np.float32)
    _, position = ExactIndex(Folder(str(tmp_path / "vectors"))).search(vectors, 4)
    everything = ScoreConfig(k=4, policy=PolicyConfig(exclude_seen=False))
    direct, _ = recommend_table(
        Scorer.from_bundle(Folder(run) / BUNDLE),
        pq.read_table(f"{data.prepared}/histories"),
        Dataset.open(data.prepared).vocabulary,
        everything,
    )
    ids = Dataset.open(data.prepared).vocabulary.ids.to_numpy()
    assert ids[position].tolist() == direct.sort_by("user")["items"].to_pylist()


def test_a_changed_file_of_a_policy_makes_another_recipe(world, tmp_path):
    run, data = world
    deny = tmp_path / "deny.txt"
    config = ScoreConfig(policy=PolicyConfig(deny=str(deny)))
    found = []
    for content in ("1\n2\n", "3\n4\n5\n"):
        deny.write_text(content)
        found.append(plan_scoring(run, data.prepared, config).recipe)
    assert found[0] != found[1]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_at_twenty_moments_it_ends_with_the_undisturbed_bytes(world, tmp_path):
    """The job is a process with a Ray of its own; SIGKILL comes at 20 random moments."""
    run, data = world
    (tmp_path / "run.toml").write_text(
        f'run = "{run}"\n[data]\nprepared = "{data.prepared}"\nsplit = {{ name = "none" }}\n'
        '[model]\nname = "conv4rec"\n[score]\nk = 5\nfragment_users = 1\nbatch_users = 1\n'
    )
    histories = tmp_path / "many"
    histories.mkdir()
    rng = np.random.default_rng(1)
    for part in range(40):
        rows = [rng.choice(60, 6, False).tolist() for _ in range(50)]
        table = {"user": [f"{part}-{n}" for n in range(50)], "items": rows}
        table["ratings"] = rng.integers(1, 6, (50, 6)).astype(float).tolist()
        pq.write_table(pa.table(table), histories / f"{part:02d}.parquet")

    def start(output):
        places = [f'score.output="{output}"', f'score.histories="{histories}"']
        arguments = [part for place in places for part in ("--set", place)]
        return subprocess.Popen(
            [sys.executable, "jobs/score.py", "--config", str(tmp_path / "run.toml"), *arguments],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    assert start(tmp_path / "calm").wait() == 0
    kills = 0
    while kills < 20:
        process = start(tmp_path / "torn")
        began = tmp_path / "torn"
        while not list(began.glob("_work-*/receipts")) and process.poll() is None:
            time.sleep(0.05)
        time.sleep(rng.uniform(0.0, 0.6))
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        assert not (tmp_path / "torn" / SUCCESS).exists()
    assert start(tmp_path / "torn").wait() == 0
    assert digests(tmp_path / "torn") == digests(tmp_path / "calm")
    assert not list((tmp_path / "torn").glob(".*"))
    users = lists(tmp_path / "torn")["user"].to_pylist()
    assert len(users) == len(set(users)) == 2000
    assert kills == 20
