"""The inference bundle: weights, model configuration and vocabulary; no pickle."""

import io
import json
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import safetensors.torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json
from torch import Tensor

from distrib import __version__
from distrib.checkpoint.manifest import Manifest, open_sealed, seal
from distrib.config import Record, read_record
from distrib.errors import CheckpointError, ConfigError, DataError
from distrib.models import ModelConfig
from distrib.models.base import Model
from distrib.renamed import renamed
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary

BUNDLE = "bundle"
"""Bundle folder, inside a run and inside a checkpoint."""

FORMAT = 1
_WEIGHTS, _MODEL, _VOCABULARY = "model.safetensors", "model.json", "items.parquet"
_ADAPTER: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)


class BundleFacts(Record):
    """What a bundle's manifest says of the model; what was not noted is empty."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    data: str = ""
    """Hash of the prepared dataset that the model was trained on."""

    seed: int | None = None
    """Of the run."""

    epoch: int | None = None
    """From 1."""

    valid: dict[str, float] = Field(default_factory=dict)
    """Metrics on the validation users."""

    format: int | None = None
    distrib: str | None = None
    """Version that wrote the bundle."""

    vocabulary: str | None = None
    """Fingerprint of the items."""


class Bundle(NamedTuple):
    """A model ready for inference and the vocabulary of its item positions."""

    model: Model
    vocabulary: Vocabulary
    config: ModelConfig
    """The model's configuration."""

    manifest: Manifest

    @property
    def facts(self) -> BundleFacts:
        """Epoch, metrics, and hash of the data."""
        return read_record(BundleFacts, self.manifest.facts, BUNDLE)


def write_bundle(
    folder: Folder,
    weights: dict[str, Tensor],
    config: ModelConfig,
    vocabulary: Vocabulary,
    facts: BundleFacts,
) -> None:
    """Write a bundle; it becomes valid when its manifest is written, last.

    Args:
        folder: Target folder.
        weights: The model's parameters and buffers, unsharded, on the CPU.
        config: The model's configuration.
        vocabulary: Items.
        facts: What the manifest should say of data, run and epoch.
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
    seal(folder, files, facts.model_copy(update=about).to_json())


def load_bundle(folder: Folder) -> Bundle:
    """Read a bundle and build its model, ready for inference on the CPU.

    Args:
        folder: A bundle.

    Returns:
        Model, vocabulary and facts.

    Raises:
        CheckpointError: The bundle is absent, incomplete, altered or of another format, or its
            weights do not fit its model.
    """
    manifest, files = open_sealed(folder)
    if manifest.facts.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder}: bundle format {manifest.facts.get('format')}, but this version reads "
            f"{FORMAT}; export it again"
        )
    absent = [name for name in (_WEIGHTS, _MODEL, _VOCABULARY) if name not in files]
    if absent:
        raise CheckpointError(f"{folder}: not a bundle, {absent[0]} is not listed; check the URL")
    vocabulary = _vocabulary(folder, files, manifest)
    config, model = _unfilled(folder, files, vocabulary)
    try:
        weights = safetensors.torch.load(files[_WEIGHTS])
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{folder / _WEIGHTS}: is not a valid safetensors file ({error})"
        ) from error
    difference = _first_difference(model.state_dict(), weights)
    if difference:
        raise CheckpointError(f"{folder / _WEIGHTS}: weights do not fit the model: {difference}")
    model.load_state_dict(weights)
    return Bundle(model.eval().requires_grad_(False), vocabulary, config, manifest)


def model_config(folder: Folder) -> ModelConfig:
    """Read which model a bundle holds, without its weights.

    Args:
        folder: A bundle.

    Returns:
        The settings of the model.

    Raises:
        CheckpointError: They are not those of a model of this version.
    """
    return _config(folder, folder.read(_MODEL))


def require_model(run: str, name: str) -> None:
    """Refuse a run file that names another model than its run folder holds.

    Args:
        run: Run folder; one without a bundle is not refused here.
        name: Of the model in the run file.

    Raises:
        ConfigError: They differ.
    """
    folder = Folder(run) / BUNDLE
    if not folder.exists(_MODEL):
        return
    held = model_config(folder).name
    if held != name:
        raise ConfigError(
            f"model.name = {name!r}, but {run} holds {held!r}; set model.name, or train in "
            "another run folder"
        )


def _vocabulary(folder: Folder, files: dict[str, bytes], manifest: Manifest) -> Vocabulary:
    try:
        vocabulary = Vocabulary.from_table(pq.read_table(io.BytesIO(files[_VOCABULARY])))
    except (pa.ArrowException, DataError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{folder / _VOCABULARY}: is not a valid vocabulary ({error})"
        ) from error
    if vocabulary.fingerprint != manifest.facts.get("vocabulary"):
        raise CheckpointError(
            f"{folder / _VOCABULARY}: its items are not those that the model was trained on "
            f"(fingerprint {vocabulary.fingerprint[:12]}, not "
            f"{str(manifest.facts.get('vocabulary'))[:12]}); copy the folder again"
        )
    return vocabulary


def _unfilled(
    folder: Folder, files: dict[str, bytes], vocabulary: Vocabulary
) -> tuple[ModelConfig, Model]:
    config = _config(folder, files[_MODEL])
    try:
        return config, config.build(vocabulary.catalog)
    except (RuntimeError, MemoryError) as error:
        raise CheckpointError(
            f"{folder / _MODEL}: the model cannot be built here ({error}); check its widths"
        ) from error


def _config(folder: Folder, content: bytes) -> ModelConfig:
    try:
        document, _ = renamed(from_json(content), "model")
        return _ADAPTER.validate_json(json.dumps(document))
    except ValidationError as error:
        fault = error.errors()[0]
        raise CheckpointError(
            f"{folder / _MODEL}: is not a valid model of this version ({fault['msg']} at "
            f"{'.'.join(map(str, fault['loc']))}); export it again"
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"{folder / _MODEL}: is not a valid model of this version ({error}); export it again"
        ) from error


def _first_difference(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> str | None:
    """Describe the first weight that is missing, unexpected, or of another shape or dtype."""
    for name in [*wanted, *found]:
        if name not in found:
            return f"{name} is missing"
        if name not in wanted:
            return f"{name} is unexpected"
        if wanted[name].shape != found[name].shape:
            return f"{name} is {list(found[name].shape)}, not {list(wanted[name].shape)}"
        if wanted[name].dtype != found[name].dtype:
            return f"{name} is {found[name].dtype}, not {wanted[name].dtype}"
    return None


def copy_bundle(source: Folder, target: Folder) -> None:
    """Copy a bundle and verify its files; the target becomes valid once it is complete."""
    manifest, files = open_sealed(source)
    seal(target, files, manifest.facts)


def restored(config: ModelConfig, vocabulary: Vocabulary, weights: dict[str, Tensor]) -> Model:
    """Build a model for inference from weights in memory."""
    model = config.build(vocabulary.catalog)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def refill(model: Model, weights: dict[str, Tensor]) -> None:
    """Give a model other weights, without copying those that are where it is.

    Args:
        model: A `restored` one.
        weights: Of the same names and shapes; not to be changed while the model is in use.
    """
    for name, held in model.state_dict(keep_vars=True).items():
        held.data = weights[name].to(held.device, held.dtype)
