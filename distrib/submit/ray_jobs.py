"""Submission to a Ray cluster through its dashboard address."""

import asyncio
import sys
import tempfile
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient

from distrib.errors import ConfigError, JobTrackingLostError
from distrib.events import emit
from distrib.submit.request import JobResult, Request

_SCRIPT = """import sys

from distrib.console import main

main(["{job}", *sys.argv[1:]])
"""


def submit(request: Request, address: str, *, waits: bool = True) -> JobResult:
    """Submit the job script and the run file, and stream the log to standard error.

    The package must be installed in the cluster image, which determines its version.

    Args:
        request: What to run.
        address: Dashboard URL, e.g. ``http://127.0.0.1:8265``; the token is RAY_AUTH_TOKEN.
        waits: Whether to follow the job to its end.

    Returns:
        ``job``; also ``status``, ``exit_code`` and ``result`` (the last line of the job) if
        followed.

    Raises:
        ConfigError: The address is unreachable, or the cluster rejects the job.
    """
    try:
        client = JobSubmissionClient(address)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "run.toml").write_text(request.run_file, encoding="utf-8")
            script = _SCRIPT.format(job=request.job)
            Path(folder, f"{request.job}.py").write_text(script, encoding="utf-8")
            client.submit_job(
                entrypoint=request.command(f"{request.job}.py", "run.toml"),
                submission_id=request.name,
                runtime_env={"working_dir": folder},
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else repr(error)
        raise ConfigError(
            f"--address {address}: {reason}; check that the cluster runs, the "
            "name is new, and RAY_AUTH_MODE and RAY_AUTH_TOKEN match the cluster"
        ) from error
    emit("submitted", job=request.name, address=address, stop=f"ray job stop {request.name}")
    if not waits:
        return JobResult(job=request.name)
    last = asyncio.run(_followed(client, request.name))
    return _ended(client, request.name, last)


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
