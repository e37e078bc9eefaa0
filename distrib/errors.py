"""All exceptions that distrib raises."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any


class DistribError(Exception):
    """Base class; the message states the fault, the value, the location and the remedy."""


def excerpt(text: str, longest: int = 80) -> str:
    """Return text of a file as a message quotes it: one line, cut short."""
    plain = "".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in text[: longest + 1])
    return plain if len(text) <= longest else plain[:longest] + "..."


def listed(names: Sequence[str], most: int = 20) -> str:
    """Return some names of a file as a message quotes them."""
    shown = [excerpt(name, 40) for name in names[:most]]
    return f"{shown}" + (f" and {len(names) - most} more" if len(names) > most else "")


class ConfigError(DistribError):
    """A run file, a setting or a combination of settings is invalid."""


class DataError(DistribError):
    """A rating log, a prepared dataset or a history is invalid."""


class CheckpointError(DistribError):
    """A run folder, checkpoint or bundle is missing, incomplete, modified or from another run."""


class TakenOverError(DistribError):
    """A later start of a job writes into its folder."""


class DivergedError(DistribError):
    """Training diverged: a number is not finite, or the loss exploded."""


class MemoryLimitError(DistribError):
    """A computation does not fit in memory."""


class ClusterError(DistribError):
    """Ray did not start on this machine."""


class WorkersLostError(DistribError):
    """More workers were lost than ``max_failures`` allows."""


class StoppedError(DistribError):
    """Training stopped on request and saved its progress; the same command resumes it."""


class JobTrackingLostError(DistribError):
    """A submitted job can no longer be tracked; it may still be running."""


def raise_all(faults: Sequence[DistribError]) -> None:
    """Raise one error that lists all faults; do nothing if there are none.

    Args:
        faults: The error is a `ConfigError` unless all faults share another class.

    Raises:
        DistribError: ``faults`` is not empty.
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
    """Run all checks, then raise all faults at once; see `raise_all`.

    Args:
        *checks: Each raises `DistribError` on a fault.
    """
    faults: list[DistribError] = []
    for check in checks:
        try:
            check()
        except DistribError as error:
            faults.append(error)
    raise_all(faults)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all its causes; Ray wraps errors of tasks and workers."""
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
    """Return the `DistribError` that caused a Ray error, or None."""
    found = [cause for cause in causes(error) if isinstance(cause, DistribError)]
    # Ray derives classes from ours with a traceback as message; prefer the original error.
    return next((e for e in found if type(e).__module__ == __name__), next(iter(found), None))
