"""Training state that belongs to no number of ranks: parameters and moments, in flat pieces.

Each rank writes the pieces it holds, whatever the engine and its ZeRO stage; any number of ranks
with any engine reads back the parts that it needs. No pickle, no conversion.
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
"""Kind of the parameter itself; other kinds are the optimizer's, by its own names."""


class StatePiece(NamedTuple):
    """A stretch of one parameter, read as a flat array, with the optimizer's state of it."""

    name: str
    """Of the parameter in the model."""

    start: int
    """Place of its first element."""

    tensors: dict[str, Tensor]
    """float32, one dimension, equally long, by kind; `VALUE` is among them."""

    scalars: dict[str, float]
    """What the optimizer keeps as one number, e.g. its count of updates."""

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
    """The pieces of all ranks, read where they are wanted."""

    def __init__(self, folder: Path) -> None:
        self._pieces: dict[tuple[str, str], list[tuple[int, int, Path, str]]] = {}
        self._scalars: dict[str, dict[str, float]] = {}
        self._open: dict[Path, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._open[path] = file = safe_open(path, framework="pt")
            self._scalars |= json.loads(file.metadata()["scalars"])
            for key in file.keys():  # noqa: SIM118  it is no mapping
                kind, start, name = key.split("|", 2)
                (length,) = file.get_slice(key).get_shape()
                self._pieces.setdefault((name, kind), []).append((int(start), length, path, key))

    def kinds(self, name: str) -> list[str]:
        """Return the kinds of state that the optimizer kept of a parameter."""
        return [kind for found, kind in self._pieces if found == name and kind != VALUE]

    def scalars(self, name: str) -> dict[str, float]:
        """Return what the optimizer kept of a parameter as one number each."""
        return self._scalars.get(name, {})

    def read(self, name: str, kind: str, start: int, length: int) -> Tensor:
        """Return a stretch of a parameter's state, from however many pieces.

        Args:
            name: Of the parameter.
            kind: `VALUE`, or one of `kinds`.
            start: First element.
            length: Elements.

        Returns:
            float32 ``[length]``.

        Raises:
            CheckpointError: The checkpoint does not hold it.
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
                f"{start}; it is of another model, start in a new run folder"
            )
        return result
