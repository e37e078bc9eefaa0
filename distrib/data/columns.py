"""Arrow columns as single arrays, whatever pieces they come in."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Join the chunks of a column."""
    if isinstance(column, pa.Array):
        return column
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def to_numpy(column: pa.ChunkedArray | pa.Array) -> Any:
    """Copy a column into a NumPy array that may be written to."""
    return np.array(
        column.to_numpy()
        if isinstance(column, pa.ChunkedArray)
        else column.to_numpy(zero_copy_only=False)
    )


def equals_next(column: pa.ChunkedArray) -> Any:
    """Tell for all rows but the last whether the next one is the same; nulls are not."""
    joined = whole(column)
    return to_numpy(pc.equal(joined[:-1], joined[1:]).fill_null(False))
