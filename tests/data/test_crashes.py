"""Stopped between any two changes that the driver makes, and started again: the same bytes."""

import os

import pytest

from distrib.data.config import ConvertConfig
from distrib.data.export import convert
from distrib.data.prepare.forget import forget
from distrib.data.prepare.job import prepare
from distrib.storage import Folder
from tests.data.test_append import config_of, lines, write
from tests.scoring.test_fragments import Fuse, Stopped

pytestmark = pytest.mark.ray


def content(folder):
    """All files of a folder, hidden ones, too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def prepared(tmp_path, name):
    prepare(config_of(tmp_path, name, num_shards=2))


def extended(tmp_path, name):
    write(tmp_path / "log", "b.csv", [*lines(range(30, 40), range(20), 40, 2), "damaged"])
    os.utime(tmp_path / "log" / "b.csv", (10**9, 10**9))  # its stamp is in the manifest
    prepare(config_of(tmp_path, name, num_shards=2, extend=True))


def converted(tmp_path, name):
    to = ConvertConfig(output=str(tmp_path / name), of="source")
    convert(config_of(tmp_path, "unused"), to)


def forgotten(tmp_path, name):
    forget(Folder(str(tmp_path / name)), ["u3", "u17"])


@pytest.mark.parametrize("job", [prepared, extended, converted, forgotten])
def test_a_job_that_was_stopped_anywhere_ends_as_if_it_was_not(cluster, tmp_path, job, monkeypatch):
    write(tmp_path / "log", "a.csv", [*lines(range(30), range(20), 200, 1), "damaged"])

    def fresh(name):
        Folder(str(tmp_path / name)).remove()
        if job is forgotten:
            prepared(tmp_path, name)
        if job is extended:
            (tmp_path / "log" / "b.csv").unlink(missing_ok=True)
            prepared(tmp_path, name)

    fresh("calm")
    job(tmp_path, "calm")
    calm, fuse = content(tmp_path / "calm"), Fuse()
    for name in ("write", "remove"):
        monkeypatch.setattr(Folder, name, fuse.around(getattr(Folder, name)))
    moment, ended = 0, False
    while not ended:
        moment, fuse.left = moment + 1, 0
        fresh("torn")
        fuse.left = moment
        try:
            job(tmp_path, "torn")
            ended = True
        except Stopped:
            pass
        fuse.left = 0
        if not ended:
            job(tmp_path, "torn")
        assert content(tmp_path / "torn") == calm, moment
    assert moment >= 8
