"""Command lines of ``plan`` and ``submit``."""

import argparse
import json
from collections.abc import Mapping

from distrib.cli import run_and_report, run_file_arguments
from distrib.config import JsonObject, load
from distrib.distill.estimate import core_hours, labels_gb, node_gb
from distrib.errors import ConfigError, DistribError
from distrib.events import emit, table
from distrib.objectives.label_config import stored_path
from distrib.run_file import RunFile
from distrib.studies.config import StudyFile
from distrib.submit import kubernetes, ray_jobs
from distrib.submit.request import JOBS, JobResult, Request, require_shared, sizes_of
from distrib.submit.study import require_shared_study, whole_text
from distrib.training.preflight.estimate import GPUS, Estimate, estimate
from distrib.training.schemes.base import Sizes


class _OpenEnvironment(dict[str, str]):
    """Variables of the submitting machine: unset ones stay as ``${NAME}`` for the cluster."""

    def __contains__(self, _name: object) -> bool:
        return True


def _size_arguments(parser: argparse.ArgumentParser) -> None:
    for name in Sizes._fields:
        parser.add_argument(f"--{name}", type=int, help="size of the log, if not in the run file")
    parser.add_argument(
        "--gpu", choices=sorted(GPUS), help="estimate for this GPU, even if the run uses none; h100"
    )


def plan_run(
    description: str, environment: Mapping[str, str], arguments: list[str] | None = None
) -> int:
    """Print the memory and time estimate of a run, from the command line.

    Args:
        description: For ``--help``.
        environment: Variables that the run file may name.
        arguments: Instead of ``sys.argv``.

    Returns:
        The exit code, as of `job`.
    """
    parser = argparse.ArgumentParser(description=description)
    run_file_arguments(parser)
    _size_arguments(parser)
    given = parser.parse_args(arguments)

    def work() -> JsonObject:
        file = load(
            RunFile, given.config, overrides=given.set, environment=_OpenEnvironment(environment)
        )
        found = _estimated(file, given)
        if found is None:
            raise ConfigError(
                f"{file.data.prepared}: no prepared data is readable here; pass "
                "--users, --items and --interactions"
            )
        return found._asdict()

    return run_and_report(work)


def _estimated(file: RunFile, given: argparse.Namespace) -> Estimate | None:
    """Print and return the estimate of a run; None if its sizes are unknown."""
    asked = [getattr(given, name) for name in Sizes._fields]
    sizes = Sizes(*asked) if None not in asked else sizes_of(file)
    if sizes is None:
        return None
    if given.gpu and not file.train.use_gpu:
        file = file.model_copy(update={"train": file.train.model_copy(update={"use_gpu": True})})
    found = estimate(file.training(), sizes, given.gpu or "h100")
    lines = {**found.lines(), **_soft_labels(file, sizes.users)}
    table("Estimate", ["", ""], [[name, value] for name, value in lines.items()])
    return found


def _soft_labels(file: RunFile, num_users: int) -> dict[str, str]:
    """Return what soft labels take, if the run file sets how they are made."""
    learns = stored_path(file.objective) is not None
    if "soften" not in file.model_fields_set and not learns:
        return {}
    lines = {"soft labels": f"{core_hours(file.soften, num_users):.3g} core h"}
    width = getattr(file.model, "latent_width", None)
    if width is not None:
        lines["embeddings, each node"] = f"{node_gb(num_users, width):.3g} GB"
    if learns:
        most = f"at most {labels_gb(file.soften, num_users):.3g} GB"
        lines["soft labels, each training worker"] = most
    return lines


def _say_cost(file: RunFile, given: argparse.Namespace) -> None:
    """Print the estimate, or why there is none; a missing estimate does not block submission."""
    try:
        why = "" if _estimated(file, given) else "sizes of the log are unknown here; pass --users, "
    except DistribError as error:
        emit("not_planned", why=str(error))
        return
    if why:
        emit("not_planned", why=f"{why}--items and --interactions")


def _requested(given: argparse.Namespace, environment: Mapping[str, str]) -> Request:
    """Read and check what is submitted, and print what it needs."""
    known = _OpenEnvironment(environment)
    request = Request.of(given.job, given.config, given.set, given.name)
    if given.job == "study":
        study = load(StudyFile, given.config, overrides=given.set, environment=known)
        if given.address:
            require_shared_study(study)
        return request._replace(run_file=whole_text(request.run_file))
    file = load(RunFile, given.config, overrides=given.set, environment=known)
    if given.address:
        require_shared(file)
    _say_cost(file, given)
    return request._replace(uses_gpu=file.train.use_gpu)


def submission(
    description: str,
    environment: Mapping[str, str],
    arguments: list[str] | None = None,
) -> int:
    """Submit a job to a cluster and follow it, from the command line.

    Args:
        description: For ``--help``.
        environment: Variables that the run file may name.
        arguments: Instead of ``sys.argv``.

    Returns:
        The exit code of the job; 2 if it was rejected.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("job", choices=JOBS)
    run_file_arguments(parser)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--address", help="Ray dashboard, e.g. http://127.0.0.1:8265")
    where.add_argument("--overlay", help="kustomize overlay, e.g. k8s/overlays/gpu")
    parser.add_argument("--name", help="job name; default: job and time")
    parser.add_argument("--context", help="kubectl context")
    parser.add_argument("--no-wait", action="store_true", help="do not follow the job")
    parser.add_argument("--dry-run", action="store_true", help="validate and print, create nothing")
    _size_arguments(parser)
    given = parser.parse_args(arguments)
    code = 0

    def work() -> JobResult | str:
        nonlocal code
        request = _requested(given, environment)
        waits, dry = not given.no_wait, given.dry_run
        if given.overlay:
            target = kubernetes.Target(given.overlay, given.context)
            result = kubernetes.submit(request, target, waits=waits, dry=dry)
        elif dry:
            result = JobResult(job=request.name, status="not created")
        else:
            result = ray_jobs.submit(request, given.address, environment, waits=waits)
        code = result.exit_code or 0
        if result.manifests:
            return f"{result.manifests}{json.dumps(result.to_json())}\n"
        return result

    return run_and_report(work) or code
