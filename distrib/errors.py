"""Every exception that distrib raises on purpose."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any


class DistribError(Exception):
    """Base of the family; takes one message that says what, the value, where, and the remedy."""


class ConfigError(DistribError):
    """A run file, a setting or a combination of settings makes no sense."""


class DataError(DistribError):
    """A rating log, a prepared data set or a history cannot be used as it is."""


class CheckpointError(DistribError):
    """A run folder, checkpoint or bundle is absent, incomplete, altered or of another run."""


class DivergedError(DistribError):
    """Training produced a number that is not finite."""


class MemoryLimitError(DistribError):
    """A computation does not fit into memory."""


class WorkersLostError(DistribError):
    """More workers were lost than training was told to survive."""


class StoppedError(DistribError):
    """Training was told to stop; it has kept its place, and the same command goes on."""


class JobTrackingLostError(DistribError):
    """A job that was submitted cannot be seen any longer; it may go on."""


def raise_all(faults: Sequence[DistribError]) -> None:
    """Raise one error that lists all faults; do nothing where there is none.

    Args:
        faults: What was found. The error is a `ConfigError` unless all are of one other class.

    Raises:
        DistribError: There is a fault.
    """
    if not faults:
        return
    kinds = {type(fault) for fault in faults}
    kind = kinds.pop() if len(kinds) == 1 else ConfigError
    if len(faults) == 1:
        raise faults[0]
    listing = "\n  ".join(str(fault) for fault in faults)
    raise kind(f"{len(faults)} fault(s)\n  {listing}")


def run_checks(*checks: Callable[[], object]) -> None:
    """Run all checks, and raise what they found at once; see `raise_all`.

    Args:
        *checks: Each raises `DistribError` where something is wrong.
    """
    faults: list[DistribError] = []
    for check in checks:
        try:
            check()
        except DistribError as error:
            faults.append(error)
    raise_all(faults)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that led to it; Ray wraps what tasks and workers raised."""
    pending: list[Any] = [error]
    seen: set[int] = set()
    while pending:
        found = pending.pop()
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        pending += [found.__context__, found.__cause__, getattr(found, "cause", None)]
        pending += list(getattr(found, "worker_failures", {}).values())
        pending.append(getattr(found, "controller_failure", None))


def known(error: BaseException) -> DistribError | None:
    """Return the error of ours that led to one of Ray's, or None."""
    found = [cause for cause in causes(error) if isinstance(cause, DistribError)]
    # Ray makes classes of its own from ours, with a traceback for a message; ours is in them.
    return next((e for e in found if type(e).__module__ == __name__), next(iter(found), None))
