"""The whole way against stores of others: Swift's S3, emulators of Azure and Google; slow.

The servers are installed apart from the project (their requirements are their own):
``make test-stores`` does that and runs these tests. STORES_PYTHON is an interpreter with swift and
gcp-storage-emulator, AZURITE the emulator's executable.
"""

import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from distrib.data.dataset import Dataset
from distrib.errors import DataError
from distrib.storage import Folder
from tests.stores.azurite import azurite
from tests.stores.gcs import gcs
from tests.stores.swift import swift

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parent.parent
SMALL = [
    "data.source.num_users=1500",
    "data.source.num_items=80",
    "data.source.num_interactions=30_000",
    "train.num_epochs=2",
    "train.batch_users=50",
    "score.k=10",
]


SECRETS = ("AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_CONNECTION_STRING")


def executable(name):
    found = os.environ.get(name)
    if not found:
        pytest.skip(f"{name} is not set; see make test-stores")
    return Path(found).absolute()


@pytest.fixture(params=["swift", "azurite", "gcs"])
def store(request, tmp_path, monkeypatch):
    """URL of an empty bucket, reached as users do: by the environment."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    if request.param == "swift":
        with swift(tmp_path / "swift", executable("STORES_PYTHON")) as (url, key, secret):
            for name, value in {
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": key,
                "AWS_SECRET_ACCESS_KEY": secret,
                "AWS_DEFAULT_REGION": "us-east-1",
            }.items():
                monkeypatch.setenv(name, value)
            fsspec.filesystem("s3").mkdir("bucket")
            yield "s3://bucket"
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    elif request.param == "azurite":
        with azurite(tmp_path / "azurite", executable("AZURITE")) as connection:
            monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
            fsspec.get_filesystem_class("abfs").clear_instance_cache()
            fsspec.filesystem("abfs").mkdir("bucket")
            yield "abfs://bucket"
        fsspec.get_filesystem_class("abfs").clear_instance_cache()
    else:
        with gcs(tmp_path / "gcs", executable("STORES_PYTHON")) as url:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
            monkeypatch.setenv("NO_GCE_CHECK", "true")  # no search for credentials on the network
            monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
            fsspec.get_filesystem_class("gs").clear_instance_cache()
            fsspec.filesystem("gs").mkdir("bucket")
            yield "gs://bucket"
        fsspec.get_filesystem_class("gs").clear_instance_cache()


def test_a_folder_behaves_as_on_a_disk(store):
    folder = Folder(f"{store}/some/place")
    assert not folder.exists()
    folder.require_writable()
    assert folder.files() == []
    folder.write("deep/a.bin", b"one" * 7_000_000)
    folder.write("b.json", b"{}")
    folder.write_json("b.json", {"x": 1})
    assert folder.read("deep/a.bin") == b"one" * 7_000_000
    assert folder.read_json("b.json") == {"x": 1}
    assert folder.files() == ["b.json"]
    assert folder.is_folder()
    before = folder.stamp("b.json")
    folder.write_json("b.json", {"x": 12})
    assert folder.stamp("b.json") != before
    folder.remove("deep")
    assert not folder.exists("deep/a.bin")
    with pytest.raises(DataError, match="no such file or bucket"):
        folder.read("deep/a.bin")


def test_the_demo_runs_with_its_folder_there(store):
    settings = [f'run="{store}/demo/run"', f'data.prepared="{store}/demo/data"', *SMALL]
    arguments = [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "jobs/pipeline.py", "--config", "configs/demo.toml", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    manifest = Dataset.open(f"{store}/demo/data").manifest
    parts = [n for n in Folder(f"{store}/demo/run/recommendations").files() if n[0] != "_"]
    assert len(parts) == len(manifest.shards)
    given = [
        os.environ[name].rpartition("AccountKey=")[2] for name in SECRETS if name in os.environ
    ]
    assert not [secret for secret in given if secret.partition(";")[0] in done.stderr + done.stdout]


def test_a_wrong_secret_is_refused_before_the_work(tmp_path, monkeypatch):
    with swift(tmp_path / "swift", executable("STORES_PYTHON")) as (url, key, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-someone-else")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        with pytest.raises(DataError, match="access denied") as found:
            Folder("s3://bucket/x").require_writable()
        assert "of-someone-else" not in str(found.value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_an_error_of_azure_is_one_of_ours(tmp_path, monkeypatch):
    with azurite(tmp_path / "azurite", executable("AZURITE")) as connection:
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
        fsspec.get_filesystem_class("abfs").clear_instance_cache()
        with pytest.raises(DataError, match="no-such-container"):
            Folder("abfs://no-such-container/x").require_writable()
    fsspec.get_filesystem_class("abfs").clear_instance_cache()
