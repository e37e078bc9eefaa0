import os
import threading
import time

import fsspec
import pytest
import torch

from distrib.checkpoint.state import SavedState, StatePiece
from distrib.checkpoint.store import CheckpointStore, checkpoint_name
from distrib.checkpoint.writer import CheckpointWriter, Rank
from distrib.errors import CheckpointError, DataError
from distrib.retries import with_retries
from distrib.storage import Folder
from tests.stores.door import door

NAME = "step-0000000001-x"


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(Folder(str(tmp_path / "run")))


def write(store, step, attempt="one", ranks=(0, 1), world_size=2, value=1.0):
    name = checkpoint_name(step, attempt)
    for rank in ranks:
        writer = CheckpointWriter(store, Rank(rank, world_size), retry_s=0, in_background=True)
        piece = StatePiece("p", 3 * rank, {"value": torch.full((3,), value + rank)}, {"step": 5.0})
        writer.start(name, [piece], {"position.json": "{}"} if rank == 0 else {})
        writer.wait()
        assert not writer.fault
    return name


def test_a_checkpoint_counts_when_every_rank_has_written(store, tmp_path):
    first = write(store, 10)
    write(store, 20, ranks=(0,))
    assert store.complete() == [first]
    store.fetch(first, tmp_path / "local")
    saved = SavedState(tmp_path / "local")
    assert saved.read("p", "value", 1, 4).tolist() == [1.0, 1.0, 2.0, 2.0]
    assert saved.scalars("p") == {"step": 5.0}
    with pytest.raises(CheckpointError, match="holds 3 of the 5 elements"):
        saved.read("p", "value", 3, 5)


def test_what_is_written_is_a_copy(store, tmp_path, monkeypatch):
    tensor, going = torch.ones(3), threading.Event()
    writer = CheckpointWriter(store, Rank(0, 1), retry_s=0, in_background=True)
    writer.start(NAME, [StatePiece("p", 0, {"value": tensor}, {})], {}, before=going.wait)
    tensor.fill_(7.0)  # training goes on
    going.set()
    writer.wait()
    store.fetch(NAME, tmp_path / "local")
    assert SavedState(tmp_path / "local").read("p", "value", 0, 3).tolist() == [1.0] * 3


def test_old_and_unfinished_checkpoints_go_but_not_those_under_way(store):
    names = [write(store, step) for step in (10, 20, 30)]
    dead = write(store, 15, attempt="dead", ranks=(1,))
    going = write(store, 40, ranks=(0,))
    store.prune(2, "one")
    assert store.complete() == [names[2], names[1]]
    assert dead not in store.folder.folders()
    assert going in store.folder.folders()


@pytest.mark.parametrize("how", ["flipped", "short", "gone"])
def test_damage_is_found_when_it_is_read(how, store, tmp_path):
    name = write(store, 10)
    path = tmp_path / "run" / "checkpoints" / name / "state-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink() if how == "gone" else path.write_bytes(
        content[:-1] if how == "short" else content
    )
    with pytest.raises(CheckpointError, match=r"damaged|cannot be read"):
        store.fetch(name, tmp_path / "local")


def test_a_failure_is_kept_for_all_to_hear(store, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("in the way")
    writer = CheckpointWriter(store, Rank(0, 1), retry_s=0, in_background=True)
    writer.start(NAME, [StatePiece("p", 0, {"value": torch.ones(2)}, {})], {})
    writer.wait()
    assert "checkpoint step-0000000001-x could not be written" in writer.fault


def failing(times, cause):
    left = [times]

    def action():
        if left[0]:
            left[0] -= 1
            raise DataError("the store failed") from cause
        return "done"

    return action


def test_a_store_is_tried_again_for_a_while():
    heard = []
    assert (
        with_retries(failing(2, ConnectionError()), timeout_s=30, on_retry=heard.append) == "done"
    )
    assert len(heard) == 2
    with pytest.raises(DataError):
        with_retries(failing(9, ConnectionError()), timeout_s=0.6, on_retry=heard.append)


@pytest.mark.parametrize("cause", [PermissionError(), FileNotFoundError(), OSError(28, "no space")])
def test_what_waiting_does_not_mend_is_told_at_once(cause):
    heard = []
    with pytest.raises(DataError):
        with_retries(failing(1, cause), timeout_s=30, on_retry=heard.append)
    assert not heard


def test_a_store_that_fails_for_a_while_costs_only_time(object_store, monkeypatch, tmp_path):
    host, _, port = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://").partition(":")
    with door(host, int(port)) as (controls, url):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        store = CheckpointStore(Folder(f"{object_store}/{tmp_path.name}"))
        writer = CheckpointWriter(store, Rank(0, 1), retry_s=60, in_background=True)
        controls.refused["PUT"] = 500
        writer.start(NAME, [StatePiece("p", 0, {"value": torch.ones(2)}, {})], {})
        time.sleep(2.0)
        assert store.complete() == []
        controls.refused.clear()
        writer.wait()
        assert not writer.fault
        assert store.complete() == [NAME]
    fsspec.get_filesystem_class("s3").clear_instance_cache()
