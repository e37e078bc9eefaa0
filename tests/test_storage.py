import pickle
from pathlib import Path

import pyarrow as pa
import pytest

from distrib.errors import DataError
from distrib.storage import Folder


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    if request.param == "local":
        return Folder(str(tmp_path / "new"))
    store = request.getfixturevalue("object_store")
    return Folder(f"{store}/{tmp_path.name}")


def test_what_is_written_is_read_listed_and_removed(folder):
    assert not folder.exists()
    assert folder.files() == []
    folder.write("deep/a.bin", b"one")
    folder.write("b.json", b"{}")
    folder.write("b.json", b'{"x": 1}')
    assert folder.read("deep/a.bin") == b"one"
    assert folder.read_json("b.json") == {"x": 1}
    assert folder.files() == ["b.json"]
    assert (folder / "deep").files(".bin") == ["a.bin"]
    assert folder.size("b.json") == 8
    folder.remove("deep")
    folder.remove("deep")
    assert not folder.exists("deep/a.bin")
    assert pickle.loads(pickle.dumps(folder)).read_json("b.json") == {"x": 1}


def test_equal_tables_give_equal_bytes(folder):
    table = pa.table({"items": [[1, 2], [3]]})
    assert folder.write_parquet("a.parquet", table) == folder.write_parquet("b.parquet", table)
    assert folder.read_parquet("a.parquet").equals(table)


def test_what_is_not_there_is_one_clear_error(folder):
    folder.write("x.json", b"{")
    with pytest.raises(DataError, match="no such file or bucket"):
        folder.read("absent")
    with pytest.raises(DataError, match="is not JSON"):
        folder.read_json("x.json")


def test_a_bucket_that_does_not_exist_is_named(object_store):
    folder = Folder("s3://no-such-bucket/data")
    assert not folder.exists("manifest.json")
    with pytest.raises(DataError, match="no-such-bucket"):
        folder.write("x", b"1")


def test_an_unknown_scheme_is_refused():
    with pytest.raises(DataError, match="use a path or a URL of an installed fsspec scheme"):
        Folder("gopher://x/y")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    folder = Folder(str(tmp_path))
    folder.write("a", b"old")

    def full(self, content):
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match="No space left"):
        folder.write("a", b"new")
    assert folder.read("a") == b"old"
