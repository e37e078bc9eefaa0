"""The tables that prepare passes on and writes, and what the small integers in them mean."""

from enum import IntEnum

import pyarrow as pa


class Status(IntEnum):
    """What became of a row of the log; every row has exactly one."""

    KEPT = 0
    MALFORMED = 1
    MISSING_ID = 2
    RATING_NOT_A_NUMBER = 3
    RATING_OUTSIDE_SCALE = 4
    TIME_NOT_A_NUMBER = 5
    DUPLICATE = 6
    NOT_ABOVE_THRESHOLD = 7
    USER_TOO_SHORT = 8
    ITEM_UNSEEN_IN_TRAINING = 9

    @property
    def reason(self) -> str:
        """The name in reports: lower case, with spaces."""
        return self.name.lower().replace("_", " ")


DAMAGED = (
    Status.MALFORMED,
    Status.MISSING_ID,
    Status.RATING_NOT_A_NUMBER,
    Status.RATING_OUTSIDE_SCALE,
    Status.TIME_NOT_A_NUMBER,
)
"""Faults of the log itself, as against duplicates and filters that the run file asks for."""


class Role(IntEnum):
    """What an interaction is for."""

    INPUT = 0
    VALID_TARGET = 1
    TEST_TARGET = 2


class Subset(IntEnum):
    """What a user is for; an entry-wise split has training users only."""

    TRAIN = 0
    VALID = 1
    TEST = 2


def interactions(id_type: pa.DataType) -> pa.Schema:
    """Return the schema of one row per line of the log, kept or not."""
    return pa.schema(
        [
            ("user", id_type),
            ("item", id_type),
            ("rating", pa.float32()),
            ("time", pa.int64()),
            ("status", pa.int8()),
            ("shard", pa.int32()),
        ]
    )


def histories(user_type: pa.DataType) -> pa.Schema:
    """Return the schema of one row per user, interactions in order of time."""
    return pa.schema(
        [
            ("user", user_type),
            ("subset", pa.int8()),
            ("items", pa.list_(pa.int32())),
            ("ratings", pa.list_(pa.float32())),
            ("times", pa.list_(pa.int64())),
            ("roles", pa.list_(pa.int8())),
        ]
    )
