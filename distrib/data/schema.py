"""Arrow schemas of prepare, and the enums stored in them."""

from enum import IntEnum

import pyarrow as pa


class Status(IntEnum):
    """Whether a row of the log is kept, or why not; every row has exactly one status."""

    KEPT = 0
    MALFORMED = 1
    NOT_UTF8 = 2
    MISSING_ID = 3
    ID_NOT_AN_INTEGER = 4
    RATING_NOT_A_NUMBER = 5
    RATING_OUTSIDE_SCALE = 6
    TIME_NOT_A_TIME = 7
    DUPLICATE = 8
    NOT_ABOVE_THRESHOLD = 9
    NOT_BELOW_THRESHOLD = 10
    USER_TOO_SHORT = 11
    ITEM_TOO_RARE = 12
    ALREADY_KNOWN = 13
    ITEM_UNSEEN_IN_TRAINING = 14
    LEFT_OUT_BY_WHERE = 15
    NOT_RATED = 16
    USER_REMOVED = 17

    @property
    def reason(self) -> str:
        """Name in reports: lower case, with spaces."""
        return self.name.lower().replace("_", " ")


DAMAGED = tuple(status for status in Status if Status.KEPT < status < Status.DUPLICATE)
"""Faults of the log itself, unlike duplicates and configured filters."""


class Role(IntEnum):
    """Use of an interaction; a model may read roles lower than that of the targets."""

    INPUT = 0
    TRAIN_TARGET = 1
    VALID_TARGET = 2
    TEST_TARGET = 3


class Subset(IntEnum):
    """Use of a user; an entry-wise split has training users only."""

    TRAIN = 0
    VALID = 1
    TEST = 2


class Origin(IntEnum):
    """Which file of a given split a row comes from; the log itself in all other cases."""

    LOG = 0
    VALID_FILE = 1
    TEST_FILE = 2


QUARANTINE = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),
        ("reason", pa.string()),
        ("text", pa.string()),
    ]
)
"""One row per damaged row of the log; lines (rows in Parquet and matrices) count from 1."""


def interactions(id_type: pa.DataType) -> pa.Schema:
    """Return the schema of interactions before they are grouped into histories.

    A row whose status is not `Status.KEPT` represents ``time`` rejected rows of the log, so that
    rejected rows cost nothing to shuffle; its other columns are null or 0.
    """
    return pa.schema(
        [
            ("user", id_type),
            ("item", id_type),
            ("rating", pa.float32()),
            ("time", pa.int64()),
            ("status", pa.int8()),
            ("origin", pa.int8()),
            ("shard", pa.int32()),
        ]
    )


def histories(user_type: pa.DataType) -> pa.Schema:
    """Return the schema of one row per user, with interactions in time order."""
    return pa.schema(
        [
            pa.field("user", user_type, nullable=False),
            pa.field("subset", pa.int8(), nullable=False),
            _list("items", pa.int32()),
            _list("ratings", pa.float32()),
            _list("times", pa.int64()),
            _list("roles", pa.int8()),
        ]
    )


def item_histories(item_type: pa.DataType) -> pa.Schema:
    """Return the schema of one row per item of the vocabulary, in index order.

    ``users`` are user indices as in `HistoryArrays`, ``subsets`` the subsets of these users.
    """
    return pa.schema(
        [
            pa.field("item", item_type, nullable=False),
            _list("users", pa.int64()),
            _list("ratings", pa.float32()),
            _list("times", pa.int64()),
            _list("roles", pa.int8()),
            _list("subsets", pa.int8()),
        ]
    )


def _list(name: str, kind: pa.DataType) -> pa.Field:
    """Return a list column without nulls, which decodes about 1.5 times as fast as with nulls."""
    return pa.field(name, pa.list_(pa.field("element", kind, nullable=False)), nullable=False)
