"""Helpers for Arrow columns; must not import torch."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from distrib.errors import DataError

IntArray = npt.NDArray[np.int64]


def whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Join the chunks of a column."""
    if isinstance(column, pa.Array):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def without_views(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Return text or bytes as Arrow's functions know them; few know views."""
    if pa.types.is_string_view(column.type):
        return column.cast(pa.large_string())
    return column.cast(pa.large_binary()) if pa.types.is_binary_view(column.type) else column


def distinct(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return the distinct values of a column, ascending."""
    found = pc.unique(whole(column))
    return found.take(pc.sort_indices(found))


def to_numpy(column: pa.ChunkedArray | pa.Array) -> Any:
    """Copy a column into a writable NumPy array."""
    return np.array(
        column.to_numpy()
        if isinstance(column, pa.ChunkedArray)
        else column.to_numpy(zero_copy_only=False)
    )


def equals_next(column: pa.ChunkedArray) -> Any:
    """Return, for all rows but the last, whether the next one is equal; nulls are not."""
    joined = whole(column)
    return to_numpy(pc.equal(joined[:-1], joined[1:]).fill_null(False))


def flat_list(table: pa.Table, name: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Return row pointers from 0 and the flat values of a list column.

    Args:
        table: Table with the column.
        name: Name of the column.

    Returns:
        Pointers, int64, one more than rows; values in the type of the column's elements.

    Raises:
        DataError: The column has null rows or null values.
    """
    column = table[name]
    if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
        raise DataError(f"column {name!r} is {column.type}, not a list; store one list per user")
    if column.null_count:
        raise DataError(
            f"column {name!r} has {column.null_count} null list(s); write empty lists instead"
        )
    lengths, values = [], []
    for chunk in column.chunks:
        lengths.append(np.diff(chunk.offsets.to_numpy()))
        flat = chunk.flatten()  # .values would ignore slices
        if flat.null_count:
            raise DataError(f"column {name!r} has {flat.null_count} null value(s); remove them")
        values.append(flat.to_numpy(zero_copy_only=False))
    pointer = np.concatenate([[0], *lengths]).cumsum().astype(np.int64)
    return pointer, np.concatenate(values) if values else np.zeros(0)


def dense_ids(column: pa.ChunkedArray | pa.Array) -> IntArray:
    """Return the rank of each value among the distinct ones, from 0."""
    encoded = whole(column).dictionary_encode()
    rank = np.empty(len(encoded.dictionary), dtype=np.int64)
    order = to_numpy(pc.sort_indices(encoded.dictionary))
    rank[order] = np.arange(len(order))
    return np.asarray(rank[to_numpy(encoded.indices)])
