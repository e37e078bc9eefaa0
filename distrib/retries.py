"""Repeat operations of a store that may succeed later."""

import time
from collections.abc import Callable
from typing import TypeVar

from distrib.errors import DataError
from distrib.storage import FULL

T = TypeVar("T")


def may_pass(error: DataError) -> bool:
    """Return whether a store's failure may be transient, so that a retry can help."""
    cause = error.__cause__
    lasting = FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError
    if cause is None or isinstance(cause, lasting):
        return False
    return isinstance(cause, Exception) and getattr(cause, "errno", None) not in FULL


def with_retries(
    action: Callable[[], T], *, timeout_s: float, on_retry: Callable[[str], None] = lambda _: None
) -> T:
    """Run a store operation; retry failures with exponential backoff.

    Args:
        action: Called on each attempt; may raise `DataError`.
        timeout_s: Time limit for retries, in seconds.
        on_retry: Receives each error message before the wait.

    Returns:
        What ``action`` returned.

    Raises:
        DataError: The last failure; immediately if a retry cannot help (denied, full, missing).
    """
    started_s, wait_s = time.monotonic(), 0.5
    while True:
        try:
            return action()
        except DataError as error:
            if not may_pass(error) or time.monotonic() - started_s + wait_s > timeout_s:
                raise
            on_retry(str(error))
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, 30.0)
