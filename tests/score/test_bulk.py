"""Bulk scoring on a cluster: everyone once, whatever happens."""

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
from distrib.data.config import DataConfig
from distrib.data.prepare import prepare
from distrib.data.prepared import load_vocabulary
from distrib.errors import ConfigError, DataError
from distrib.score.bulk import SUCCESS, plan, preflight, score
from distrib.score.export import export
from distrib.score.lists import recommend_table
from distrib.score.policy import PolicyConfig, ScoreConfig
from distrib.score.scorer import Scorer
from distrib.score.vectors import ExactIndex, ExportConfig
from distrib.storage import Folder
from tests.world import data_of, write_log

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
    counts = result["counts"]
    assert counts["users"] == counts["users_read"] == 200
    assert counts["users_rejected"] == {}
    success = json.loads((output / SUCCESS).read_text())
    bundle = Folder(run).read_json(f"{BUNDLE}/manifest.json")
    assert success["recipe"]["bundle"] == bundle["files"]
    assert success["recipe"]["vocabulary"] == bundle["vocabulary"]
    assert {e["name"]: e["sha256"] for e in success["files"]} == digests(output)
    assert sorted(path.name for path in output.iterdir()) == [SUCCESS, *digests(output)]
    direct, _ = recommend_table(
        Scorer.from_bundle(Folder(run) / BUNDLE),
        pq.read_table(f"{data.prepared}/histories"),
        load_vocabulary(Folder(data.prepared)),
        ScoreConfig(k=5),
    )
    found = lists(output).sort_by("user")
    assert found["items"].to_pylist() == direct.sort_by("user")["items"].to_pylist()


def test_a_second_start_goes_on_with_what_is_not_there(world, calm, tmp_path, capsys):
    output, _ = calm
    torn = tmp_path / "torn"
    shutil.copytree(output, torn)
    # As a start leaves it that died in the middle: one part is done, one torn, one not there.
    success = json.loads((torn / SUCCESS).read_text())
    (torn / SUCCESS).unlink()
    recipe = json.dumps(success["recipe"], sort_keys=True).encode()
    digest = hashlib.sha256(recipe).hexdigest()
    (torn / "_begun.json").write_text(json.dumps({"recipe": digest, "parts": 3}))
    (torn / "_receipts").mkdir()
    kept, half, absent = success["files"]
    count = len(pq.read_table(torn / kept["name"]))
    receipt = {**kept, "recipe": digest, "interactions": {}, "empty": {}, "rejected": {}}
    receipt["users"] = {"read": count, "scored": count, "unchanged": 0}
    (torn / "_receipts" / "part-00000.json").write_text(json.dumps(receipt))
    (torn / half["name"]).write_bytes(b"half of a par")
    (torn / absent["name"]).unlink()
    stamp = (torn / kept["name"]).stat().st_mtime_ns
    capsys.readouterr()
    result = scored(world, torn)
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines() if "resumed" in line]
    assert [event["left"] for event in told] == [2]
    assert digests(torn) == digests(output)
    assert (torn / kept["name"]).stat().st_mtime_ns == stamp
    assert result["counts"]["users"] == 200


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
    result = scored(world, tmp_path / "second", histories=later.prepared, since=str(first))
    assert set(lists(tmp_path / "second")["user"].to_pylist()) == {7, 500}
    assert result["counts"]["users_unchanged"] == 199
    with pytest.raises(DataError, match="was scored with another policy"):
        preflight(run, data.prepared, ScoreConfig(k=4, since=str(first)))
    with pytest.raises(DataError, match="nothing complete was scored"):
        preflight(run, data.prepared, ScoreConfig(k=5, since=str(tmp_path / "none")))


def test_raw_events_are_prepared_and_scored(world, tmp_path):
    write_log(tmp_path / "new.csv", range(1000, 1040), seed=5)
    events = data_of(tmp_path / "events", tmp_path / "new.csv")
    result = scored(world, tmp_path / "out", events=events)
    assert result["counts"]["users"] == 40
    assert set(lists(tmp_path / "out")["user"].to_pylist()) == set(range(1000, 1040))
    with pytest.raises(ConfigError, match=r"score.events.split = 'entrywise'"):
        scored(world, tmp_path / "o", events=DataConfig(prepared="x", split={"name": "entrywise"}))


def test_vectors_of_everyone_and_everything_are_exported(world, tmp_path):
    run, data = world
    config = ExportConfig(output=str(tmp_path / "vectors"))
    result = export(run, data.prepared, config, ScoreConfig())
    assert result["users"]["users"] == 200
    assert result["items"] == len(load_vocabulary(Folder(data.prepared)))
    users = lists(tmp_path / "vectors" / "users").sort_by("user")
    vectors = np.array(users["embedding"].to_pylist(), dtype=np.float32)
    _, position = ExactIndex(Folder(str(tmp_path / "vectors"))).search(vectors, 4)
    everything = ScoreConfig(k=4, policy=PolicyConfig(exclude_seen=False))
    direct, _ = recommend_table(
        Scorer.from_bundle(Folder(run) / BUNDLE),
        pq.read_table(f"{data.prepared}/histories"),
        load_vocabulary(Folder(data.prepared)),
        everything,
    )
    ids = load_vocabulary(Folder(data.prepared)).ids.to_numpy()
    assert ids[position].tolist() == direct.sort_by("user")["items"].to_pylist()


def test_a_changed_file_of_a_policy_makes_another_recipe(world, tmp_path):
    run, data = world
    deny = tmp_path / "deny.txt"
    config = ScoreConfig(policy=PolicyConfig(deny=str(deny)))
    found = []
    for content in ("1\n2\n", "3\n4\n5\n"):
        deny.write_text(content)
        found.append(plan(run, data.prepared, config).digest)
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
        began = tmp_path / "torn" / "_receipts"
        while not began.exists() and process.poll() is None:
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
    users = lists(tmp_path / "torn")["user"].to_pylist()
    assert len(users) == len(set(users)) == 2000
    assert kills == 20
