import os
import pickle
import subprocess
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from distrib.data.config import DataConfig
from distrib.data.logs.config import Columns, CsvSource, SyntheticLog
from distrib.data.prepare.job import preflight, prepare
from distrib.data.splits.rules import NoSplit
from distrib.errors import DataError
from distrib.storage import Folder
from tests.stores.door import door


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


def test_a_file_goes_up_and_comes_down_whole(folder, tmp_path):
    (tmp_path / "source").write_bytes(b"abc" * 1000)
    sent = folder.upload("deep/x.bin", tmp_path / "source")
    assert sent.bytes == 3000
    assert folder.download("deep/x.bin", tmp_path / "back" / "x") == sent
    assert (tmp_path / "back" / "x").read_bytes() == b"abc" * 1000
    assert folder.folders() == ["deep"]
    assert (folder / "deep").files() == ["x.bin"]


def test_equal_tables_give_equal_bytes(folder):
    table = pa.table({"items": [[1, 2], [3]]})
    assert folder.write_parquet("a.parquet", table) == folder.write_parquet("b.parquet", table)
    assert folder.read_parquet("a.parquet").equals(table)


def test_what_is_not_there_is_one_clear_error(folder):
    folder.write("x.json", b"{")
    with pytest.raises(DataError, match="no such file or bucket"):
        folder.read("absent")
    with pytest.raises(DataError, match="is not valid JSON"):
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


WITH_CREDENTIALS = [
    "s3://key:secret@bucket/data", "https://user:secret@host/x", "s3://key:se/secret@bucket/data",
    "https://host/x?sig=secret", "https://host/x?sv=1&sig=secret&a=b",
    "https://host/x?X-Amz-Signature=secret", "https://host/x?access_token=secret",
]  # fmt: skip


@pytest.mark.parametrize("url", WITH_CREDENTIALS)
def test_credentials_in_a_url_are_refused_and_not_repeated(url):
    with pytest.raises(DataError, match="must not contain credentials") as found:
        Folder(url)
    assert "secret" not in str(found.value)
    Folder("http://host:8080/at/a@b.csv")


@pytest.mark.parametrize("url", ["s3://", "memory://a/b", "a\0b", "nonsense://a/b", "gs://"])
def test_what_is_no_place_for_files_is_refused(url):
    with pytest.raises(DataError, match=r"correct it|use a path or a URL"):
        Folder(url)


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Folder("~/runs").url == f"{tmp_path}/runs"


def test_a_bucket_that_denies_writing_is_found_before_the_work(object_store, tmp_path, monkeypatch):
    host, port = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://").split(":")
    with door(host, int(port)) as (controls, url):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        (tmp_path / "log.csv").write_text("who,what\na,x\n")
        source = CsvSource(path=str(tmp_path / "log.csv"), columns=Columns(user="who", item="what"))
        config = DataConfig(prepared=f"{object_store}/denied", source=source, split=NoSplit())
        preflight(config)
        controls.refused["PUT"] = 403
        with pytest.raises(DataError, match=r"s3://bucket/denied: access denied"):
            preflight(config)
        controls.refused.clear()
        assert Folder(config.prepared).files() == []
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def full_disk(tmp_path):
    """A disk of 256 kB, where this user may mount one."""
    (tmp_path / "small").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path / "small")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk here")
    yield tmp_path / "small"
    subprocess.run(["umount", str(tmp_path / "small")], check=True)


def test_a_full_disk_is_one_clear_error_and_leaves_no_part(full_disk):
    folder = Folder(str(full_disk))
    folder.write("whole.bin", b"1" * 1000)
    with pytest.raises(DataError, match="no space left"):
        folder.write("large.bin", b"1" * 1_000_000)
    large = full_disk.parent / "large.bin"
    large.write_bytes(b"1" * 1_000_000)
    with pytest.raises(DataError, match="no space left"):
        folder.upload("large.bin", large)
    assert folder.files() == ["whole.bin"]
    folder.write("large.bin", b"2" * 1000)
    assert folder.read("large.bin") == b"2" * 1000


def test_a_preparation_that_finds_the_disk_full_stops_clean(cluster, full_disk):
    source = SyntheticLog(num_users=5000, num_items=80, num_interactions=60_000)
    config = DataConfig(prepared=str(full_disk / "p"), source=source, num_shards=2)
    with pytest.raises(Exception, match="No space left on device"):
        prepare(config)
    assert not Folder(config.prepared).exists("manifest.json")
    parts = [name for name in (Folder(config.prepared) / "histories").files() if ".part" in name]
    assert parts == []
