"""Lists committed to Delta Lake and Iceberg tables: one commit a run, exactly once."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distrib.config import unsealed
from distrib.errors import DataError
from distrib.scoring.commit import PartManifest, Publication, add_counts
from distrib.scoring.forget import forget_lists
from distrib.storage import Folder
from tests.scoring.test_fragments import Fuse, Stopped

delta = pytest.importorskip("deltalake")
SqlCatalog = pytest.importorskip("pyiceberg.catalog.sql").SqlCatalog


@pytest.fixture(params=["delta", "iceberg"])
def table(request, catalog):
    """The setting of a run file, and readers of the table's rows and of its commits."""
    if request.param == "delta":
        setting = {"format": "delta"}
        opened = lambda at: delta.DeltaTable(str(at))  # noqa: E731
        rows = lambda at: opened(at).to_pyarrow_table()  # noqa: E731
        commits = lambda at: [c.get("distrib.recipe") for c in opened(at).history()]  # noqa: E731
        return setting, rows, commits
    setting = {"format": "iceberg", "catalog": "shop", "name": "web.lists"}
    opened = lambda _: catalog.load_table("web.lists")  # noqa: E731

    def commits(at):
        snapshots = opened(at).metadata.snapshots
        found = [s.summary.additional_properties.get("distrib.recipe") for s in snapshots]
        return list(dict.fromkeys(found))[::-1]

    return setting, lambda at: opened(at).scan().to_arrow(), commits


def published(target, setting, day, users=range(4)):
    """Stage two parts and publish them."""
    recipe = {"of": day} | ({"table": setting} if setting else {})
    publication = Publication(target, recipe)
    publication.require_ours()
    if publication.already():
        return publication
    parts = []
    for number in (0, 1):
        own = [f"user {n}" for n in users if n % 2 == number]
        lists = [[f"item {day}", "item x"]] * len(own)
        rows = pa.table({"user": pa.array(own, pa.string()), "items": pa.array(lists)})
        content = publication.work.write_parquet(f"part-{number}.parquet", rows)
        users_read = {"read": len(own), "scored": len(own)}
        part = PartManifest(
            name=f"part-{number}.parquet",
            bytes=len(content),
            sha256="",
            users=users_read,
            rejected={},
        )
        publication.note(part)
        parts.append(part)
    publication.publish(parts, add_counts(parts))
    return publication


def users_of(rows):
    return sorted(rows["user"].to_pylist())


def test_each_run_is_one_version_and_earlier_ones_stay_readable(table, tmp_path):
    setting, rows, commits = table
    target = Folder(str(tmp_path / "lists"))
    published(target, setting, "monday")
    assert users_of(rows(tmp_path / "lists")) == [f"user {n}" for n in range(4)]
    published(target, setting, "tuesday", range(6))
    published(target, setting, "tuesday", range(6))
    found = rows(tmp_path / "lists")
    assert len(found) == 6
    assert {items[0] for items in found["items"].to_pylist()} == {"item tuesday"}
    assert len(commits(tmp_path / "lists")) == 2
    published(target, setting, "monday")  # back to the lists of before
    assert len(rows(tmp_path / "lists")) == 4
    assert len(commits(tmp_path / "lists")) in {2, 3}  # iceberg's are listed by recipe
    if setting["format"] == "delta":
        earlier = delta.DeltaTable(str(tmp_path / "lists"), version=1).to_pyarrow_table()
        assert len(earlier) == 6


def test_the_commit_holds_the_receipt(table, tmp_path):
    setting, _, _ = table
    publication = published(Folder(str(tmp_path / "lists")), setting, "monday")
    notes = publication.table.last_commit(publication.target)
    receipt = json.loads(notes["distrib.receipt"])
    assert receipt["counts"]["users"] == 4
    assert receipt == unsealed(publication.target.read_json("_SUCCESS"), "")


def test_stopped_anywhere_and_started_again_there_is_one_commit(table, tmp_path, monkeypatch):
    setting, rows, commits = table
    fuse, moment, ended = Fuse(), 0, False
    for name in ("write", "move", "remove"):
        monkeypatch.setattr(Folder, name, fuse.around(getattr(Folder, name)))
    kind = type(Publication(Folder(str(tmp_path)), {"table": setting}).table)
    monkeypatch.setattr(kind, "commit", fuse.around(kind.commit))
    while not ended:
        moment, fuse.left = moment + 1, 0
        at = tmp_path / f"lists-{moment}"
        if setting["format"] == "iceberg":
            setting = {**setting, "name": f"web.lists_{moment}"}
        published(Folder(str(at)), setting, "monday")
        fuse.left = moment
        try:
            published(Folder(str(at)), setting, "tuesday", range(5))
            ended = True
        except Stopped:
            fuse.left = 0
            published(Folder(str(at)), setting, "tuesday", range(5))
        if setting["format"] == "delta":
            assert len(rows(at)) == 5, moment
            assert len(commits(at)) == 2, moment
        assert not [name for name in Folder(str(at)).folders() if name.startswith("_work")]
        assert len(Folder(str(at)).read_json("_SUCCESS")["files"]) == 2
    assert moment >= 10


def test_of_two_commits_at_once_one_is_refused(table, tmp_path, monkeypatch):
    setting, rows, _ = table
    target = Folder(str(tmp_path / "lists"))
    published(target, setting, "monday")
    kind = type(Publication(target, {"table": setting}).table)
    owner, name = {
        "delta": (kind, "_opened"),
        "iceberg": (SqlCatalog, "create_table_if_not_exists"),
    }[setting["format"]]
    opened, commit = getattr(owner, name), kind.commit

    def between(*given, **settings):
        found = opened(*given, **settings)
        monkeypatch.setattr(owner, name, opened)
        published(target, setting, "wednesday", range(3))
        return found

    def commit_late(*given):
        monkeypatch.setattr(owner, name, between)
        monkeypatch.setattr(kind, "commit", commit)
        commit(*given)

    monkeypatch.setattr(kind, "commit", commit_late)
    with pytest.raises(DataError, match="start again"):
        published(target, setting, "tuesday")
    assert len(rows(tmp_path / "lists")) == 3
    published(target, setting, "tuesday")
    assert len(rows(tmp_path / "lists")) == 4


def test_a_change_by_others_is_no_reason_to_publish_twice(tmp_path):
    target = Folder(str(tmp_path))
    published(target, {"format": "delta"}, "monday")
    delta.DeltaTable(str(tmp_path)).delete("user = 'user 1'")
    published(target, {"format": "delta"}, "monday")
    assert len(delta.DeltaTable(str(tmp_path)).to_pyarrow_table()) == 3


def test_tables_of_others_are_refused(table, tmp_path, catalog):
    setting, rows, _ = table
    target = Folder(str(tmp_path / "lists"))
    foreign = pa.table({"dt": ["a", "b"], "order": [1, 2]})
    if setting["format"] == "delta":
        delta.write_deltalake(target.url, foreign, partition_by=["dt"])
    else:
        catalog.create_table("web.lists", schema=foreign.schema).append(foreign)
    with pytest.raises(DataError, match="table that scoring did not write"):
        published(target, setting, "monday")
    assert sorted(rows(tmp_path / "lists")["order"].to_pylist()) == [1, 2]


def test_a_namespace_that_is_not_there_is_refused_before_any_work(tmp_path, catalog):
    for name in ("nowhere.lists", "lists"):
        setting = {"format": "iceberg", "catalog": "shop", "name": name}
        with pytest.raises(DataError, match="has no namespace"):
            Publication(Folder(str(tmp_path / "x")), {"table": setting}).require_ours()


def test_no_one_is_removed_from_a_table_that_others_have_changed(tmp_path):
    target = Folder(str(tmp_path))
    published(target, {"format": "delta"}, "monday")
    delta.DeltaTable(target.url).delete("user = 'user 0'")
    before = sorted(path.name for path in tmp_path.glob("*.parquet"))
    with pytest.raises(DataError, match="others have changed the table"):
        forget_lists(target, ["user 1"])
    assert sorted(path.name for path in tmp_path.glob("*.parquet")) == before
    assert len(delta.DeltaTable(target.url).to_pyarrow_table()) == 3


def test_a_folder_keeps_its_kind(table, tmp_path):
    setting, _, _ = table
    target = Folder(str(tmp_path / "lists"))
    published(target, setting, "monday")
    with pytest.raises(DataError, match="these would be plain Parquet"):
        published(target, None, "tuesday")
    other = Folder(str(tmp_path / "plain"))
    published(other, None, "monday")
    with pytest.raises(DataError, match="the lists there are plain Parquet"):
        published(other, setting, "tuesday")


def test_a_person_is_removed_from_all_versions(table, tmp_path):
    setting, rows, _ = table
    target = Folder(str(tmp_path / "lists"))
    published(target, setting, "monday")
    published(target, setting, "tuesday")
    assert forget_lists(target, ["user 1"]) == (1, 1, 1)
    assert users_of(rows(tmp_path / "lists")) == ["user 0", "user 2", "user 3"]
    held = pq.read_table([str(path) for path in (tmp_path / "lists").glob("*.parquet")])
    assert users_of(held) == ["user 0", "user 2", "user 3"]
    assert target.read_json("_SUCCESS")["counts"]["users"] == 3
    published(target, setting, "tuesday")
    assert len(rows(tmp_path / "lists")) == 3
    published(target, setting, "wednesday")
    assert len(rows(tmp_path / "lists")) == 4
