"""Exactly once: whatever is interrupted, the union is what one undisturbed start writes."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distrib.errors import DataError
from distrib.models.conv4rec import Conv4RecConfig
from distrib.score.fragments import FragmentScorer, fragments_of
from distrib.score.policy import ScoreConfig
from distrib.storage import Folder
from tests.score.test_scorer import histories, scorer_of

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
    return fragments_of(given, [{"name": name} for name in given.files()], CONFIG.fragment_users)


def maker(small, given, output, **more):
    scorer = scorer_of(small, Conv4RecConfig(latent_width=8, rating_width=4))
    return FragmentScorer(scorer, given, None, output, CONFIG, **more)


def digests(folder):
    return {
        name: hashlib.sha256(folder.read(name)).hexdigest() for name in folder.files(".parquet")
    }


def test_fragments_cover_every_row_once_by_whole_row_groups(given):
    found = fragments(given)
    assert [f.num_rows for f in found] == [10, 10, 7, 10, 0]
    assert [f.first_row for f in found] == [0, 10, 0, 7, 0]
    assert [f.part for f in found] == [f"part-0000{n}.parquet" for n in range(5)]


def test_parts_hold_every_user_once_in_order(small, given, tmp_path):
    output = Folder(str(tmp_path / "out"))
    scorer = maker(small, given, output)
    receipts = [scorer.write(fragment, "r") for fragment in fragments(given)]
    users = [
        user for name in output.files() for user in output.read_parquet(name)["user"].to_pylist()
    ]
    assert users == histories(small)["user"].to_pylist()
    assert sum(receipt["users"]["scored"] for receipt in receipts) == 37
    receipt = output.read_json(fragments(given)[0].receipt)
    assert receipt["sha256"] == digests(output)["part-00000.parquet"]


class Stopped(BaseException):
    """The process ends here."""


def write_all(small, given, output, done=()):
    for fragment in fragments(given):
        if fragment not in done:
            maker(small, given, output).write(fragment, "r")


class Fuse:
    """Ends the process before or after the n-th write to a store."""

    left = 0

    def burn(self):
        self.left -= 1
        if self.left == 0:
            raise Stopped

    def around(self, plain):
        def write(folder, name, *rest):
            self.burn()
            result = plain(folder, name, *rest)
            self.burn()
            return result

        return write


def test_stopped_at_any_write_and_begun_again_it_writes_the_same(
    small, given, tmp_path, monkeypatch
):
    calm, torn, fuse = Folder(str(tmp_path / "calm")), Folder(str(tmp_path / "torn")), Fuse()
    write_all(small, given, calm)
    for name in ("upload", "write"):
        monkeypatch.setattr(Folder, name, fuse.around(getattr(Folder, name)))
    for moment in range(1, 21):
        torn.remove()
        fuse.left = moment
        with pytest.raises(Stopped):
            write_all(small, given, torn)
        done = [f for f in fragments(given) if torn.exists(f.receipt)]
        assert len(done) == moment // 4
        for fragment in done:  # what counts is whole
            assert digests(torn)[fragment.part] == digests(calm)[fragment.part]
        write_all(small, given, torn, done)
        assert digests(torn) == digests(calm)


def test_histories_that_are_as_they_were_are_passed_over(small, given, tmp_path):
    first = Folder(str(tmp_path / "first"))
    for fragment in fragments(given):
        maker(small, given, first).write(fragment, "r")
    known = [first.read_parquet(name)["history_digest"].to_numpy() for name in first.files()]
    changed = histories(small).to_pylist()
    changed[3]["ratings"][0] = (
        6.0 - changed[3]["ratings"][0] if changed[3]["ratings"][0] != 3 else 4.0
    )
    changed[30]["items"].append(951)
    changed[30]["ratings"].append(5.0)
    later = Folder(str(tmp_path / "later"))
    later.write_parquet("a.parquet", pa.Table.from_pylist(changed))
    output = Folder(str(tmp_path / "out"))
    scorer = maker(small, later, output, unchanged=np.unique(np.concatenate(known)))
    (fragment,) = fragments_of(later, [{"name": "a.parquet"}], 100)
    receipt = scorer.write(fragment, "r")
    assert output.read_parquet("part-00000.parquet")["user"].to_pylist() == ["u3", "u30"]
    assert receipt["users"] == {"read": 37, "scored": 2, "unchanged": 35}


def test_a_file_that_is_not_what_the_manifest_says_is_refused(small, given, tmp_path):
    files = [{"name": "a.parquet", "sha256": "0" * 64}]
    (first, *_) = fragments_of(given, files, 10)
    with pytest.raises(DataError, match=r"a.parquet: content differs from the manifest"):
        maker(small, given, Folder(str(tmp_path / "out"))).write(first, "r")
    given.write("d.parquet", json.dumps({}).encode())
    with pytest.raises(DataError, match=r"d.parquet: is no Parquet file"):
        fragments_of(given, [{"name": "d.parquet"}], 10)
