"""The tables that prepare passes on and writes, and what the small integers in them mean."""

from enum import IntEnum

import pyarrow as pa


class Status(IntEnum):
    """What became of a row of the log; every row has exactly one."""

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

    @property
    def reason(self) -> str:
        """The name in reports: lower case, with spaces."""
        return self.name.lower().replace("_", " ")


DAMAGED = tuple(status for status in Status if Status.KEPT < status < Status.DUPLICATE)
"""Faults of the log itself, as against duplicates and filters that the run file asks for."""


class Role(IntEnum):
    """What an interaction is for; a model may be shown those of lower roles than it is asked."""

    INPUT = 0
    TRAIN_TARGET = 1
    VALID_TARGET = 2
    TEST_TARGET = 3


class Subset(IntEnum):
    """What a user is for; an entry-wise split has training users only."""

    TRAIN = 0
    VALID = 1
    TEST = 2


class Origin(IntEnum):
    """Which of the files of a given split a row comes from; all else is the log itself."""

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
"""One row per damaged row of the log; lines count from 1, in Parquet and matrices rows do."""


def interactions(id_type: pa.DataType) -> pa.Schema:
    """Return the schema of interactions on their way to histories.

    A row with another status than `Status.KEPT` stands for ``time`` rows of the log that went that
    way, so that what is rejected costs nothing to move; its other columns are null or 0.
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
    """Return the schema of one row per user, interactions in order of time."""
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
    """Return the schema of one row per item of the vocabulary, in the order of positions.

    ``users`` are numbers as in `collate.Rows`, ``subsets`` what these users are for.
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
    """Return a list column without nulls, which decodes half again as fast as one with."""
    return pa.field(name, pa.list_(pa.field("element", kind, nullable=False)), nullable=False)
