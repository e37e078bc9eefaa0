"""Submission to a Ray cluster through its dashboard address."""

import asyncio
import logging
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

import distrib
from distrib.errors import ConfigError, JobTrackingLostError
from distrib.events import emit
from distrib.submit.request import JobResult, Request

_TOKEN_FILE = "~/.ray/auth_token"
"""Where Ray keeps the token of clusters that this user starts."""

_START = "start.sh"


def submit(
    request: Request, address: str, environment: Mapping[str, str], *, waits: bool = True
) -> JobResult:
    """Submit a job with its run file and this package, and stream the log to standard error.

    The package goes with the job, so that the cluster runs the version that checked the run file;
    what it depends on must be installed there.

    Args:
        request: What to run.
        address: Dashboard URL, e.g. ``http://127.0.0.1:8265``.
        environment: Where the token may be: RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH.
        waits: Whether to follow the job to its end.

    Returns:
        ``job``; also ``status``, ``exit_code`` and ``result`` (the last line of the job) if
        followed.

    Raises:
        ConfigError: The address is unreachable, or the cluster rejects the job.
    """
    logging.getLogger("ray").setLevel(logging.WARNING)  # events say what happens
    try:
        client = _client(address, environment)
        with tempfile.TemporaryDirectory() as folder:
            _fill(Path(folder), request)
            client.submit_job(
                entrypoint=shlex.join(["sh", _START, *request.arguments("run.toml")]),
                submission_id=request.name,
                runtime_env={"working_dir": folder},
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else repr(error)
        raise ConfigError(
            f"--address {address}: {reason}; check that the cluster runs, and the name is new"
        ) from error
    emit("submitted", job=request.name, address=address, stop=f"ray job stop {request.name}")
    if not waits:
        return JobResult(job=request.name)
    last = asyncio.run(_followed(client, request.name))
    return _ended(client, request.name, last)


def _client(address: str, environment: Mapping[str, str]) -> JobSubmissionClient:
    """Connect; with a token only where the cluster requires one."""
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        token, place = _token(environment)
        remedy = (
            "set RAY_AUTH_TOKEN to the cluster's token or RAY_AUTH_TOKEN_PATH to a file with it; "
            f"a cluster that you start on this machine keeps it in {_TOKEN_FILE}"
        )
        if not token:
            why = "the cluster requires a token, and none was found"
            raise ConfigError(f"--address {address}: {why}; {remedy}") from error
    try:
        return JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"})
    except AuthenticationError as error:
        why = f"the cluster refuses the token of {place}"
        raise ConfigError(f"--address {address}: {why}; {remedy}") from error


def _token(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the token and where it was found, in Ray's order; empty where there is none."""
    if environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"], "RAY_AUTH_TOKEN"
    place = environment.get("RAY_AUTH_TOKEN_PATH") or _TOKEN_FILE
    try:
        return Path(place).expanduser().read_text(encoding="utf-8").strip(), place
    except OSError:
        return "", place


def _fill(folder: Path, request: Request) -> None:
    """Write what the job needs into its working folder."""
    (folder / "run.toml").write_text(request.run_file, encoding="utf-8")
    package = Path(distrib.__file__).parent
    unneeded = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package, folder / package.name, ignore=unneeded)
    shutil.copy(Path(__file__).with_name(_START), folder)


async def _followed(client: JobSubmissionClient, name: str) -> str:
    """Stream the log; return its last line."""
    rest = ""
    async for piece in client.tail_job_logs(name):
        sys.stderr.write(piece)
        sys.stderr.flush()
        rest = (rest + piece).rstrip().rpartition("\n")[2] + ("\n" if piece.endswith("\n") else "")
    return rest.strip()


def _ended(client: JobSubmissionClient, name: str, last: str) -> JobResult:
    info = client.get_job_info(name)
    is_well = info.status == JobStatus.SUCCEEDED
    code = info.driver_exit_code
    if code is not None and code < 0:
        code = 128 - code  # killed by a signal
    if code is None and not is_well:
        raise JobTrackingLostError(
            f"{name}: {info.status}, {info.message}; rerun the same command to continue"
        )
    result = last if is_well else ""
    exit_code = 0 if is_well else code or 1
    return JobResult(job=name, status=str(info.status), exit_code=exit_code, result=result)
