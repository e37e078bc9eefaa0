import pickle
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load, save

from distrib.checkpoint.bundle import (
    BUNDLE,
    BundleFacts,
    copy_bundle,
    load_bundle,
    refill,
    require_model,
    restored,
    write_bundle,
)
from distrib.checkpoint.manifest import describe
from distrib.config import sealed, unsealed
from distrib.errors import CheckpointError, ConfigError
from distrib.models.autoencoders.conv4rec import Conv4RecConfig
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary

CONFIG = Conv4RecConfig(latent_width=4, rating_width=4)


def vocabulary_of(small):
    ids = pa.array([f"item-{n}" for n in range(50)])
    return Vocabulary(ids, small.catalog.levels, small.catalog.train_count_IL, 37)


def test_a_run_file_with_another_model_than_the_run_is_refused(small, tmp_path):
    require_model(str(tmp_path), "ease")  # nothing was trained yet
    model = CONFIG.build(small.catalog)
    folder = Folder(str(tmp_path)) / BUNDLE
    write_bundle(folder, model.state_dict(), CONFIG, vocabulary_of(small), BundleFacts(epoch=3))
    require_model(str(tmp_path), "conv4rec")
    with pytest.raises(ConfigError, match=r"model.name = 'ease', but .* holds 'conv4rec'; set"):
        require_model(str(tmp_path), "ease")


@pytest.fixture
def bundle(small, tmp_path):
    folder = Folder(str(tmp_path / "bundle"))
    model = CONFIG.build(small.catalog)
    write_bundle(folder, model.state_dict(), CONFIG, vocabulary_of(small), BundleFacts(epoch=3))
    return folder, model


def test_a_bundle_comes_back_as_it_was(bundle, small, tmp_path):
    folder, model = bundle
    copy_bundle(folder, Folder(str(tmp_path / "copy")))
    for place in (folder, Folder(str(tmp_path / "copy"))):
        loaded = load_bundle(place)
        assert loaded.facts.epoch == 3
        assert loaded.vocabulary.fingerprint == vocabulary_of(small).fingerprint
        np.testing.assert_array_equal(
            loaded.vocabulary.train_count_IL, small.catalog.train_count_IL
        )
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.model.state_dict()[name], tensor)


def test_a_refilled_model_is_a_restored_one_in_its_own_precision(small):
    vocabulary = vocabulary_of(small)
    one, other = (CONFIG.build(vocabulary.catalog).state_dict() for _ in range(2))
    model = restored(CONFIG, vocabulary, one)
    refill(model, {name: value.bfloat16() for name, value in other.items()})
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, other[name].bfloat16().float())
    refill(model, other)
    expected = restored(CONFIG, vocabulary, other)
    found, wanted = (m.decode(m.encode(small.batch), slice(None)) for m in (model, expected))
    assert torch.equal(found, wanted)


def test_without_its_manifest_a_bundle_is_not_there(bundle):
    folder, _ = bundle
    folder.remove("manifest.json")
    with pytest.raises(CheckpointError, match=r"no manifest\.json, so the folder is incomplete"):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "items.parquet"])
def test_altered_and_missing_files_are_named(bundle, name):
    folder, _ = bundle
    content = bytearray(folder.read(name))
    content[len(content) // 2] ^= 1
    folder.write(name, bytes(content))
    with pytest.raises(
        CheckpointError, match=rf"{name}: content differs from manifest.json \(sha256 is"
    ):
        load_bundle(folder)
    folder.remove(name)
    with pytest.raises(CheckpointError, match=f"{name}: listed in .* but absent"):
        load_bundle(folder)


def resealed(folder, **contents):
    """Put other files into a bundle, with a manifest that vouches for them."""
    manifest = unsealed(folder.read_json("manifest.json"), folder)
    for name, content in contents.items():
        folder.write(NAMES[name], content)
        manifest["files"][NAMES[name]] = describe(content).to_json()
    folder.write_json("manifest.json", sealed(manifest))


NAMES = {"weights": "model.safetensors", "model": "model.json", "items": "items.parquet"}


def test_truncated_files_are_named_by_their_size(bundle):
    folder, _ = bundle
    folder.write("model.safetensors", folder.read("model.safetensors")[:100])
    with pytest.raises(CheckpointError, match=r"model.safetensors: .*\(bytes is 100, not \d+\)"):
        load_bundle(folder)


def test_foreign_bundles_are_refused_with_the_first_difference(bundle, small, tmp_path):
    folder, _ = bundle
    whole = {name: folder.read(file) for name, file in NAMES.items()}
    counts = small.catalog.train_count_IL
    others = Vocabulary(pa.array(range(50)), small.catalog.levels, counts, 37)
    sink = pa.BufferOutputStream()
    pq.write_table(others.to_table(), sink)
    few = {"prior_IC": torch.zeros(3, 6)}
    for part, content, message in (
        ("weights", pickle.dumps({"a": 1}), "is not a valid safetensors file"),
        ("weights", save(few), r"input_IDZ is missing"),
        (
            "weights",
            save({**load(whole["weights"]), **few}),
            r"prior_IC is \[3, 6\], not \[50, 6\]",
        ),
        (
            "weights",
            save({**load(whole["weights"]), "more": torch.ones(1)}),
            "more is unexpected",
        ),
        ("model", b'{"name": "other"}', "is not a valid model of this version"),
        ("model", b"no json", "is not a valid model of this version"),
        ("items", b"no parquet", "is not a valid vocabulary"),
        ("items", bytes(sink.getvalue()), "its items are not those that the model was trained on"),
    ):
        resealed(folder, **{part: content})
        with pytest.raises(CheckpointError, match=message):
            load_bundle(folder)
        resealed(folder, **whole)
    load_bundle(folder)


@pytest.mark.parametrize("files", [None, [], {"../../secret": {}}, {"/etc/passwd": {}}, {"": {}}])
def test_a_manifest_leads_to_no_file_outside(bundle, files):
    folder, _ = bundle
    manifest = unsealed(folder.read_json("manifest.json"), folder)
    folder.write_json("manifest.json", sealed({**manifest, "files": files}))
    with pytest.raises(CheckpointError, match="lists no files of this folder"):
        load_bundle(folder)
    folder.write_json("manifest.json", sealed({**manifest, "files": {}}))
    with pytest.raises(CheckpointError, match=r"not a bundle, model.safetensors is not listed"):
        load_bundle(folder)


def test_nothing_unpickles():
    for path in (Path(__file__).parent.parent.parent / "distrib").rglob("*.py"):
        found = re.findall(
            r"^\s*(?:import|from) pickle|(?<!safetensors\.)torch\.load\(",
            path.read_text(),
            re.MULTILINE,
        )
        assert not found, path
