"""Training state independent of the world size: parameters and moments, in flat pieces.

Each rank writes the pieces it holds, whatever the engine and its ZeRO stage. A run with another
world size or engine reads back the pieces it needs. No pickle, no conversion.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from distrib.errors import CheckpointError

VALUE = "value"
"""Kind of the parameter itself; other kinds are optimizer state, named by the optimizer."""


class StatePiece(NamedTuple):
    """A contiguous range of one flattened parameter, with its optimizer state."""

    name: str
    """Name of the parameter in the model."""

    start: int
    """Index of its first element in the flattened parameter."""

    tensors: dict[str, Tensor]
    """float32, 1-D, of equal length, by kind; includes `VALUE`."""

    scalars: dict[str, float]
    """Scalar optimizer state, e.g. the update count."""

    def copied(self) -> "StatePiece":
        """Return a copy on the CPU that later updates do not touch."""
        copies = {kind: t.detach().to("cpu", copy=True) for kind, t in self.tensors.items()}
        return self._replace(tensors=copies)


def write_pieces(path: Path, pieces: Iterable[StatePiece]) -> None:
    """Write one rank's pieces into a safetensors file."""
    tensors, scalars = {}, {}
    for piece in pieces:
        scalars[piece.name] = piece.scalars
        for kind, tensor in piece.tensors.items():
            tensors[f"{kind}|{piece.start}|{piece.name}"] = tensor.detach().cpu().contiguous()
    save_file(tensors, path, {"scalars": json.dumps(scalars)})


class SavedState:
    """The pieces of all ranks, read lazily."""

    def __init__(self, folder: Path) -> None:
        self._pieces: dict[tuple[str, str], list[tuple[int, int, Path, str]]] = {}
        self._scalars: dict[str, dict[str, float]] = {}
        self._open: dict[Path, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._open[path] = file = safe_open(path, framework="pt")
            self._scalars |= json.loads(file.metadata()["scalars"])
            for key in file.keys():  # noqa: SIM118  not a mapping
                kind, start, name = key.split("|", 2)
                (length,) = file.get_slice(key).get_shape()
                self._pieces.setdefault((name, kind), []).append((int(start), length, path, key))

    def kinds(self, name: str) -> list[str]:
        """Return the kinds of optimizer state saved for a parameter."""
        return [kind for found, kind in self._pieces if found == name and kind != VALUE]

    def scalars(self, name: str) -> dict[str, float]:
        """Return the scalar optimizer state of a parameter."""
        return self._scalars.get(name, {})

    def read(self, name: str, kind: str, start: int, length: int) -> Tensor:
        """Return a range of a parameter's state, joined from the pieces that overlap it.

        Args:
            name: Name of the parameter.
            kind: `VALUE`, or one of `kinds`.
            start: First element.
            length: Number of elements.

        Returns:
            float32 ``[length]``.

        Raises:
            CheckpointError: The checkpoint does not cover the range.
        """
        result = torch.empty(length)
        covered = 0
        for low, size, path, key in self._pieces.get((name, kind), []):
            first, last = max(start, low), min(start + length, low + size)
            if first < last:
                piece = self._open[path].get_slice(key)[first - low : last - low]
                result[first - start : last - start] = piece
                covered += last - first
        if covered != length:
            raise CheckpointError(
                f"{kind} of {name}: the checkpoint holds {covered} of the {length} elements from "
                f"{start}; it belongs to another model, use a new run folder"
            )
        return result
