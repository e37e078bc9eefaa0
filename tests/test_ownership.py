"""Nothing is removed that is not ours, and no name in a file leads outside of its folder."""

import json

import pyarrow as pa
import pytest

from distrib.checkpoint.bundle import BundleFacts, write_bundle
from distrib.checkpoint.manifest import read_manifest
from distrib.checkpoint.store import CHECKPOINTS, CheckpointStore, checkpoint_name
from distrib.config import read_record
from distrib.data.dataset import ShardEntry
from distrib.data.prepare.parts import BEGUN, begin, finish, remove_parts
from distrib.errors import CheckpointError, DataError, TakenOverError
from distrib.fence import take_over
from distrib.models import ElsaConfig, PopularityConfig
from distrib.nightly import NIGHTLY_RUNS, NightlyRun, _nightly_runs
from distrib.scoring.commit import SUCCESS, PartManifest, Publication, ScoreCounts, success_of
from distrib.scoring.export import export
from distrib.scoring.policy import ScoreConfig
from distrib.scoring.vectors import ExportConfig, write_items
from distrib.storage import Folder
from distrib.training import best_bundle
from tests.in_process import vocabulary_of

OUTSIDE = [
    "../victim",
    "/victim",
    "a/../../victim",
    "..",
    ".",
    "",
    "a//b",
    "a\\b",
    "a\0b",
    "s3://b/x",
]


def changed(content):
    """Copies of a JSON document, each with another value in one place."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from ({**content, key: other} for other in changed(value))
            yield {**{k: v for k, v in content.items() if k != key}, f"{key}_": value}
    elif isinstance(content, list):
        for place, value in enumerate(content):
            yield from (
                [*content[:place], other, *content[place + 1 :]] for other in changed(value)
            )
        yield [*content, 1]
    else:
        yield f"{content} "
        yield None if content is not None else 0


def test_any_change_of_a_manifest_shows(tmp_path, small):
    folder = Folder(str(tmp_path / "lists"))
    publication = Publication(folder, {"k": 5, "policy": {"deny": [1, 2]}})
    content = publication.work.write_parquet("part-0.parquet", pa.table({"user": [1]}))
    part = PartManifest(
        name="part-0.parquet", bytes=len(content), sha256="a", users={"read": 1}, rejected={}
    )
    publication.publish([part], ScoreCounts(users_read=1, users=1, users_rejected={}))
    bundle = Folder(str(tmp_path / "bundle"))
    write_bundle(bundle, {}, PopularityConfig(), vocabulary_of(small), BundleFacts(data="d"))
    for place, name, read, error in (
        (folder, SUCCESS, success_of, DataError),
        (bundle, "manifest.json", read_manifest, CheckpointError),
    ):
        document = place.read_json(name)
        others = [other for other in changed(document) if "digest" in other]
        assert len(others) > 25
        for other in others:
            place.write_json(name, other)
            with pytest.raises(error, match="differs from its digest"):
                read(place)
        place.write_json(name, document)
        read(place)


def files_below(path):
    return sorted(str(found.relative_to(path)) for found in path.rglob("*") if found.is_file())


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_in_state_files_are_plain_and_inside(tmp_path, name):
    part = {"name": name, "bytes": 1, "sha256": "", "users": {}, "rejected": {}}
    shard = {**part, "shard": 0, "users": 0, "interactions": 0, "unseen_items": 0, "roles": {}}
    for kind, content in (
        (PartManifest, part), (ShardEntry, {**shard, "subsets": {}}), (NightlyRun, {"name": name}),
    ):  # fmt: skip
        with pytest.raises(DataError, match="is not the name of a file inside its folder"):
            read_record(kind, content, "x.json")
    (tmp_path / NIGHTLY_RUNS).write_text(json.dumps([{"name": name, "is_done": True}]))
    with pytest.raises(DataError, match=NIGHTLY_RUNS):
        _nightly_runs(Folder(str(tmp_path)))
    target = tmp_path / "lists"
    publication = Publication(Folder(str(target)), {"a": 1})
    publication.begin()
    publication.work.write_json("moving.json", {"replaces": [name]})
    (tmp_path / "victim").write_text("mine")
    with pytest.raises(DataError, match=r"moving\.json"):
        publication.publish([], None)
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize("name", ["../victim", "/victim"])
def test_a_checkpoint_writes_nothing_outside(tmp_path, name):
    store = CheckpointStore(Folder(str(tmp_path / "run")))
    place = tmp_path / "run" / CHECKPOINTS / checkpoint_name(1, "ab")
    place.mkdir(parents=True)
    part = {"world_size": 1, "files": {name: {"bytes": 0, "sha256": ""}}}
    (place / "_rank00000.json").write_text(json.dumps(part))
    (tmp_path / "victim").write_text("mine")
    assert store.complete() == []
    with pytest.raises(CheckpointError, match="absent or damaged"):
        store.fetch(checkpoint_name(1, "ab"), tmp_path / "run" / "local")
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize("content", [[], 5, None, {"world_size": 10**9, "files": {}}, {"files": 1}])
def test_state_of_another_shape_is_an_incomplete_checkpoint(tmp_path, content):
    place = tmp_path / CHECKPOINTS / checkpoint_name(1, "ab")
    place.mkdir(parents=True)
    (place / "_rank00000.json").write_text(json.dumps(content))
    assert CheckpointStore(Folder(str(tmp_path))).complete() == []


def test_pruning_leaves_the_folders_of_other_programs(tmp_path):
    store = CheckpointStore(Folder(str(tmp_path)))
    foreign = ["lightning-v1", "step-999-final", "step-0000000001", "step-0000000001-a b"]
    for name in [*foreign, checkpoint_name(1, "ab"), checkpoint_name(2, "ab")]:
        (tmp_path / CHECKPOINTS / name).mkdir(parents=True)
        (tmp_path / CHECKPOINTS / name / "weights").write_text("mine")
    (tmp_path / "file").write_text("x")
    store.write(checkpoint_name(3, "cd"), [tmp_path / "file"], rank=0, world_size=1)
    store.prune(1, "cd")
    left = sorted(found.name for found in (tmp_path / CHECKPOINTS).iterdir())
    assert left == sorted([*foreign, checkpoint_name(3, "cd")])


def test_old_best_epochs_go_and_the_folders_of_others_stay(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(best_bundle, "write_bundle", lambda folder, *_: written.append(folder.url))
    for name in ("a", "b", "c", "d", "epoch-000001", "epoch-000002", "epoch-000003"):
        (tmp_path / "best" / name).mkdir(parents=True)
        (tmp_path / "best" / name / "x").write_text("mine")

    class Run:
        run, model = str(tmp_path), None

        class train:
            class checkpoint:
                keep = 1

    class About:
        epoch, valid = 3, {}

        def model_copy(self, update):
            return update

    best_bundle.write_best(Run, None, {}, About(), About())
    assert written == [f"{tmp_path}/best/epoch-000003"]
    left = sorted(found.name for found in (tmp_path / "best").iterdir())
    assert left == ["a", "b", "c", "d", "epoch-000002", "epoch-000003"]


def test_what_an_interrupted_prepare_left_goes_and_nothing_else(tmp_path):
    ours = ["histories/part-00000.parquet", "quarantine/part-00001-g2.parquet", "items-g3.parquet"]
    foreign = ["quarantine/notes.txt", "histories/deep/part-00000.parquet", "README",
               "histories/part-00000.parquet.bak", "items.csv"]  # fmt: skip
    for name in [*ours, *foreign, "histories/part-00007.parquet"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    remove_parts(Folder(str(tmp_path)), {"histories/part-00007.parquet"})
    assert files_below(tmp_path) == sorted([*foreign, "histories/part-00007.parquet"])


def test_a_prepare_that_a_later_start_has_overtaken_publishes_nothing(tmp_path):
    folder = Folder(str(tmp_path))
    first, second = begin(folder), begin(folder)

    class Manifest:
        file_names = frozenset[str]()

        def to_json(self):
            return {"by": "second"}

    with pytest.raises(TakenOverError, match="a later start of this job has taken it over"):
        finish(folder, first, Manifest())
    assert files_below(tmp_path) == [BEGUN]
    finish(folder, second, Manifest())
    assert files_below(tmp_path) == ["manifest.json"]
    with pytest.raises(TakenOverError, match="or has finished"):
        finish(folder, first, Manifest())


def test_an_export_that_a_later_start_has_overtaken_writes_nothing(tmp_path, small, monkeypatch):
    run, vectors = Folder(str(tmp_path / "run")), Folder(str(tmp_path / "run/vectors"))
    vocabulary, config = vocabulary_of(small), ElsaConfig()
    weights = dict(config.build(vocabulary.catalog).state_dict())
    write_bundle(run / "bundle", weights, config, vocabulary, BundleFacts(data="d"))
    settings = ExportConfig(users=False, index="exact"), ScoreConfig()

    def overtaken(bundle, target, *rest):
        take_over(vectors, "_begun.json")
        return write_items(bundle, target, *rest)

    with monkeypatch.context() as patch:
        patch.setattr("distrib.scoring.export.write_items", overtaken)
        with pytest.raises(TakenOverError):
            export(run.url, "none", *settings)
    assert vectors.files() == ["_begun.json"]
    assert export(run.url, "none", *settings).items == len(vocabulary)
    assert vectors.files() == ["items.parquet", "manifest.json"]
