import numpy as np
import pyarrow as pa
import pytest
import torch

from distrib.checkpoint.bundle import copy_bundle, load_bundle, write_bundle
from distrib.errors import CheckpointError
from distrib.models.conv4rec import Conv4RecConfig
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary

CONFIG = Conv4RecConfig(latent_width=4, rating_width=4)


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
