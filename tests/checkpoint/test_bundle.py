import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
import torch

from distrib.checkpoint import store
from distrib.checkpoint.bundle import copy_bundle, load_bundle, write_bundle
from distrib.errors import CheckpointError
from distrib.models.conv4rec import Conv4RecConfig
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary

CONFIG = Conv4RecConfig(latent_width=4)


def vocabulary_of(small):
    ids = pa.array([f"item-{n}" for n in range(50)])
    return Vocabulary(ids, small.catalogue.levels, small.catalogue.train_count_IL, 37)


@pytest.fixture
def bundle(small, tmp_path):
    folder = Folder(str(tmp_path / "bundle"))
    model = CONFIG.build(small.catalogue)
    write_bundle(folder, model.state_dict(), CONFIG, vocabulary_of(small), {"epoch": 3})
    return folder, model


def test_a_bundle_comes_back_as_it_was(bundle, small, tmp_path):
    folder, model = bundle
    copy_bundle(folder, Folder(str(tmp_path / "copy")))
    for place in (folder, Folder(str(tmp_path / "copy"))):
        loaded = load_bundle(place)
        assert loaded.facts["epoch"] == 3
        assert loaded.vocabulary.fingerprint == vocabulary_of(small).fingerprint
        np.testing.assert_array_equal(
            loaded.vocabulary.train_count_IL, small.catalogue.train_count_IL
        )
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.model.state_dict()[name], tensor)


def test_without_its_manifest_a_bundle_is_not_there(bundle):
    folder, _ = bundle
    folder.remove("manifest.json")
    with pytest.raises(CheckpointError, match=r"no manifest\.json, so nothing complete is there"):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "items.parquet"])
def test_altered_and_missing_files_are_named(bundle, name):
    folder, _ = bundle
    content = bytearray(folder.read(name))
    content[len(content) // 2] ^= 1
    folder.write(name, bytes(content))
    with pytest.raises(CheckpointError, match=f"{name}: content differs"):
        load_bundle(folder)
    folder.remove(name)
    with pytest.raises(CheckpointError, match=f"{name}: listed in .* but absent"):
        load_bundle(folder)


@pytest.fixture
def uploaded(tmp_path):
    fs, target = pafs.LocalFileSystem(), str(tmp_path / "checkpoint")
    for rank in range(2):
        source = tmp_path / f"rank{rank}"
        (source / "engine").mkdir(parents=True)
        (source / "engine" / f"part{rank}.pt").write_bytes(bytes([rank]) * 1000)
        store.upload_part(source, fs, target, rank=rank, world_size=2)
    return fs, target


def test_the_parts_of_all_ranks_come_back(uploaded, tmp_path):
    fs, target = uploaded
    store.download(fs, target, tmp_path / "back")
    for rank in range(2):
        assert (tmp_path / "back" / "engine" / f"part{rank}.pt").read_bytes() == bytes(
            [rank]
        ) * 1000


def test_a_checkpoint_that_lacks_a_rank_or_bytes_is_refused(uploaded, tmp_path):
    fs, target = uploaded
    part = tmp_path / "checkpoint" / "engine" / "part1.pt"
    part.write_bytes(b"\x01" * 999 + b"\x02")
    with pytest.raises(CheckpointError, match="content differs from what was written"):
        store.download(fs, target, tmp_path / "back")
    part.write_bytes(b"short")
    with pytest.raises(CheckpointError, match="5 bytes, but 1000 were written"):
        store.verify(fs, target)
    (tmp_path / "checkpoint" / "_rank00001.json").unlink()
    with pytest.raises(CheckpointError, match=r"_rank00001\.json is absent"):
        store.verify(fs, target)
