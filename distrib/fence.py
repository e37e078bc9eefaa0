"""One writer to a folder: the latest start takes it over, and earlier ones then publish nothing."""

import uuid

from distrib.config import Record, read_record
from distrib.errors import TakenOverError
from distrib.storage import Folder

ATTEMPT = "attempt.json"
"""Names the start of a job that may write into its folder."""


class _Attempt(Record):
    token: str = ""


def take_over(folder: Folder, name: str = ATTEMPT) -> str:
    """Make this start the one that may write into a folder.

    Args:
        folder: The folder.
        name: Of the mark.

    Returns:
        The start's token, for `require_ours`.
    """
    token = uuid.uuid4().hex
    folder.write_json(name, {"token": token})
    return token


def require_ours(folder: Folder, token: str, name: str = ATTEMPT) -> None:
    """Refuse to write into a folder that a later start has taken over, or has finished.

    Args:
        folder: The folder.
        token: Of this start.
        name: Of the mark.

    Raises:
        TakenOverError: This start is not the latest.
    """
    is_there = folder.exists(name)
    if not is_there or read_record(_Attempt, folder.read_json(name), folder / name).token != token:
        raise TakenOverError(
            f"{folder}: a later start of this job has taken it over, or has finished; this one "
            "writes nothing more. Give jobs that run at the same time folders of their own"
        )
