"""A person is removed: from which files, what is as if they had never come, what is left to do."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distrib.config import load
from distrib.data.dataset import Dataset
from distrib.data.export import convert
from distrib.data.prepare.forget import forget as forget_prepared
from distrib.data.prepare.job import prepare
from distrib.distill.job import soften
from distrib.errors import ConfigError, DataError
from distrib.evaluation.job import evaluate
from distrib.forget import _ids, forget, preflight
from distrib.models import EaseConfig, ItemKnnConfig, PopularityConfig
from distrib.nightly import nightly
from distrib.run_file import RunFile
from distrib.scoring.bulk.job import score
from distrib.scoring.commit import PartManifest, Publication, add_counts
from distrib.scoring.export import export
from distrib.scoring.forget import forget_lists
from distrib.storage import Folder
from distrib.training.config import TrainConfig, TrainingRun
from distrib.training.preflight.checks import preflight as check_training
from distrib.training.workers.launch import launch
from tests.data.test_crashes import content
from tests.run_files import AFTER_TRAINING, TINY_MODEL
from tests.scoring.test_fragments import Fuse, Stopped

PERSON, NAMESAKE = "anna.k@example.org", "anna.k@example.org2"
TEXT = (
    """
run = "{folder}/run"
[data]
prepared = "{folder}/data"
split = {{ {split} }}
num_shards = 3
item_histories = true
max_damaged_share = 0.5
[data.source]
format = "csv"
path = "{folder}/log"
columns = {{ user = "who", item = "what", rating = "stars", time = "when" }}
[data.ratings]
levels = [1, 2, 3, 4, 5]
"""
    + TINY_MODEL
    + """
[train]
num_epochs = 1
batch_users = 32
num_workers = 1
[score]
k = 3
new_users = "fold_in"
"""
    + AFTER_TRAINING
)

SPLITS = {
    "entrywise": 'name = "entrywise"',
    "by user": 'name = "strong_generalization", valid_users = 9, test_users = 9',
    "none": 'name = "none"',
}


def write_log(folder, *, with_person=True):
    rng = random.Random(0)
    people = [PERSON, NAMESAKE, *(f"p{n}" for n in range(60))]
    lines = ["who,what,stars,when"]
    for who in people:
        for item in rng.sample(range(20), 9):
            line = f"{who},item-{item},{rng.randint(1, 5)},{rng.randint(1, 10**6)}"
            if with_person or who != PERSON:
                lines.append(line)
        if who in (PERSON, NAMESAKE):
            lines.append(
                f"{who},item-3,many,5" if with_person or who != PERSON else "gone,x,many,5"
            )
    folder.mkdir(exist_ok=True)
    (folder / "log.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def file(tmp_path):
    return file_of(tmp_path, "entrywise")


def file_of(folder, split, *, with_person=True):
    folder.mkdir(exist_ok=True)
    write_log(folder / "log", with_person=with_person)
    (folder / "people.txt").write_text(f"{PERSON}\n\nno one of this name\n")
    (folder / "run.toml").write_text(TEXT.format(folder=folder, split=SPLITS[split]))
    return load(RunFile, folder / "run.toml")


def texts(folder):
    """What all files of a folder say, by name."""
    found = {}
    for path in folder.rglob("*"):
        if path.suffix == ".parquet":
            found[str(path)] = str(pq.read_table(path).to_pylist())
        if path.is_file():
            found.setdefault(str(path), "")
            found[str(path)] += path.read_bytes().decode("latin-1")
    return found


def naming(folder, who):
    """Files in which an id stands, not as a part of another one."""
    return [
        name
        for name, text in texts(folder).items()
        if who in text.replace(NAMESAKE, "" if who == PERSON else NAMESAKE)
    ]


def test_nobody_finds_a_forgotten_person_in_any_file(cluster, file, tmp_path):
    prepare(file.data)
    launch(file.training())
    evaluate(file.run, file.data.prepared, file.evaluate)
    soften(file.run, file.data.prepared, file.soften)
    before = score(file.run, file.data.prepared, file.score).counts
    export(file.run, file.data.prepared, file.export, file.score)
    old = Dataset.open(file.data.prepared).manifest
    places = ("data/histories", "data/quarantine", "run/recommendations", "run/vectors")
    places += ("run/evaluation_by_user", "run/soft_labels")
    for place in places:
        assert naming(tmp_path / place, PERSON), place
    receipt = forget(file)
    assert naming(tmp_path / "data", PERSON) == []
    assert naming(tmp_path / "run", PERSON) == []
    for place in places:
        assert bool(naming(tmp_path / place, NAMESAKE)) == ("quarantine" not in place), place
    assert (receipt.users_requested, receipt.users_found) == (2, 1)
    assert receipt.retrain == (file.run,)
    assert receipt.remake == (f"{file.run}/soft_labels",)
    assert {place.holds: (place.users, place.rows) for place in receipt.removed} == {
        "histories": (1, 9), "lists": (1, 1), "evaluation": (1, 1), "soft labels": (1, 1),
    }  # fmt: skip
    assert receipt.removed[0].quarantined == 2

    # The accounts balance, and a second time there is nothing to remove.
    manifest = Dataset.open(file.data.prepared).manifest
    counts = manifest.counts
    assert counts.read == old.counts.read == counts.kept + sum(counts.rejected.values())
    assert counts.rejected["user removed"] == 9
    assert manifest.forgets == (old.hash,)
    after = Folder(f"{file.run}/recommendations").read_json("_SUCCESS")["counts"]
    assert (before.users, after["users"], after["users_read"]) == (62, 61, 61)
    assert not any(place.users for place in forget(file).removed)

    # The old model still scores everyone else; nothing may start from it.
    prepare(file.data)
    assert score(file.run, file.data.prepared, file.score).counts.users == 61
    assert naming(tmp_path / "run", PERSON) == []
    later = file.training().model_copy(
        update={
            "run": f"{tmp_path}/later",
            "train": file.train.model_copy(update={"warm_start": file.run}),
        }
    )
    with pytest.raises(ConfigError, match="people who have since been removed"):
        check_training(later)


@pytest.mark.parametrize("split", SPLITS)
def test_what_is_left_equals_what_was_prepared_without_the_person(cluster, tmp_path, split):
    both = [file_of(tmp_path / name, split, with_person=name == "with") for name in ("with", "not")]
    for file in both:
        prepare(file.data)
    gone = forget_prepared(Folder(both[0].data.prepared), [PERSON])
    assert gone[:3] == (1, 9, 2)
    ours, fresh = (Dataset.open(file.data.prepared).manifest for file in both)
    assert ours.hash == fresh.hash
    assert [shard.sha256 for shard in ours.shards] == [shard.sha256 for shard in fresh.shards]
    items = [[part.sha256 for part in found.item_histories] for found in (ours, fresh)]
    assert items[0] == items[1]
    assert ours.vocabulary.sha256 == fresh.vocabulary.sha256
    same = {"kept", "users", "items", "training_users", "interactions_by_role", "users_by_subset"}
    assert ours.counts.model_dump(include=same) == fresh.counts.model_dump(include=same)


@pytest.mark.parametrize("model", [PopularityConfig(), EaseConfig(), ItemKnnConfig()], ids=repr)
def test_a_model_of_counts_equals_one_that_never_saw_the_person(cluster, tmp_path, model):
    both = [
        file_of(tmp_path / name, "none", with_person=name == "with") for name in ("with", "not")
    ]
    for file in both:
        prepare(file.data)
    forget_prepared(Folder(both[0].data.prepared), [PERSON])
    weights = []
    for file in both:
        run = TrainingRun(
            run=file.run,
            prepared=file.data.prepared,
            seed=0,
            model=model,
            objective=model.spec.objective,
            optimizer=file.optimizer,
            engine=file.engine,
            train=TrainConfig(),
            evaluate=file.evaluate,
        )
        launch(run)
        weights.append(Folder(file.run).read("bundle/model.safetensors"))
    assert weights[0] == weights[1]


def test_the_only_user_of_an_item_and_of_a_shard_can_be_forgotten(cluster, tmp_path):
    file = file_of(tmp_path, "none")
    (tmp_path / "log/log.csv").write_text(f"who,what,stars,when\n{PERSON},alone,5,1\nq,b,3,2\n")
    prepare(file.data)
    forget_prepared(Folder(file.data.prepared), [PERSON])
    dataset = Dataset.open(file.data.prepared)
    assert dataset.vocabulary.train_count_IL.sum(1).tolist() == [0, 1]
    assert [shard.users for shard in dataset.manifest.shards] == [1]
    model = file.training().model_copy(update={"model": EaseConfig()})
    launch(model.model_copy(update={"objective": EaseConfig().spec.objective}))
    assert score(file.run, file.data.prepared, file.score).counts.users == 1


def test_a_night_after_does_not_start_from_the_nights_before(cluster, tmp_path, capfd):
    file = file_of(tmp_path, "none")
    file = file.model_copy(update={"data": file.data.model_copy(update={"extend": True})})
    nightly(file, "one")
    receipt = forget(file)
    assert receipt.retrain == (file.run, f"{file.run}/nights/one")
    assert naming(tmp_path / "run", PERSON) == []
    assert nightly(file, "two").new
    assert '"event": "not_warm_started"' in capfd.readouterr().err
    assert Folder(file.run).read_json("nights/two/run.json")["loop"]["warm_start"] is None
    assert forget(file).retrain == (f"{file.run}/nights/one",)
    write_day = "who,what,stars,when\np3,item-1,4,2000000\np99,item-2,4,2000000\n"
    (tmp_path / "log/more.csv").write_text(write_day)
    assert nightly(file, "three").new
    assert Folder(file.run).read_json("nights/three/run.json")["loop"]["warm_start"]
    counts = Dataset.open(file.data.prepared).manifest.counts
    assert (counts.users, counts.rejected["user removed"]) == (62, 9)


def test_numbers_are_forgotten_by_their_digits(cluster, tmp_path):
    file_of(tmp_path, "none")
    file = load(RunFile, tmp_path / "run.toml", overrides=['data.source.ids = "int"'])
    lines = [f"{n % 7},{n % 11},{n % 5 + 1},{n}" for n in range(40)]
    (tmp_path / "log/log.csv").write_text("\n".join(["who,what,stars,when", *lines]))
    prepare(file.data)
    (tmp_path / "people.txt").write_text("3\nanna\n")
    with pytest.raises(DataError, match="1 of 2 ids are no integers"):
        preflight(file)
    (tmp_path / "people.txt").write_text("003\n5.0\n99\n")
    assert forget(file).users_found == 2
    assert Dataset.open(file.data.prepared).manifest.counts.users == 5


def test_a_log_without_the_person_can_be_extended_afterwards(cluster, tmp_path):
    file = file_of(tmp_path, "none")
    data = file.data.model_copy(update={"extend": True})
    prepare(data)
    write_log(tmp_path / "log", with_person=False)
    forget(file)
    assert prepare(data).generation == 1
    (tmp_path / "log/more.csv").write_text("who,what,stars,when\np99,item-2,4,2000000\n")
    counts = prepare(data).counts
    assert (counts.users, counts.rejected["user removed"]) == (62, 9)


def test_a_person_of_damaged_rows_alone_was_in_no_model(cluster, file):
    prepare(file.data)
    before = Dataset.open(file.data.prepared).manifest
    gone = forget_prepared(Folder(file.data.prepared), ["unknown"])
    after = Dataset.open(file.data.prepared).manifest
    assert gone[:3] == (0, 0, 2)
    assert (after.hash, after.forgets) == (before.hash, ())
    assert naming(file_folder(file) / "data/quarantine", PERSON) == []
    assert forget_prepared(Folder(file.data.prepared), ["unknown"]) == (0, 0, 0, 0)


def file_folder(file):
    return Path(file.data.prepared).parent


def test_not_everyone_can_be_forgotten(cluster, file, tmp_path):
    prepare(file.data)
    (tmp_path / "people.txt").write_text(
        "\n".join([PERSON, NAMESAKE, *(f"p{n}" for n in range(60))])
    )
    with pytest.raises(DataError, match="no user would be left; remove the folder instead"):
        forget(file)
    assert Dataset.open(file.data.prepared).manifest.counts.users == 62


def test_an_id_is_its_line_as_it_stands(tmp_path):
    file = file_of(tmp_path, "none")
    (tmp_path / "people.txt").write_bytes("x\u2028y\r\n spaces \n\n \nx\u2028y".encode())
    assert _ids(file.forget.users) == ["x\u2028y", " spaces "]


def test_nothing_is_removed_before_all_is_checked(cluster, file, tmp_path):
    prepare(file.data)
    lists = file.forget.model_copy(update={"lists": (f"{tmp_path}/none",)})
    with pytest.raises(DataError, match="holds no published lists"):
        forget(file.model_copy(update={"forget": lists}))
    torn = Folder(file.run) / "recommendations/_work-1"
    torn.write_json("moving.json", {"replaces": []})
    with pytest.raises(DataError, match="was stopped while it published; start it again first"):
        forget(file)
    assert Dataset.open(file.data.prepared).manifest.counts.users == 62


def test_clear_errors(tmp_path):
    file = file_of(tmp_path, "none")
    with pytest.raises(DataError, match="nothing complete is prepared"):
        preflight(file)
    (tmp_path / "people.txt").write_text("\n")
    with pytest.raises(ConfigError, match="names no one"):
        preflight(file)
    (tmp_path / "people.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is not UTF-8"):
        preflight(file)
    unset = file.model_copy(update={"forget": type(file.forget)()})
    with pytest.raises(ConfigError, match=r"forget\.users is not set"):
        preflight(unset)


def publish(target, ids):
    """Lists in two parts; the second half of the users has an empty one."""
    publication = Publication(target, {"of": "a test"})
    parts = []
    for number, some in enumerate(np.array_split(ids, 2)):
        lists = [[1, 2], []] * len(some)
        table = pa.table({"user": pa.array(some), "items": pa.array(lists[: len(some)])})
        content = publication.work.write_parquet(f"part-{number}.parquet", table)
        parts.append(
            PartManifest(
                name=f"part-{number}.parquet",
                bytes=len(content),
                sha256="",
                users={"read": len(some), "scored": len(some)},
                rejected={},
                empty={"items": len(some) // 2},
            )
        )
    publication.publish(parts, add_counts(parts))


@pytest.mark.parametrize("ids", [np.arange(10), np.array([f"n{n}" for n in range(10)])])
def test_lists_lose_rows_and_their_manifest_follows(tmp_path, ids):
    target = Folder(str(tmp_path))
    publish(target, ids)
    staged = Publication(target, {"of": "an unfinished run"})
    staged.begin()
    gone = forget_lists(target, [str(ids[1]), str(ids[2]), str(ids[8]), "unknown"])
    assert gone == (3, 3, 2)
    counts = target.read_json("_SUCCESS")["counts"]
    assert (counts["users_read"], counts["users"]) == (7, 7)
    assert counts["users_with_empty_lists"] == {"items": 2}
    left = pq.read_table(tmp_path)["user"].to_pylist()
    assert left == [n for place, n in enumerate(ids.tolist()) if place not in {1, 2, 8}]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert forget_lists(target, [str(ids[1])]) == (0, 0, 0)
    assert forget_lists(target / "nothing", ["a"]) == (0, 0, 0)


def test_what_was_converted_is_named(cluster, file):
    prepare(file.data)
    convert(file.data, file.convert)
    assert forget(file).remake == (file.convert.output,)


@pytest.mark.parametrize("ids", [np.arange(10)])
def test_a_stopped_removal_from_lists_is_finished(tmp_path, ids, monkeypatch):
    calm, torn, fuse = Folder(str(tmp_path / "calm")), Folder(str(tmp_path / "torn")), Fuse()
    publish(calm, ids)
    forget_lists(calm, ["2", "8"])
    for name in ("write", "remove"):
        monkeypatch.setattr(Folder, name, fuse.around(getattr(Folder, name)))
    monkeypatch.setattr("distrib.scoring.forget._AT_ONCE", 1)
    moment, ended = 0, False
    while not ended:
        moment, fuse.left = moment + 1, 0
        torn.remove()
        publish(torn, ids)
        fuse.left = moment
        try:
            forget_lists(torn, ["2", "8"])
            ended = True
        except Stopped:
            fuse.left = 0
            forget_lists(torn, ["2", "8"])
        assert content(tmp_path / "torn") == content(tmp_path / "calm"), moment
    assert moment >= 8
