"""Exactly once: whatever is interrupted, the union is what one undisturbed start writes."""

import contextlib
import hashlib
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distrib.errors import DataError
from distrib.models.autoencoders.conv4rec import Conv4RecConfig
from distrib.scoring.bulk.fragments import (
    FragmentScorer,
    InputFile,
    Part,
    PreviousRun,
    fragments_of,
)
from distrib.scoring.commit import SUCCESS, PartManifest, Publication, ScoreCounts
from distrib.scoring.policy import ScoreConfig
from distrib.storage import Folder
from tests.scoring.test_scorer import histories, scorer_of

RECIPE = {"of": "tests"}
COUNTS = ScoreCounts(users_read=37, users=37, users_rejected={})
CONFIG = ScoreConfig(k=5, batch_users=4, fragment_users=10)


@pytest.fixture
def given(small, tmp_path):
    """37 users in two files, row groups of 5 in the one and of 7 in the other."""
    table = histories(small)
    (tmp_path / "in").mkdir()
    pq.write_table(table.slice(0, 20), tmp_path / "in" / "a.parquet", row_group_size=5)
    pq.write_table(table.slice(20), tmp_path / "in" / "b.parquet", row_group_size=7)
    pq.write_table(table.slice(0, 0), tmp_path / "in" / "c.parquet")
    return Folder(str(tmp_path / "in"))


def fragments(given):
    return fragments_of(given, [InputFile(name) for name in given.files()], CONFIG.fragment_users)


def maker(small, given, output, **more):
    scorer = scorer_of(small, Conv4RecConfig(latent_width=8, rating_width=4))
    return FragmentScorer(scorer, given, None, Publication(output, RECIPE), CONFIG, **more)


def published(small, given, output):
    """Do what a job does: go on with what is there, make the rest, publish."""
    publication, parts = Publication(output, RECIPE), fragments(given)
    publication.require_ours()
    if publication.published() is not None:
        return 0
    found = publication.finished({fragment.part for fragment in parts})
    publication.begin()
    scorer = maker(small, given, output)
    todo = [fragment for fragment in parts if fragment.part not in found]
    made = [scorer.write(fragment) for fragment in todo]
    parts_made = sorted([*found.values(), *made], key=lambda part: part.name)
    publication.publish(parts_made, COUNTS)
    return len(todo)


def digests(folder):
    names = folder.files(".parquet")
    return {name: hashlib.sha256(folder.read(name)).hexdigest() for name in names}


def test_fragments_cover_every_row_once_by_whole_row_groups(given):
    found = fragments(given)
    assert [f.num_rows for f in found] == [10, 10, 7, 10, 0]
    assert [f.first_row for f in found] == [0, 10, 0, 7, 0]
    assert [f.part for f in found] == [f"part-0000{n}.parquet" for n in range(5)]


def test_parts_hold_every_user_once_in_order(small, given, tmp_path):
    output = Folder(str(tmp_path / "out"))
    assert published(small, given, output) == 5
    tables = [output.read_parquet(name) for name in output.files(".parquet")]
    users = [user for table in tables for user in table["user"].to_pylist()]
    assert users == histories(small)["user"].to_pylist()
    entries = output.read_json(SUCCESS)["files"]
    assert sum(entry["users"]["scored"] for entry in entries) == 37
    assert {entry["name"]: entry["sha256"] for entry in entries} == digests(output)
    assert output.folders() == []


class Stopped(BaseException):
    """The process ends here."""


class Fuse:
    """Ends the process before or after the n-th write to a store."""

    left = 0

    def burn(self):
        self.left -= 1
        if self.left == 0:
            raise Stopped

    def around(self, plain):
        def write(folder, *rest):
            self.burn()
            result = plain(folder, *rest)
            self.burn()
            return result

        return write


@pytest.mark.parametrize("is_over_another", [False, True])
def test_stopped_at_any_change_and_begun_again_it_publishes_the_same(
    is_over_another, small, given, tmp_path, monkeypatch
):
    calm, torn, fuse = Folder(str(tmp_path / "calm")), Folder(str(tmp_path / "torn")), Fuse()
    published(small, given, calm)
    other = Publication(torn, {"of": "yesterday"})
    for name in ("upload", "write", "move", "remove"):
        monkeypatch.setattr(Folder, name, fuse.around(getattr(Folder, name)))
    moment, ended = 0, False
    while not ended:
        moment += 1
        fuse.left = 0
        torn.remove()
        if is_over_another:
            yesterday = yesterdays(other)
        fuse.left = moment
        try:
            published(small, given, torn)
            ended = True
        except Stopped:
            pass
        fuse.left = 0
        if torn.exists(SUCCESS):  # what counts is whole: of today, or still of yesterday
            whole = digests(calm) if not is_over_another else (digests(calm), yesterday)
            assert digests(torn) in (whole if is_over_another else (whole,))
        published(small, given, torn)
        assert digests(torn) == digests(calm)
        assert torn.read_json(SUCCESS) == calm.read_json(SUCCESS)
    assert moment > 40


def test_of_two_attempts_of_one_job_at_once_the_lists_are_published(
    small, given, tmp_path, monkeypatch
):
    """Whenever the other one runs from its start to its end."""
    calm, shared, fuse = Folder(str(tmp_path / "calm")), Folder(str(tmp_path / "shared")), Fuse()
    published(small, given, calm)
    for name in ("upload", "write", "move", "remove"):
        monkeypatch.setattr(Folder, name, fuse.around(getattr(Folder, name)))
    moment, has_met = 0, True

    def other():
        nonlocal has_met
        fuse.left -= 1
        if fuse.left == 0:
            has_met = True
            published(small, given, shared)

    fuse.burn = other
    while has_met:
        moment += 1
        fuse.left, has_met = 0, False
        shared.remove()
        fuse.left = moment
        with contextlib.suppress(DataError):
            published(small, given, shared)
        fuse.left = 0
        assert digests(shared) == digests(calm), moment
        assert shared.read_json(SUCCESS) == calm.read_json(SUCCESS)
        assert shared.folders() == [], moment
    assert moment > 40


def yesterdays(publication):
    """Publish something else; return its digests."""
    publication.begin()
    with Part(publication.work, "part-00000.parquet") as part:
        part.write(pa.table({"user": ["of yesterday"]}))
    made = PartManifest(
        name="part-00000.parquet", bytes=part.size, sha256=part.digest, users={}, rejected={}
    )
    publication.publish([made], COUNTS)
    return digests(publication.target)


def test_what_fails_leaves_what_was_published(small, given, tmp_path):
    output = Folder(str(tmp_path / "out"))
    before = yesterdays(Publication(output, {"of": "yesterday"}))
    given.write("d.parquet", b"no parquet")
    with pytest.raises(DataError, match=r"d.parquet: is not a valid Parquet file"):
        published(small, given, output)
    assert digests(output) == before
    assert output.read_json(SUCCESS)["recipe"] == {"of": "yesterday"}


def test_of_two_recipes_at_once_none_takes_the_others_parts(small, given, tmp_path):
    output = Folder(str(tmp_path / "out"))
    mine, other = Publication(output, RECIPE), Publication(output, {"of": "another"})
    mine.begin()
    receipts = [maker(small, given, output).write(fragment) for fragment in fragments(given)]
    found = yesterdays(other)
    assert digests(output) == found
    mine.publish(receipts, COUNTS)
    entries = output.read_json(SUCCESS)["files"]
    assert {entry["name"]: entry["sha256"] for entry in entries} == digests(output)
    assert not set(found) & set(digests(output))


def test_folders_of_others_and_stale_work(small, given, tmp_path):
    output = Folder(str(tmp_path / "out"))
    output.write("part-00000-abc.snappy.parquet", b"precious")
    with pytest.raises(DataError, match="holds files that scoring did not write"):
        published(small, given, output)
    output.remove()
    for recipe, age_s in (("old", 3 * 24 * 3600), ("young", 60)):
        Publication(output, {"of": recipe}).begin()
        work = Publication(output, {"of": recipe}).work
        work.write_json("begun.json", {"time": time.time() - age_s})
    published(small, given, output)
    assert output.folders() == [Publication(output, {"of": "young"}).work.url.rsplit("/")[-1]]


def test_histories_that_are_as_they_were_are_passed_over(small, given, tmp_path):
    first = Folder(str(tmp_path / "first"))
    published(small, given, first)
    changed = histories(small).to_pylist()
    changed[3]["ratings"][0] = (
        6.0 - changed[3]["ratings"][0] if changed[3]["ratings"][0] != 3 else 4.0
    )
    changed[30]["items"].append(951)
    changed[30]["ratings"].append(5.0)
    later = Folder(str(tmp_path / "later"))
    later.write_parquet("a.parquet", pa.Table.from_pylist(changed))
    second = Folder(str(tmp_path / "second"))
    scorer = maker(small, later, second, previous=PreviousRun.of([first]))
    (fragment,) = fragments_of(later, [InputFile("a.parquet")], 100)
    receipt = scorer.write(fragment)
    lists = scorer.publication.work.read_parquet("part-00000.parquet")
    assert lists["user"].to_pylist() == ["u3", "u30"]
    assert receipt.users == {"read": 37, "scored": 2, "unchanged": 35}
    scorer.publication.publish([receipt], COUNTS)
    # On the third day u3 is as on the first again, and u30 as on the second.
    back = histories(small).to_pylist()
    back[30] = changed[30]
    later.write_parquet("a.parquet", pa.Table.from_pylist(back))
    third = maker(
        small, later, Folder(str(tmp_path / "third")), previous=PreviousRun.of([second, first])
    )
    receipt = third.write(fragment)
    assert third.publication.work.read_parquet("part-00000.parquet")["user"].to_pylist() == ["u3"]
    assert receipt.users == {"read": 37, "scored": 1, "unchanged": 36}


def test_a_file_that_is_not_what_the_manifest_says_is_refused(small, given, tmp_path):
    files = [InputFile("a.parquet", sha256="0" * 64)]
    (first, *_) = fragments_of(given, files, 10)
    with pytest.raises(DataError, match=r"a.parquet: content differs from the manifest"):
        maker(small, given, Folder(str(tmp_path / "out"))).write(first)
    files = [InputFile("a.parquet", stamp=given.stamp("a.parquet"))]
    (first, *_) = fragments_of(given, files, 10)
    given.write_parquet("a.parquet", histories(small).slice(1, 20))
    with pytest.raises(DataError, match=r"a.parquet: changed while it was scored"):
        maker(small, given, Folder(str(tmp_path / "out"))).write(first)
