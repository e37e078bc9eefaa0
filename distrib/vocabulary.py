"""Items: original id <-> position, and training counts of each item."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from distrib.errors import DataError
from distrib.feedback import Feedback
from distrib.ids import IdKind, id_column, plain

IntArray = npt.NDArray[np.int64]

_LEVEL_TOLERANCE = 1e-4
_EXACT_IN_FLOAT32 = 200.0
_FEW = 8


def nearest_level(values: npt.NDArray[Any], levels: Sequence[float]) -> IntArray:
    """Return the position of the nearest rating level; halfway values round down.

    Args:
        values: Ratings, none of them NaN.
        levels: Ascending.

    Returns:
        int64, one for each rating.
    """
    step = _even_step(levels)
    if step is not None:
        place = np.ceil((values.astype(np.float64) - levels[0]) / step - 0.5)
        return np.clip(place, 0, len(levels) - 1).astype(np.int64)
    middles = [(low + high) / 2 for low, high in pairwise(levels)]
    return np.searchsorted(np.asarray(middles), values.astype(np.float64), side="left")


def on_scale(values: npt.NDArray[Any], levels: Sequence[float]) -> npt.NDArray[np.bool_]:
    """Return whether each rating is one of the levels; NaN is not."""
    step = _even_step(levels)
    if step is not None:
        is_small = abs(levels[0]) + abs(levels[-1]) < _EXACT_IN_FLOAT32
        exact = values.dtype if is_small else np.dtype(np.float64)
        place = (values.astype(exact) - exact.type(levels[0])) / exact.type(step)
        with np.errstate(invalid="ignore"):  # infinity is not a level
            is_level = np.abs(place - np.rint(place)) < _LEVEL_TOLERANCE / step
        return np.asarray(is_level & (place > -0.5) & (place < len(levels) - 0.5))
    nearest = np.asarray(levels)[nearest_level(values, levels)]
    return np.asarray(np.abs(values - nearest) < _LEVEL_TOLERANCE)


def _even_step(levels: Sequence[float]) -> float | None:
    """Return the distance between levels if it is constant, which is faster than a search."""
    steps = {high - low for low, high in pairwise(levels)}
    return steps.pop() if len(steps) == 1 else None


class Catalog(NamedTuple):
    """What a model is built from: item counts and the rating scale."""

    item_count: int
    levels: tuple[float, ...]
    """Rating levels, ascending; one level for a log without ratings."""

    train_count_IL: IntArray
    """Training interactions of each item at each level."""

    num_users: int
    """Training users."""

    user_index_size: int = 0
    """One more than the largest user number, for models with a row per user."""

    feedback: Feedback | None = None
    """Which ratings are likes and dislikes; None for a log without two signs."""


class LogFacts(NamedTuple):
    """What holds of all interactions of a log."""

    feedback: Feedback | None = None
    """Which ratings are likes and dislikes; None for a log without two signs."""

    has_repeats: bool = False
    """Whether a history may hold an item more than once; see ``data.cleaning.duplicates``."""


PLAIN_LOG = LogFacts()


class Vocabulary:
    """Original item ids in the order of their positions, with training counts by rating level."""

    def __init__(
        self,
        ids: pa.Array,
        levels: tuple[float, ...],
        train_count_IL: IntArray,
        num_users: int,
        user_index_size: int = 0,
        facts: LogFacts = PLAIN_LOG,
    ) -> None:
        if len(ids) != len(train_count_IL):
            raise DataError(
                f"vocabulary: {len(ids)} ids, counts of {len(train_count_IL)} items; run prepare "
                "again"
            )
        self.ids = ids
        self.levels = levels
        self.train_count_IL = train_count_IL
        self.num_users = num_users
        self.user_index_size = user_index_size
        self.facts = facts

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids and levels: equal when positions mean the same items."""
        digest = hashlib.sha256(repr((str(self.ids.type), self.levels)).encode())
        digest.update("\0".join(map(str, self.ids.to_pylist())).encode())
        return digest.hexdigest()

    @cached_property
    def _index(self) -> pd.Index:
        """Index for lookups of a few ids, built once rather than hashing all items each time."""
        kind = np.int64 if self.id_kind == "int" else object
        return pd.Index(self.ids.to_numpy(zero_copy_only=False), dtype=kind)

    @cached_property
    def _is_of_numbers(self) -> bool:
        """Whether the ids are numbers written as text, without leading zeros that numbers lack."""
        is_number = pc.match_substring_regex(self.ids.cast(pa.string()), r"^-?(0|[1-9]\d*)$")
        return bool(pc.all(is_number, min_count=0).as_py())

    @property
    def id_kind(self) -> IdKind:
        """Whether the ids are integers or text."""
        return "int" if pa.types.is_integer(self.ids.type) else "string"

    @property
    def catalog(self) -> Catalog:
        """What models are built from."""
        return Catalog(
            len(self),
            self.levels,
            self.train_count_IL,
            self.num_users,
            self.user_index_size,
            self.facts.feedback,
        )

    @property
    def users(self) -> Catalog:
        """What a model of item histories is built from: its columns are users.

        Each user has the counts of all items, so that each mean is the mean of all ratings.
        """
        count_UL = np.broadcast_to(
            self.train_count_IL.sum(0), (self.user_index_size, len(self.levels))
        )
        return Catalog(self.user_index_size, self.levels, count_UL, len(self))

    @property
    def sign_counts(self) -> dict[str, int]:
        """Training interactions that are likes, dislikes, or neither; empty without feedback."""
        if self.facts.feedback is None:
            return {}
        sign_L = self.facts.feedback.sign(np.asarray(self.levels, dtype=np.float32))
        count_L = self.train_count_IL.sum(0)
        names = {"likes": 1, "dislikes": -1, "without_sign": 0}
        return {name: int(count_L[sign_L == sign].sum()) for name, sign in names.items()}

    def positions(self, ids: pa.Array) -> IntArray:
        """Return the position of each id, -1 where the vocabulary does not hold it.

        Args:
            ids: Original item ids, of any type that `id_column` reads.

        Returns:
            int64, one for each id.

        Raises:
            DataError: The ids are text and the vocabulary's are numbers, or the other way round
                and some of the vocabulary's are not the text of a number.
        """
        if not len(ids):  # frames without rows have columns of any type
            return np.zeros(0, np.int64)
        found = plain(ids)
        is_text = pa.types.is_string(found.type)
        is_int = self.id_kind == "int"
        is_wrong = is_int if is_text else not (is_int or self._is_of_numbers)
        if is_wrong and not pa.types.is_null(ids.type):
            raise DataError(
                f"item ids are {ids.type}, but the vocabulary holds {self.ids.type}, such as "
                f"{self.ids[0].as_py()!r}; cast the column to the type that the training log had"
            )
        if not is_text or self.id_kind == "int":
            found = id_column(found, self.id_kind).ids
        ids = found
        if len(ids) * _FEW < len(self) and not ids.null_count:
            few = ids.to_numpy(zero_copy_only=False)
            return np.asarray(self._index.get_indexer(few), dtype=np.int64)
        found = pc.index_in(ids.cast(self.ids.type), value_set=self.ids)
        return np.asarray(found.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)

    def to_table(self) -> pa.Table:
        """Return the vocabulary as a table to store."""
        counts = pa.FixedSizeListArray.from_arrays(
            pa.array(self.train_count_IL.reshape(-1), pa.int64()), len(self.levels)
        )
        table = pa.table({"item": self.ids, "train_count": counts})
        metadata = {
            "levels": ",".join(map(repr, self.levels)),
            "num_users": str(self.num_users),
            "user_numbers": str(self.user_index_size),
        }
        if self.facts.feedback is not None:
            metadata["feedback"] = ",".join(map(repr, self.facts.feedback))
        if self.facts.has_repeats:
            metadata["has_repeats"] = "true"
        return table.replace_schema_metadata(metadata)

    @classmethod
    def from_table(cls, table: pa.Table) -> "Vocabulary":
        """Read a table that `to_table` returned."""
        metadata = table.schema.metadata or {}
        if b"levels" not in metadata:
            raise DataError("items.parquet has no rating levels; it was not written by prepare")
        levels = tuple(float(text) for text in metadata[b"levels"].decode().split(","))
        counts = table["train_count"].combine_chunks()
        flat = (counts.chunk(0) if isinstance(counts, pa.ChunkedArray) else counts).flatten()
        ids = table["item"].combine_chunks()
        return cls(
            ids.chunk(0) if isinstance(ids, pa.ChunkedArray) else ids,
            levels,
            flat.to_numpy().reshape(-1, len(levels)),
            int(metadata[b"num_users"]),
            int(metadata.get(b"user_numbers", b"0")),
            LogFacts(
                Feedback(*map(float, metadata[b"feedback"].decode().split(",")))
                if b"feedback" in metadata
                else None,
                has_repeats=b"has_repeats" in metadata,
            ),
        )
