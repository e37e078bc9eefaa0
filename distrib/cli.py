"""Shared by all jobs: arguments, the connection to Ray, the result line, the exit code."""

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
import torch
from pydantic import SecretStr

from distrib.cluster.quiet import quiet
from distrib.cluster.resources import OWN_CLUSTER
from distrib.config import JsonObject, Record, load
from distrib.errors import ClusterError, ConfigError, DistribError, StoppedError, excerpt, known
from distrib.events import emit, is_terminal, own_standard_output, pointed
from distrib.redaction import redacted
from distrib.renamed import RenamedWarning
from distrib.run_file import RunFile
from distrib.serve.client import Endpoint, score_through
from distrib.terminal import result_lines, standard_error

if TYPE_CHECKING:
    from ray.serve import Application

if not torch.cuda.is_available():  # else DeepSpeed prints a warning in each process
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

_WORKERS_PER_CORE = 4
STOPPED = 75
"""Exit code of a run that stopped on request; EX_TEMPFAIL of sysexits.h: retry later."""

UNEXPECTED = 70
"""Exit code of an error that nothing foresaw; EX_SOFTWARE of sysexits.h."""

_LONGEST_MESSAGE = 8000
_RERUN = "rerun the same command to continue"

Result = Record | JsonObject | str
"""What a job returns; printed as JSON on the last line, text as it is."""


class Job(NamedTuple):
    """What a job checks before Ray starts, and what it does."""

    check: Callable[[Any], object]
    run: Callable[[Any], Result]
    read: Callable[[str, Sequence[str]], object] | None = None
    """Reads the file of ``--config`` with the settings of ``--set``; a run file by default."""

    when_stopped: str = _RERUN
    """What to say when a signal ends it."""


class Plan(NamedTuple):
    """What a job would do."""

    reads: Sequence[str]
    """Paths and URLs."""

    writes: Sequence[str]
    needs: Mapping[str, object]
    """What the cluster must have."""


class _Terminated(BaseException):
    """SIGTERM was received."""


def _terminated(_number: int, _frame: object) -> None:
    raise _Terminated


def job(name: str, found: Job, plan: Callable[[Any], Plan], arguments: list[str]) -> int:
    """Run a job from the command line.

    The result is one JSON object on the last line of standard output, or some lines for people
    where that is a terminal; everything else goes to standard error.

    Args:
        name: Of the job.
        found: The job.
        plan: What it would do, for ``--dry-run``.
        arguments: Of the command line.

    Returns:
        The exit code: 0, 2 for an invalid configuration, 1 for any other known error, 75 when
        stopped on request with progress saved, 130 when interrupted, 143 when terminated.
    """
    parser = argparse.ArgumentParser(prog=f"distrib {name}")
    run_file_arguments(parser)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--log-file")
    given = parser.parse_args(arguments)

    def work() -> Result:
        config = (found.read or read_run_file)(given.config, given.set)
        if given.dry_run:
            return _dry_run(name, found, plan(config), config)
        found.check(config)
        with connected():
            signal.signal(signal.SIGTERM, _terminated)  # Ray has installed its own
            return found.run(config)

    log = os.devnull if given.quiet else given.log_file
    return run_and_report(work, None if given.dry_run else log, found.when_stopped)


def _dry_run(name: str, found: Job, plan: Plan, config: object) -> JsonObject:
    """Check what can be checked before the job; what is not there yet is named, not refused."""
    missing: list[str] = []
    try:
        found.check(config)
    except DistribError as error:
        missing = str(error).split("\n")
    shown = {"reads": list(plan.reads), "writes": list(plan.writes), "needs": dict(plan.needs)}
    return {"job": name, **shown, "not_ready": missing}


@contextmanager
def _standard_error_in(path: str | None) -> Iterator[None]:
    """Send all that goes to standard error to a file, from other processes, too; None: do not."""
    if path is None:
        yield
        return
    try:
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise ConfigError(f"--log-file {path}: cannot be written ({error.strerror})") from error
    sys.stderr.flush()
    with os.fdopen(log, "a"), pointed(2, at=log):
        try:
            yield
        except DistribError as error:
            sys.stderr.write(redacted(f"{type(error).__name__}: {error}\n"))
            raise


def through_endpoint(description: str, arguments: list[str] | None = None) -> int:
    """Score a folder of Parquet files through a server, from the command line.

    The token comes from the environment variable DISTRIB_TOKEN; process lists show arguments.

    Args:
        description: For ``--help``.
        arguments: Replace ``sys.argv``.

    Returns:
        The exit code; see `job`.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--url", required=True, help="server URL, e.g. http://localhost:8000")
    parser.add_argument("--histories", required=True, help="folder of Parquet files, path or URL")
    parser.add_argument("--output", required=True, help="folder for recommendations, path or URL")
    for field in ("model", "k", "users", "concurrency", "retry_s"):
        default = Endpoint._field_defaults[field]
        flag = f"--{field.replace('_', '-')}"
        parser.add_argument(flag, type=type(default), default=default, help="%(default)s")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="e.g. exclude_seen=false",
    )
    parser.add_argument("--wish", action="append", dest="option", help=argparse.SUPPRESS)
    given = vars(parser.parse_args(arguments))
    histories, output = given.pop("histories"), given.pop("output")
    options = dict(text.partition("=")[::2] for text in given.pop("option"))
    token = os.environ.get("DISTRIB_TOKEN") or None
    endpoint = Endpoint(**given, options=options, token=token)
    return run_and_report(lambda: score_through(endpoint, histories, output))


def environment() -> Mapping[str, str]:
    """Return the environment variables, which the library reads nowhere else."""
    return os.environ


def run_file_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--config`` and ``--set``."""
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="run file, e.g. configs/demo.toml"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override in TOML syntax",
    )


def serving(arguments: dict[str, str]) -> "Application":
    """Build the Ray Serve application; in ``serveConfigV2``: ``import_path: distrib.cli:serving``.

    Args:
        arguments: ``config``, the path of a run file.

    Returns:
        The application.

    Raises:
        ConfigError: The run file is invalid.
        CheckpointError: A model has no bundle.
    """
    from distrib.serve.deployment import (
        ServePlan,
        application,
    )  # slow import (1 s), only needed here

    file = read_run_file(arguments["config"])
    return application(ServePlan.of(file.run, file.data.prepared, file.serve))


def run_and_report(
    work: Callable[[], Result], log: str | None = None, when_stopped: str = _RERUN
) -> int:
    """Run a job; report its result or error, in one line for programs; return the exit code.

    Args:
        work: What to run.
        log: File for what goes to standard error meanwhile.
        when_stopped: What to say when a signal ends it.

    Returns:
        See `job`.
    """
    signal.signal(signal.SIGTERM, _terminated)
    try:
        with _standard_error_in(log), standard_error(), own_standard_output():
            result = work()
    except (KeyboardInterrupt, _Terminated, Exception) as error:
        return _ended(error, when_stopped)
    document = result.to_json() if isinstance(result, Record) else result
    sys.stdout.write(document if isinstance(document, str) else _result(document))
    return 0


def _ended(error: BaseException, when_stopped: str) -> int:
    """Report what ended a job; return the exit code."""
    # A signal that comes inside of Ray's core leaves it as the cause of a SystemError.
    cause = error.__cause__ if isinstance(error, SystemError) else error
    if isinstance(cause, KeyboardInterrupt):
        sys.stderr.write(f"interrupted; {when_stopped}\n")
        return 130
    if isinstance(cause, _Terminated):
        sys.stderr.write(f"terminated; {when_stopped}\n")
        return 143
    assert isinstance(error, Exception)  # the others are above
    return _failed(error)


def _result(document: JsonObject) -> str:
    text = json.dumps(document, default=str)
    return result_lines(json.loads(text)) if sys.stdout.isatty() else text + "\n"


def _report(message: str) -> None:
    shown = redacted(message)
    cut = "\n  (cut short)" if len(shown) > _LONGEST_MESSAGE else ""
    sys.stderr.write(shown[:_LONGEST_MESSAGE] + cut + "\n")


def _failed(error: Exception) -> int:
    """Report an error in one line; return the exit code."""
    plain = known(error)
    if plain is None:
        return _unexpected(error)
    message = str(plain).partition("\nFailed to apply UDF")[0]  # appended by Ray Data
    _report(f"{type(plain).__name__}: {message}")
    if plain is error and isinstance(plain, ConfigError):
        return 2
    return STOPPED if isinstance(plain, StoppedError) else 1


def _unexpected(error: Exception) -> int:
    """Report an error that nothing foresaw, in one line, with its traceback in a file."""
    trace = redacted("".join(traceback.format_exception(error)))
    with tempfile.NamedTemporaryFile(
        "w", prefix="distrib-", suffix=".log", delete=False, encoding="utf-8", errors="replace"
    ) as log:
        log.write(trace)
    what = excerpt(str(error), 300)
    _report(
        f"UnexpectedError: {type(error).__name__}: {what}; the traceback is in {log.name}; report "
        "it as a bug, or check what is special here (storage, memory, versions)"
    )
    return UNEXPECTED


def read_run_file(path: str | Path, overrides: Sequence[str] = ()) -> RunFile:
    """Read a run file, and the server's token from the environment; report earlier names.

    Args:
        path: The TOML file.
        overrides: Assignments in TOML syntax.

    Returns:
        The validated run file.

    Raises:
        ConfigError: The file or a setting is invalid; lists all faults.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RenamedWarning)
        file = load(RunFile, path, overrides=overrides, environment=os.environ)
    for one in caught:
        emit("renamed_setting", message=str(one.message))
    return _with_token(file)


def _with_token(file: RunFile) -> RunFile:
    """Take the server's token from the environment if the run file has none."""
    token = os.environ.get("DISTRIB_TOKEN")
    if not token or file.serve.token is not None:
        return file
    serve = file.serve.model_copy(update={"token": SecretStr(token)})
    return file.model_copy(update={"serve": serve})


@contextmanager
def connected() -> Iterator[None]:
    """Connect to a cluster as `connect` does, and shut down on exit; use one that runs already."""
    if ray.is_initialized():
        yield
        return
    connect()
    try:
        yield
    finally:
        ray.shutdown()


def connect() -> None:
    """Connect to the cluster in RAY_ADDRESS, or start a local one.

    Raises:
        ConfigError: The cluster in RAY_ADDRESS cannot be reached.
        ClusterError: No local one starts.
    """
    quiet()
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "0" if is_terminal() else "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # we handle SIGINT
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # of Tune, which cannot be silenced
    # Events report progress; without a dashboard, Ray's workers would log a line per second.
    silent = {
        "logging_level": logging.WARNING,
        "logging_config": ray.LoggingConfig(log_level="ERROR"),
    }
    if "RAY_ADDRESS" in os.environ:
        try:
            ray.init(**silent)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"RAY_ADDRESS = {os.environ['RAY_ADDRESS']}: cannot connect ({error}); start "
                "the cluster, or unset the variable to run on this machine"
            ) from error
    else:
        # Ray Data's shuffle has its own workers. With Ray's limit of one per core, each stage would
        # end the workers of the previous stage and wait seconds for new ones.
        limit = _WORKERS_PER_CORE * (os.cpu_count() or 1)
        os.environ.setdefault("RAY_num_workers_soft_limit", str(limit))
        try:
            ray.init("local", include_dashboard=False, namespace=OWN_CLUSTER, **silent)
        except Exception as error:  # Ray has no class for it
            raise ClusterError(
                f"Ray did not start on this machine ({error}); free memory, disk space or "
                "processors, then rerun the same command. Logs: ray/session_latest/logs in the "
                "folder for temporary files"
            ) from error
    ray.data.DataContext.get_current().raise_original_map_exception = True  # keep our messages
