"""The bundle for inference: weights, model configuration and vocabulary; no pickle."""

import io
import json
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import safetensors.torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from distrib import __version__
from distrib.checkpoint.manifest import open_sealed, seal
from distrib.errors import CheckpointError, DataError
from distrib.models import ModelConfig
from distrib.models.base import Model
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary

BUNDLE = "bundle"
"""Folder of the bundle, inside a run and inside a checkpoint."""

FORMAT = 1
_WEIGHTS, _MODEL, _VOCABULARY = "model.safetensors", "model.json", "items.parquet"
_ADAPTER: TypeAdapter[Any] = TypeAdapter(ModelConfig)


class Bundle(NamedTuple):
    """A model ready for inference, with what its positions mean."""

    model: Model
    vocabulary: Vocabulary
    config: Any
    """Of the model, a member of `ModelConfig`."""

    facts: dict[str, Any]
    """What the manifest says besides: epoch, metrics, hash of the data."""


def write_bundle(
    folder: Folder,
    weights: dict[str, Tensor],
    config: Any,
    vocabulary: Vocabulary,
    facts: dict[str, Any],
) -> None:
    """Write a bundle; it counts from the moment its manifest is there.

    Args:
        folder: Where to.
        weights: The model's parameters and buffers, whole, on the CPU.
        config: The model's configuration, a member of `ModelConfig`.
        vocabulary: Items.
        facts: JSON to keep beside it.
    """
    items = io.BytesIO()
    pq.write_table(vocabulary.to_table(), items, compression="zstd")
    files = {
        _WEIGHTS: safetensors.torch.save(
            {name: tensor.contiguous() for name, tensor in weights.items()}
        ),
        _MODEL: json.dumps(config.model_dump(mode="json"), indent=2, sort_keys=True).encode(),
        _VOCABULARY: items.getvalue(),
    }
    about = {"format": FORMAT, "distrib": __version__, "vocabulary": vocabulary.fingerprint}
    seal(folder, files, {**facts, **about})


def load_bundle(folder: Folder) -> Bundle:
    """Read a bundle and build its model, ready for inference on the CPU.

    Args:
        folder: A bundle.

    Returns:
        Model, vocabulary and facts.

    Raises:
        CheckpointError: It is absent, incomplete, altered, of another format, or weights and
            model do not fit.
    """
    manifest, files = open_sealed(folder)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder}: bundle format {manifest.get('format')}, this version reads {FORMAT}; "
            "export it anew"
        )
    absent = [name for name in (_WEIGHTS, _MODEL, _VOCABULARY) if name not in files]
    if absent:
        raise CheckpointError(f"{folder}: lists no {absent[0]}, so it is no bundle; check the URL")
    vocabulary = _vocabulary(folder, files, manifest)
    config, model = _unfilled(folder, files, vocabulary)
    try:
        weights = safetensors.torch.load(files[_WEIGHTS])
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{folder / _WEIGHTS}: is no safetensors file ({error})") from error
    difference = _first_difference(model.state_dict(), weights)
    if difference:
        raise CheckpointError(f"{folder / _WEIGHTS}: weights do not fit the model: {difference}")
    model.load_state_dict(weights)
    return Bundle(model.eval().requires_grad_(False), vocabulary, config, manifest)


def _vocabulary(folder: Folder, files: dict[str, bytes], manifest: dict[str, Any]) -> Vocabulary:
    try:
        vocabulary = Vocabulary.from_table(pq.read_table(io.BytesIO(files[_VOCABULARY])))
    except (pa.ArrowException, DataError, KeyError, ValueError) as error:
        raise CheckpointError(f"{folder / _VOCABULARY}: is no vocabulary ({error})") from error
    if vocabulary.fingerprint != manifest.get("vocabulary"):
        raise CheckpointError(
            f"{folder / _VOCABULARY}: its items are not those that the model was trained on "
            f"(fingerprint {vocabulary.fingerprint[:12]}, not "
            f"{str(manifest.get('vocabulary'))[:12]}); copy the folder anew"
        )
    return vocabulary


def _unfilled(folder: Folder, files: dict[str, bytes], vocabulary: Vocabulary) -> tuple[Any, Model]:
    try:
        config = _ADAPTER.validate_json(files[_MODEL])
        return config, config.build(vocabulary.catalog)
    except ValidationError as error:
        fault = error.errors()[0]
        raise CheckpointError(
            f"{folder / _MODEL}: describes no model of this version ({fault['msg']} at "
            f"{'.'.join(map(str, fault['loc']))}); export it anew"
        ) from error
    except (RuntimeError, MemoryError) as error:
        raise CheckpointError(
            f"{folder / _MODEL}: the model cannot be built here ({error}); check its widths"
        ) from error


def _first_difference(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> str | None:
    """Name the first weight that is absent, too many, or of another shape."""
    for name in [*wanted, *found]:
        if name not in found:
            return f"{name} is absent"
        if name not in wanted:
            return f"{name} is not the model's"
        if wanted[name].shape != found[name].shape:
            return f"{name} is {list(found[name].shape)}, not {list(wanted[name].shape)}"
        if wanted[name].dtype != found[name].dtype:
            return f"{name} is {found[name].dtype}, not {wanted[name].dtype}"
    return None


def copy_bundle(source: Folder, target: Folder) -> None:
    """Copy a bundle, checked on the way; the target counts once it is whole."""
    manifest, files = open_sealed(source)
    manifest.pop("files")
    seal(target, files, manifest)


def restored(config: Any, vocabulary: Vocabulary, weights: dict[str, Tensor]) -> Model:
    """Build a model for inference from weights in memory."""
    model: Model = config.build(vocabulary.catalog)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)
