"""Submission to Kubernetes: an overlay's RayJob with a name and a run file, through kubectl."""

import copy
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import yaml

from distrib.config import JsonObject
from distrib.errors import ConfigError, JobTrackingLostError
from distrib.events import emit
from distrib.submit.request import JobResult, Request

RUN_FILE = "/etc/distrib/run.toml"
"""Path of the run file in pods."""

SCRIPTS = "/opt/distrib/jobs"
"""Path of the job scripts in the image."""

COMPONENT = "app.kubernetes.io/component"
_QUEUE = "kueue.x-k8s.io/queue-name"
_SHARED_RUN = "distrib-run"
_LAST = {"Complete", "Failed", "ValidationFailed"}
_POLL_S = 2.0
_PATIENCE_S = 300.0
"""Time limit for an unresponsive cluster while following a job."""

_LAST_LINES_S = 30.0
"""Time that the log of a pod that has ended may take to its last line."""

_EXIT_CODE = re.compile(r"^Job entrypoint command failed with exit code (-?\d+)")
_GPU = "nvidia.com/gpu"
_KUBECTL = "kubectl"
_NO_PLATFORM = (
    "; if the namespace or its service accounts are missing, create them with kubectl apply -k "
    f"OVERLAY -l {COMPONENT}=platform"
)
Document = JsonObject


class Target(NamedTuple):
    """Overlay and cluster to submit to."""

    overlay: str
    """Kustomization folder."""

    context: str | None = None
    """kubectl context; the current one if not given."""


def manifests(request: Request, built: list[Document]) -> list[Document]:
    """Return the ConfigMap of the run file and the RayJob that mounts it.

    Args:
        request: What to run.
        built: All documents of the overlay.

    Returns:
        Both manifests.

    Raises:
        ConfigError: The overlay has no RayJob.
    """
    job = copy.deepcopy(_template(request.job, built))
    labels = {**job["metadata"]["labels"], COMPONENT: request.job}
    about = {"namespace": job["metadata"].get("namespace", "default"), "labels": labels}
    job["metadata"] = {**job["metadata"], **about, "name": request.name}
    spec = job["spec"]
    script, *given = request.arguments(RUN_FILE)
    spec["entrypoint"] = shlex.join(["python", f"{SCRIPTS}/{script}.py", *given])
    spec["suspend"] = _QUEUE in labels  # Kueue resumes it when resources are free
    for group in _groups(job):
        maps = [volume.get("configMap", {}) for volume in group["template"]["spec"]["volumes"]]
        shared = [found for found in maps if found.get("name") == _SHARED_RUN]
        if not shared:
            raise ConfigError(
                f"--overlay: pods of {request.job} do not mount the ConfigMap {_SHARED_RUN} and "
                "cannot read the run file; keep its volume"
            )
        shared[0]["name"] = f"{request.name}-run"
    run = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**about, "name": f"{request.name}-run"},
        "data": {"run.toml": request.run_file},
    }
    return [run, job]


def _template(job: str, built: list[Document]) -> Document:
    """Return the overlay's RayJob for a job, or build one from its RayCronJob."""
    for document in built:
        if document["kind"] not in {"RayJob", "RayCronJob"}:
            continue
        if document["metadata"]["labels"].get(COMPONENT) == job:
            spec = document["spec"].get("jobTemplate", document["spec"])
            if "rayClusterSpec" not in spec:
                raise ConfigError(
                    "--overlay: its jobs have no cluster; use an overlay of k8s/overlays, which "
                    "add components/shape"
                )
            return {**document, "kind": "RayJob", "spec": spec}
    raise ConfigError(f"--overlay: has no RayJob for {job!r}; use an overlay of k8s/overlays")


def _groups(job: Document) -> list[Document]:
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def _has_gpus(job: Document) -> bool:
    pods = [group["template"]["spec"] for group in _groups(job)]
    containers = [container for pod in pods for container in pod.get("containers", [])]
    return any(_GPU in found.get("resources", {}).get("limits", {}) for found in containers)


def submit(request: Request, target: Target, *, waits: bool, dry: bool) -> JobResult:
    """Build the manifests, validate them on the server, create the job, and follow it.

    Args:
        request: What to run.
        target: Where to run it.
        waits: Whether to follow the job.
        dry: Whether to only validate and print the manifests.

    Returns:
        ``job``; also ``status`` and ``exit_code`` if followed.

    Raises:
        ConfigError: The overlay does not build, or the server rejects the manifests.
    """
    kubectl = _Kubectl(target)
    built = list(yaml.safe_load_all(kubectl.run("kustomize", target.overlay, bare=True)))
    made = manifests(request, [document for document in built if document])
    if _has_gpus(made[1]) and not request.uses_gpu:
        emit("gpus_unused", why="the overlay has GPU workers; set train.use_gpu = true to use them")
    text = yaml.safe_dump_all(made, sort_keys=False)
    namespace = made[1]["metadata"]["namespace"]
    checks = ("create", "--dry-run=server", "--validate=strict", "-f", "-")
    kubectl.run(*checks, given=text, advice=_NO_PLATFORM)
    if dry:
        return JobResult(job=request.name, status="not created", manifests=text)
    kubectl.run("create", "-f", "-", given=text)
    _owned(kubectl, request.name, namespace)
    stop = f"kubectl delete rayjob {request.name} -n {namespace}"
    emit("submitted", job=request.name, namespace=namespace, stop=stop)
    if not waits:
        return JobResult(job=request.name)
    return _followed(kubectl, request.name, namespace)


def _owned(kubectl: "_Kubectl", name: str, namespace: str) -> None:
    """Make the RayJob own the ConfigMap, so that deleting the job deletes both."""
    try:
        job = kubectl.read("rayjob", name, namespace)
    except ConfigError as error:
        emit("not_owned", configmap=f"{name}-run", why=str(error)[:300])
        return
    owner = {
        "apiVersion": job["apiVersion"],
        "kind": "RayJob",
        "name": name,
        "uid": job["metadata"]["uid"],
    }
    patch = json.dumps({"metadata": {"ownerReferences": [owner]}})
    where = ("configmap", f"{name}-run", "-n", namespace)
    try:
        kubectl.run("patch", *where, "--type", "merge", "--patch", patch)
    except ConfigError as error:
        emit("not_owned", configmap=f"{name}-run", why=str(error)[:300])


def _followed(kubectl: "_Kubectl", name: str, namespace: str) -> JobResult:
    """Wait for the end; emit each status change and forward the log of every attempt."""
    log: subprocess.Popen[bytes] | None = None
    state: Document = {}
    try:
        for state in _states(kubectl, name, namespace):
            is_open = log is not None and log.poll() is None
            if state.get("jobStatus") == "RUNNING" and not is_open:
                since = [] if log is None else [f"--since={_POLL_S:.0f}s"]
                log = kubectl.following("logs", "--follow", *since, f"job/{name}", "-n", namespace)
            if state.get("jobDeploymentStatus") == "Retrying" and log is not None:
                _end(log, _LAST_LINES_S)
                log = None  # the next attempt has its own log
        if state.get("jobDeploymentStatus") not in _LAST:
            raise JobTrackingLostError(f"{name}: was deleted while being followed")
        if log is not None:
            _end(log, _LAST_LINES_S)
    finally:
        if log is not None:
            _end(log, 0.0)
    return _ended(name, state)


def _end(log: "subprocess.Popen[bytes]", patience_s: float) -> None:
    """Stop to forward a log, unless it comes to its last line in time."""
    try:
        log.wait(timeout=patience_s)
    except subprocess.TimeoutExpired:
        log.terminate()
        log.wait()


def _states(kubectl: "_Kubectl", name: str, namespace: str) -> Iterator[Document]:
    """Poll and yield the status until the job ends or is deleted."""
    shown: Document = {}
    state: Document = {}
    deadline = time.monotonic() + _PATIENCE_S
    while state.get("jobDeploymentStatus") not in _LAST:
        try:
            found = kubectl.read("rayjob", name, namespace, "--ignore-not-found")
        except ConfigError as error:
            if time.monotonic() > deadline:
                raise JobTrackingLostError(
                    f"{name}: is still running, but the cluster does not respond ({error}); "
                    f"run kubectl get rayjob {name} -n {namespace}"
                ) from error
            time.sleep(_POLL_S)
            continue
        if not found:
            return
        deadline = time.monotonic() + _PATIENCE_S
        state = found.get("status", {})
        now = {key: state.get(key) for key in ("jobDeploymentStatus", "jobStatus")}
        if now != shown:
            shown = now
            emit("job_state", job=name, **shown)
        yield state
        time.sleep(_POLL_S)


def _ended(name: str, state: Document) -> JobResult:
    status = state.get("jobStatus") or state["jobDeploymentStatus"]
    if state["jobDeploymentStatus"] == "Complete" and status == "SUCCEEDED":
        return JobResult(job=name, status=status, exit_code=0)
    message = str(state.get("message", ""))
    emit("job_failed", job=name, why=f"{state.get('reason', '')} {message}".strip()[:2000])
    said = _EXIT_CODE.search(message)
    code = int(said[1]) if said else 1
    exit_code = (128 - code if code < 0 else code) or 1
    return JobResult(job=name, status=status, exit_code=exit_code)


class _Kubectl:
    """kubectl with the user's permissions."""

    def __init__(self, target: Target) -> None:
        self._context = ["--context", target.context] if target.context else []

    def run(
        self, *arguments: str, given: str | None = None, bare: bool = False, advice: str = ""
    ) -> str:
        """Run kubectl and return its output; raise `ConfigError` if it is missing or fails."""
        command = [_KUBECTL, *([] if bare else self._context), *arguments]
        try:
            done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise ConfigError(
                f"{_KUBECTL}: not found; install kubectl, or submit to a Ray cluster with --address"
            ) from error
        if done.returncode:
            reason = done.stderr.strip()[:2000]
            raise ConfigError(f"kubectl {' '.join(arguments[:3])}: {reason}{advice}")
        return done.stdout

    def read(self, kind: str, name: str, namespace: str, *more: str) -> Document:
        """Return an object; empty if it is missing and ``--ignore-not-found`` is given."""
        said = self.run("get", kind, name, "-n", namespace, "-o", "json", *more)
        found: Document = json.loads(said) if said.strip() else {}
        return found

    def following(self, *arguments: str) -> "subprocess.Popen[bytes]":
        """Start kubectl with its output on standard error."""
        return subprocess.Popen([_KUBECTL, *self._context, *arguments], stdout=sys.stderr)
