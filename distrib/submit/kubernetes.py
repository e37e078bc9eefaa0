"""Submits to Kubernetes: an overlay's RayJob with a name and a run file, by the user's kubectl."""

import copy
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from distrib.errors import ConfigError
from distrib.events import emit
from distrib.submit.request import Request

RUN_FILE = "/etc/distrib/run.toml"
"""Where pods find the run file."""

SCRIPTS = "/opt/distrib/jobs"
"""Where the image has the jobs."""

COMPONENT = "app.kubernetes.io/component"
_QUEUE = "kueue.x-k8s.io/queue-name"
_SHARED_RUN = "distrib-run"
_LAST = {"Complete", "Failed", "ValidationFailed"}
_POLL_S = 2.0
_EXIT_CODE = re.compile(r"exit code (\d+)")
Document = dict[str, Any]


class Target(NamedTuple):
    """Where it goes."""

    overlay: str
    """Folder of a kustomization."""

    context: str | None = None
    """Of kubectl; the current one when not given."""

    kubectl: str = "kubectl"


def manifests(request: Request, built: list[Document]) -> list[Document]:
    """Return the config map of the run file, and the RayJob that reads it.

    Args:
        request: What to run.
        built: All documents of the overlay.

    Returns:
        Both, ready to be sent.

    Raises:
        ConfigError: The overlay has no RayJob.
    """
    jobs = [document for document in built if document["kind"] == "RayJob"]
    if not jobs:
        raise ConfigError("--overlay: holds no RayJob; name one of k8s/overlays")
    wanted = [job for job in jobs if job["metadata"]["labels"].get(COMPONENT) == request.job]
    job = copy.deepcopy((wanted or jobs)[0])
    labels = {**job["metadata"]["labels"], COMPONENT: request.job}
    about = {"namespace": job["metadata"].get("namespace", "default"), "labels": labels}
    job["metadata"] = {**job["metadata"], **about, "name": request.name}
    spec = job["spec"]
    spec["entrypoint"] = request.command(f"{SCRIPTS}/{request.job}.py", RUN_FILE)
    spec["suspend"] = _QUEUE in labels  # Kueue lets it go when there is room
    cluster = spec["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        for volume in group["template"]["spec"]["volumes"]:
            if volume.get("configMap", {}).get("name") == _SHARED_RUN:
                volume["configMap"]["name"] = f"{request.name}-run"
    run = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**about, "name": f"{request.name}-run"},
        "data": {"run.toml": request.run_file},
    }
    return [run, job]


def submit(request: Request, target: Target, *, waits: bool, dry: bool) -> dict[str, Any]:
    """Build, check on the server, create, and follow to the end.

    Args:
        request: What to run.
        target: Where.
        waits: Whether to follow the job.
        dry: Whether to print the manifests, checked, and create nothing.

    Returns:
        ``job``, and where it was followed ``status`` and ``exit_code``.

    Raises:
        ConfigError: The overlay does not build, or the server refuses the manifests.
    """
    kubectl = _Kubectl(target)
    built = list(yaml.safe_load_all(kubectl.run("kustomize", target.overlay, bare=True)))
    made = manifests(request, [document for document in built if document])
    text = yaml.safe_dump_all(made, sort_keys=False)
    namespace = made[1]["metadata"]["namespace"]
    kubectl.run("create", "--dry-run=server", "--validate=strict", "-f", "-", given=text)
    if dry:
        sys.stdout.write(text)
        return {"job": request.name, "status": "not created"}
    kubectl.run("create", "-f", "-", given=text)
    _owned(kubectl, request.name, namespace)
    stop = f"kubectl delete rayjob {request.name} -n {namespace}"
    emit("submitted", job=request.name, namespace=namespace, stop=stop)
    if not waits:
        return {"job": request.name}
    return _followed(kubectl, request.name, namespace)


def _owned(kubectl: "_Kubectl", name: str, namespace: str) -> None:
    """Let the run file go with its job."""
    job = kubectl.read("rayjob", name, namespace)
    owner = {
        "apiVersion": job["apiVersion"],
        "kind": "RayJob",
        "name": name,
        "uid": job["metadata"]["uid"],
    }
    patch = json.dumps({"metadata": {"ownerReferences": [owner]}})
    where = ("configmap", f"{name}-run", "-n", namespace)
    kubectl.run("patch", *where, "--type", "merge", "--patch", patch)


def _followed(kubectl: "_Kubectl", name: str, namespace: str) -> dict[str, Any]:
    """Wait for the end, telling each change and passing the log on."""
    log: subprocess.Popen[bytes] | None = None
    state: Document = {}
    try:
        for state in _states(kubectl, name, namespace):
            if state.get("jobStatus") == "RUNNING" and log is None:
                log = kubectl.following("logs", "--follow", f"job/{name}", "-n", namespace)
        if state.get("jobDeploymentStatus") not in _LAST:
            raise ConfigError(f"{name}: was deleted while it was followed")
        if log is not None:
            log.wait(timeout=30)
    except subprocess.TimeoutExpired:
        pass  # the pod is gone before its log ended; the status says how
    finally:
        if log is not None and log.poll() is None:
            log.terminate()
    return _ended(name, state)


def _states(kubectl: "_Kubectl", name: str, namespace: str) -> Iterator[Document]:
    """Yield the status whenever it has changed; end with the job, or when it is gone."""
    last: Document = {}
    while last.get("jobDeploymentStatus") not in _LAST:
        found = kubectl.read("rayjob", name, namespace, "--ignore-not-found")
        if not found:
            return
        state = found.get("status", {})
        if state != last:
            told = {key: state.get(key) for key in ("jobDeploymentStatus", "jobStatus")}
            if told != {key: last.get(key) for key in told}:
                emit("job_state", job=name, **told)
            last = state
            yield state
        time.sleep(_POLL_S)


def _ended(name: str, state: Document) -> dict[str, Any]:
    status = state.get("jobStatus") or state["jobDeploymentStatus"]
    if state["jobDeploymentStatus"] == "Complete" and status == "SUCCEEDED":
        return {"job": name, "status": status, "exit_code": 0}
    why = f"{state.get('reason', '')} {state.get('message', '')}".strip()
    said = _EXIT_CODE.search(why)
    emit("job_failed", job=name, why=why[:2000])
    return {"job": name, "status": status, "exit_code": int(said[1]) if said else 1}


class _Kubectl:
    """The user's kubectl, with the user's rights."""

    def __init__(self, target: Target) -> None:
        self._program = target.kubectl
        self._context = ["--context", target.context] if target.context else []

    def run(self, *arguments: str, given: str | None = None, bare: bool = False) -> str:
        """Run it to its end and return what it says; refuse where it is not there, or fails."""
        command = [self._program, *([] if bare else self._context), *arguments]
        try:
            done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise ConfigError(
                f"{self._program}: not found; install kubectl, or submit to a Ray cluster with "
                "--address"
            ) from error
        if done.returncode:
            raise ConfigError(
                f"kubectl {' '.join(arguments[:3])}: {done.stderr.strip()[:2000]}; where the "
                "namespace or its accounts are absent, kubectl apply -k OVERLAY -l "
                f"{COMPONENT}=platform makes them"
            )
        return done.stdout

    def read(self, kind: str, name: str, namespace: str, *more: str) -> Document:
        """Return an object; nothing where it is not there and that was said to be no fault."""
        said = self.run("get", kind, name, "-n", namespace, "-o", "json", *more)
        found: Document = json.loads(said) if said.strip() else {}
        return found

    def following(self, *arguments: str) -> "subprocess.Popen[bytes]":
        """Start it with its output on standard error."""
        return subprocess.Popen([self._program, *self._context, *arguments], stdout=sys.stderr)
