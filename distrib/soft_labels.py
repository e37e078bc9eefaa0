"""Soft labels: for each user a distribution over a few items, kept sparse."""

import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from distrib.batch import Batch
from distrib.config import JsonObject, PlainName, Record, read_record
from distrib.errors import DataError
from distrib.storage import Folder

COLUMNS = ["number", "items", "weights"]
"""Columns that training reads: the user's number in the prepared data, positions of items, and
weights that add up to 1."""

RATINGS = "ratings"
"""Column of the ratings to impute, where the log has ratings."""

_SUCCESS = "_SUCCESS"  # written last


class _File(Record):
    name: PlainName
    sha256: str


class LabelManifest(Record):
    """What training needs of the manifest of a folder of soft labels."""

    recipe: JsonObject
    files: tuple[_File, ...]

    @property
    def data(self) -> str:
        """Hash of the prepared dataset whose users and items the numbers are."""
        return str(self.recipe["data"])

    @property
    def targets(self) -> str:
        """What a user's targets are: ``last`` or ``history``; see `targets_of`."""
        return str(self.recipe["targets"])

    @property
    def has_ratings(self) -> bool:
        """Whether there is a column of ratings to impute."""
        return bool(self.recipe["has_ratings"])

    @property
    def digest(self) -> str:
        """Digest of the content of all files."""
        found = sorted((file.name, file.sha256) for file in self.files)
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def label_manifest(url: str) -> LabelManifest:
    """Read the manifest of a folder of soft labels.

    Args:
        url: Path or URL of the folder.

    Returns:
        The manifest.

    Raises:
        DataError: There is none, or it is not one of soft labels.
    """
    folder = Folder(url)
    if not folder.exists(_SUCCESS):
        raise DataError(f"{folder}: no {_SUCCESS}, so no complete soft labels; run distrib soften")
    found = read_record(LabelManifest, folder.read_json(_SUCCESS), folder / _SUCCESS)
    if "soften" not in found.recipe:
        raise DataError(f"{folder}: holds no soft labels; set the folder that distrib soften wrote")
    return found


def label_table(url: str, columns: list[str]) -> pa.Table:
    """Read a folder that `distrib soften` wrote.

    Args:
        url: Path or URL of the folder.
        columns: Columns to read.

    Returns:
        A row for each user with a label.

    Raises:
        DataError: The folder is not complete or was changed, or lacks a column.
    """
    folder, tables = Folder(url), []
    for file in label_manifest(url).files:
        content = folder.read(file.name)
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise DataError(
                f"{folder / file.name}: differs from its digest in {_SUCCESS}; run distrib soften "
                "into a new folder"
            )
        parquet = pq.ParquetFile(io.BytesIO(content))
        absent = [name for name in columns if name not in parquet.schema_arrow.names]
        if absent:
            raise DataError(
                f"{folder / file.name}: has no column(s) {absent}; soft labels have ratings if "
                "distrib soften propagates those of an autoencoder on a log with ratings"
            )
        tables.append(parquet.read(columns=columns))
    return pa.concat_tables(tables)


class SoftLabels:
    """The soft labels of all users, in memory.

    Args:
        labels: A row for each user number from 0; users without a label have an empty row.
    """

    def __init__(self, labels: Batch) -> None:
        last = labels.pointer_P[-1:]  # an empty row, which index -1 selects
        self._labels = labels._replace(
            user_B=torch.cat([labels.user_B, labels.user_B.new_full((1,), -1)]),
            pointer_P=torch.cat([labels.pointer_P, last]),
        )

    @classmethod
    def open(cls, url: str) -> "SoftLabels":
        """Read a folder that `distrib soften` wrote.

        Args:
            url: Path or URL of the folder.

        Returns:
            The labels.

        Raises:
            DataError: The folder is not complete.
        """
        return cls.from_table(label_table(url, COLUMNS))

    @classmethod
    def from_table(cls, table: pa.Table, value: str = "weights") -> "SoftLabels":
        """Return the labels of a table with `COLUMNS`, in any order of users.

        Args:
            table: The table.
            value: Column of the entries' values.

        Returns:
            The labels.
        """
        number_B = table["number"].to_numpy()
        length_B = np.zeros(int(number_B.max(initial=-1)) + 1, np.int64)
        table = table.take(pa.array(np.argsort(number_B, kind="stable")))
        lists = [table[name].combine_chunks() for name in ("items", value)]
        length_B[np.sort(number_B)] = lists[0].value_lengths().to_numpy()
        item_N, weight_N = (torch.from_numpy(part.flatten().to_numpy().copy()) for part in lists)
        pointer_P = torch.from_numpy(np.concatenate([[0], length_B.cumsum()]))
        return cls(Batch(torch.arange(len(length_B)), pointer_P, item_N, weight_N))

    def of(self, user_B: Tensor) -> Batch:
        """Return the labels of some users.

        Args:
            user_B: Numbers in the prepared data; those without a label get an empty row.

        Returns:
            A row for each; ``value_N`` are the weights.
        """
        if self._labels.item_N.device != user_B.device:
            self._labels = self._labels.to(user_B.device)
        last = self._labels.num_users - 1
        row_B = torch.where((user_B < 0) | (user_B > last), last, user_B)
        found = self._labels.chosen(row_B)
        return found._replace(user_B=user_B, item_N=found.item_N.long())


def joined(target: Batch, label: Batch) -> tuple[Batch, Tensor, Tensor]:
    """Join targets and sparse labels: the entries of either, each once.

    Args:
        target: The targets.
        label: Soft labels of the same rows.

    Returns:
        The entries by row, whether each is a target, and the weight of each in the label.
    """
    stride, own_N, soft_N = _keys(target, label)
    key_N = torch.unique(torch.cat([own_N, soft_N]))
    row_N, item_N = torch.div(key_N, stride, rounding_mode="floor"), key_N % stride
    pointer_P = torch.searchsorted(row_N, torch.arange(target.num_users + 1, device=row_N.device))
    weight_N = torch.zeros(len(key_N), device=key_N.device)
    weight_N[torch.searchsorted(key_N, soft_N)] = label.value_N
    is_target_N = torch.zeros(len(key_N), dtype=torch.bool, device=key_N.device)
    is_target_N[torch.searchsorted(key_N, own_N)] = True
    return Batch(target.user_B, pointer_P, item_N, weight_N), is_target_N, weight_N


def without(label: Batch, target: Batch) -> Tensor:
    """Return which entries of sparse labels are no targets of their row."""
    _, own_N, soft_N = _keys(target, label)
    return ~torch.isin(soft_N, own_N)


def _keys(target: Batch, label: Batch) -> tuple[int, Tensor, Tensor]:
    """Return a number for each row and item, of targets and of labels, and the step of rows."""
    stride = int(torch.cat([target.item_N, label.item_N, target.item_N.new_zeros(1)]).max()) + 1
    return stride, target.row_N * stride + target.item_N, label.row_N * stride + label.item_N
