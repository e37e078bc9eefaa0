"""Row validation: from raw columns to interactions and a status per row."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distrib.data.arrow import whole
from distrib.data.logs.layout import Layout
from distrib.data.logs.parse_values import BoolArray, is_among, parse_times
from distrib.data.logs.rating_scale import Scale
from distrib.data.schema import Status, interactions
from distrib.ids import id_column, is_null


class Checked(NamedTuple):
    """Result of validating a raw table."""

    kept: pa.Table
    """`schema.interactions`, ``shard`` still 0."""

    status_N: npt.NDArray[np.int8]
    """A `Status` for each input row."""


def checked(raw: pa.Table, layout: Layout, scale: Scale, order_N: Any, origin: int) -> Checked:
    """Turn raw columns (text or typed) into interactions.

    Args:
        raw: The columns that the layout names.
        layout: Layout of the log.
        scale: The rating scale.
        order_N: Position of each row in the log, int64; used in place of missing times.
        origin: An `Origin`.

    Returns:
        The valid rows, and the status of every row.
    """
    columns, num_rows = layout.columns, len(raw)
    status_N = np.zeros(num_rows, dtype=np.int8)

    def reject(bad_N: BoolArray, reason: Status) -> None:
        if bad_N.any():
            status_N[bad_N & (status_N == Status.KEPT)] = reason

    for name, wanted in layout.where:
        reject(~is_among(raw[name], wanted), Status.LEFT_OUT_BY_WHERE)
    ids = []
    for name in (columns.user, columns.item):
        found = id_column(raw[name], layout.id_kind)
        reject(~found.is_given_N, Status.MISSING_ID)
        reject(~found.is_text_N, Status.NOT_UTF8)
        reject(is_null(found.ids), Status.ID_NOT_AN_INTEGER)
        ids.append(found.ids)
    rating_N = np.ones(num_rows, dtype=np.float32)
    if columns.rating is not None:
        rating_N, is_unrated_N = scale.read(raw[columns.rating])
        reject(is_unrated_N, Status.NOT_RATED)
        reject(~np.isfinite(rating_N), Status.RATING_NOT_A_NUMBER)
        reject(~scale.holds(rating_N), Status.RATING_OUTSIDE_SCALE)
    time_N = np.asarray(order_N, dtype=np.int64)
    if columns.time is not None:
        is_absent_N = is_null(whole(raw[columns.time]))
        time_N, is_time_N = parse_times(raw[columns.time], layout.time_unit, layout.time_format)
        reject(~is_time_N & ~is_absent_N, Status.TIME_NOT_A_TIME)
    good_N = status_N == Status.KEPT
    whole_table = pa.table(
        [
            *ids,
            pa.array(rating_N),
            pa.array(time_N),
            pa.array(status_N),
            pa.array(np.full(num_rows, origin, np.int8)),
            pa.array(np.zeros(num_rows, np.int32)),
        ],
        schema=interactions(layout.id_type),
    )
    return Checked(whole_table if good_N.all() else whole_table.filter(pa.array(good_N)), status_N)
