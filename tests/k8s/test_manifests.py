"""The manifests: they build, every field is known, and what they name is there."""

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import kubernetes_validate
import promql_parser
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from distrib.config import load
from distrib.run_file import RunFile
from distrib.submit.request import JOBS
from tests.k8s.schemas import Schemas, pods

ROOT = Path(__file__).parents[2]
OVERLAYS = sorted(path.parent for path in (ROOT / "k8s/overlays").glob("*/kustomization.yaml"))
REFUSED = (jsonschema.ValidationError, kubernetes_validate.ValidationError, AssertionError)


def built(overlay):
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed, and builds the overlays")
    done = subprocess.run(["kubectl", "kustomize", str(overlay)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.load_all(done.stdout, yaml.CSafeLoader) if document]


@pytest.fixture(scope="session")
def schemas():
    folder = os.environ.get("DISTRIB_KUBERAY_CRDS")
    if not folder:
        pytest.skip("DISTRIB_KUBERAY_CRDS is not set; make kuberay-crds fetches them")
    return Schemas(Path(folder))


@pytest.fixture(scope="session")
def by_overlay():
    return {overlay.name: built(overlay) for overlay in OVERLAYS}


@pytest.fixture(scope="session")
def documents(by_overlay):
    return [document for found in by_overlay.values() for document in found]


def of_kind(documents, kind):
    return [document for document in documents if document["kind"] == kind]


def test_every_overlay_is_valid(by_overlay, schemas):
    assert set(by_overlay) >= {"local-cpu", "gpu", "kueue", "spot", "s3", "gcs", "azure"}
    for documents in by_overlay.values():
        for document in documents:
            schemas.check(document)


def _at(document, path):
    for step in path:
        document = document[step]
    return document


WRONG = {
    "ConfigMap": [()],
    "Namespace": [()],
    "ServiceAccount": [()],
    "Service": [("spec",)],
    "StatefulSet": [("spec",), ("spec", "template", "spec", "containers", 0)],
    "NetworkPolicy": [("spec",), ("spec", "ingress", 0)],
    "PersistentVolumeClaim": [("spec",)],
    "RayCluster": [("spec",), ("spec", "workerGroupSpecs", 0)],
    "RayJob": [
        ("spec",),
        ("spec", "rayClusterSpec"),
        ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec"),
        ("spec", "submitterPodTemplate", "spec", "containers", 0),
    ],
    "RayCronJob": [("spec",), ("spec", "jobTemplate")],
    "RayService": [("spec",), ("spec", "rayClusterConfig"), ("spec", "upgradeStrategy")],
    "PodMonitor": [("spec",), ("spec", "podMetricsEndpoints", 0)],
    "ServiceMonitor": [("spec",), ("spec", "endpoints", 0)],
    "PrometheusRule": [("spec",), ("spec", "groups", 0, "rules", 0)],
    "ResourceFlavor": [()],
    "ClusterQueue": [("spec",)],
    "LocalQueue": [("spec",)],
}


def misspelt(good, path):
    """The document with one more field at a place."""
    bad = copy.deepcopy(good)
    _at(bad, path)["replicsa"] = 1
    return bad


def mistyped(good, path):
    """The document with a text where an object should be."""
    bad = copy.deepcopy(good)
    _at(bad, path[:-1])[path[-1]] = "text"
    return bad


def test_a_wrong_field_of_every_kind_is_caught(documents, schemas):
    assert {document["kind"] for document in documents} == set(WRONG)
    for kind, paths in WRONG.items():
        good = of_kind(documents, kind)[0]
        bad = [misspelt(good, path) for path in paths]
        bad += [mistyped(good, path) for path in paths if path]
        for document in bad:
            with pytest.raises(REFUSED):
                schemas.check(document)


@pytest.mark.parametrize(
    "change",
    [
        {"shutdownAfterJobFinishes": False},
        {"deletionStrategy": {"deletionRules": [{"policy": "DeleteCluster", "condition": {}}]}},
        {"submissionMode": "SidecarMode"},
        {"clusterSelector": {"ray.io/cluster": "x"}},
    ],
)
def test_combinations_that_the_operator_refuses_are_caught(documents, schemas, change):
    job = copy.deepcopy(next(j for j in of_kind(documents, "RayJob") if j["spec"]["backoffLimit"]))
    job["spec"].update(change)
    with pytest.raises(REFUSED):
        schemas.check(job)


def jobs_of(documents):
    for document in documents:
        if document["kind"] == "RayJob":
            yield document, document["spec"]
        if document["kind"] == "RayCronJob":
            yield document, document["spec"]["jobTemplate"]


def test_entrypoints_and_run_files_are_there(documents, monkeypatch):
    monkeypatch.setenv("DISTRIB_STORE", "s3://bucket/place")
    copied = re.findall(r"^COPY (\S+) (/opt/\S+)$", (ROOT / "k8s/Dockerfile").read_text(), re.M)
    places = {target: ROOT / source for source, target in copied}
    seen = set()
    for _, spec in jobs_of(documents):
        program, script, flag, run_file = shlex.split(spec["entrypoint"])
        assert (program, flag) == ("python", "--config")
        source = places[str(Path(script).parent)] / Path(script).name
        assert source.is_file()
        seen.add(source.stem)
        cluster = spec["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "run"]
            (volume,) = [v for v in pod["volumes"] if v["name"] == "run"]
            assert Path(run_file).parent == Path(mount["mountPath"])
            maps = {c["metadata"]["name"]: c["data"] for c in of_kind(documents, "ConfigMap")}
            text = maps[volume["configMap"]["name"]][Path(run_file).name]
            tomllib.loads(text)
    assert seen <= set(JOBS)
    assert seen >= {"prepare", "train", "soften", "evaluate", "score", "export", "nightly"}
    load(RunFile, ROOT / "k8s/base/run.toml", environment=os.environ)


def test_what_ray_serve_is_told_is_valid_and_imports(documents):
    for service in of_kind(documents, "RayService"):
        config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
        (app,) = config.applications
        module, _, name = app.import_path.partition(":")
        assert callable(getattr(__import__(module, fromlist=[name]), name))
        assert app.args == {"config": "/etc/distrib/run.toml"}
        assert config.http_options.host == "0.0.0.0"


def test_versions_agree(documents):
    lock = (ROOT / "constraints.txt").read_text()
    locked = dict(line.split("==") for line in lock.splitlines() if "==" in line)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dockerfile = (ROOT / "k8s/Dockerfile").read_text()
    clusters = [spec["rayClusterSpec"] for _, spec in jobs_of(documents)]
    clusters += [document["spec"] for document in of_kind(documents, "RayCluster")]
    clusters += [
        document["spec"]["rayClusterConfig"] for document in of_kind(documents, "RayService")
    ]
    assert {cluster["rayVersion"] for cluster in clusters} == {locked["ray"]}
    assert f"ray[data,default,serve,train,tune]>={locked['ray'].rpartition('.')[0]}" in str(
        project["optional-dependencies"]
    )
    images = {
        container["image"]
        for pod in pods(documents)
        for container in pod["spec"]["containers"]
        if "redis" not in container["image"]
    }
    tags = {image.rpartition(":")[2] for image in images}
    assert tags == {f"{project['version']}-cpu", f"{project['version']}-cuda"}
    for tag in tags:
        assert f"distrib:{tag}" in dockerfile
    python = re.search(r"^ARG PYTHON=(\S+)$", dockerfile, re.M)[1]
    assert f">={python}" in project["requires-python"]
    assert f"for p in python{python} " in (ROOT / "Makefile").read_text()  # the first choice
    installed = re.findall(
        r"pip install (?!--no-cache-dir --constraint|--constraint)(.*)", dockerfile
    )
    assert not installed, f"not held to the lock: {installed}"


def test_pods_are_closed_and_told_what_they_have(documents):
    for document in documents:
        where = f"{document['kind']} {document['metadata']['name']}"
        for pod in pods(document):
            about = pod["spec"]["securityContext"]
            assert about["runAsNonRoot"], where
            assert about["seccompProfile"] == {"type": "RuntimeDefault"}, where
            for container in pod["spec"]["containers"]:
                check_container(container, where)


def check_container(container, where):
    context, resources = container["securityContext"], container["resources"]
    assert context["allowPrivilegeEscalation"] is False, where
    assert context["readOnlyRootFilesystem"] is True, where
    capabilities = {"drop": ["ALL"]}
    if any(name.startswith("rdma/") for name in resources["limits"]):
        capabilities["add"] = ["IPC_LOCK"]  # for registered memory
    assert context["capabilities"] == capabilities, where
    assert resources["requests"] == resources["limits"], where
    assert not re.search(r"(?i)password=|token=|secret=", str(container.get("args"))), where
    for variable in container.get("env", []):
        is_secret = re.search(r"(?i)passw|token|secret|key", variable["name"])
        assert not is_secret or "valueFrom" in variable, where


def test_jobs_end_and_want_a_token(documents):
    for _, spec in jobs_of(documents):
        assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
        assert spec["activeDeadlineSeconds"] >= spec["preRunningDeadlineSeconds"] > 0
        assert spec["shutdownAfterJobFinishes"] is True
        assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_applying_an_overlay_starts_no_job(documents):
    assert all(job["spec"]["suspend"] for job in of_kind(documents, "RayJob"))
    shapes = [d for d in documents if d["metadata"]["name"] in {"shape", "submitter"}]
    assert not shapes


WITHOUT_NAMESPACE = {"Namespace", "ClusterQueue", "ResourceFlavor"}


def test_everything_is_in_the_namespace_and_can_be_selected(documents):
    for document in documents:
        about = document["metadata"]
        wanted = None if document["kind"] in WITHOUT_NAMESPACE else "distrib"
        assert about.get("namespace") == wanted, about["name"]
        assert about["labels"]["app.kubernetes.io/part-of"] == "distrib", about["name"]
        assert about["labels"]["app.kubernetes.io/component"], about["name"]


def test_workers_come_from_zero_but_in_a_queue(by_overlay):
    for name, documents in by_overlay.items():
        for _, spec in jobs_of(documents):
            cluster = spec["rayClusterSpec"]
            groups = cluster["workerGroupSpecs"]
            if name == "kueue":
                assert cluster["enableInTreeAutoscaling"] is False
                assert all(g["replicas"] == g["minReplicas"] == g["maxReplicas"] for g in groups)
            else:
                assert cluster["enableInTreeAutoscaling"] is True
                assert all(group["minReplicas"] == group["replicas"] == 0 for group in groups)


def test_two_nodes_of_eight_gpus_make_sixteen_workers_and_only_they_lock_memory(by_overlay):
    (cluster,) = of_kind(by_overlay["gpu-nodes"], "RayCluster")
    cpu, gpu = cluster["spec"]["workerGroupSpecs"]
    (container,) = gpu["template"]["spec"]["containers"]
    gpus = int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert (gpus, gpu["maxReplicas"] * gpus) == (8, 16)
    assert container["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
    variables = {one["name"]: one.get("value") for one in container["env"]}
    assert variables["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert not any("rdma" in str(one["resources"]) for one in cpu["template"]["spec"]["containers"])
    for name, documents in by_overlay.items():
        (namespace,) = of_kind(documents, "Namespace")
        enforced = namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
        assert enforced == ("privileged" if name == "gpu-nodes" else "restricted"), name


def test_the_queue_lets_sixteen_gpus_go(by_overlay):
    (queue,) = of_kind(by_overlay["kueue"], "ClusterQueue")
    (group,) = queue["spec"]["resourceGroups"]
    quota = {one["name"]: one["nominalQuota"] for one in group["flavors"][0]["resources"]}
    assert quota["nvidia.com/gpu"] == "16"
    assert int(quota["cpu"]) >= 2 * 64  # of two nodes of components/gpu-nodes


def metrics_of(expression):
    """Names of the metrics in an expression that Prometheus can parse."""
    tree = promql_parser.parse(expression)
    return set(re.findall(r"\b(?:ray|kuberay)_[a-z0-9_]+", str(tree)))


def test_alerts_and_dashboard_ask_for_numbers_that_exist(by_overlay):
    source = "".join(path.read_text() for path in (ROOT / "distrib").rglob("*.py"))
    made = set(re.findall(r'"distrib_(serve_[a-z_]+)"', source))
    made |= set(re.findall(r'(?<!_)(?:show|keep)\(\s*"([a-z_]+)"', source))
    documents = by_overlay["gpu"]
    expressions = [rule["expr"] for rule in alerts_of(documents)]
    (board,) = [d for d in of_kind(documents, "ConfigMap") if "distrib.json" in d["data"]]
    panels = json.loads(board["data"]["distrib.json"])["panels"]
    expressions += [target["expr"] for panel in panels for target in panel.get("targets", [])]
    asked = set().union(*(metrics_of(expression) for expression in expressions))
    ours = {name.removeprefix("ray_distrib_") for name in asked if name.startswith("ray_distrib")}
    ours = {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in ours}
    trained = {name for name in ours if name.startswith("train_")}
    assert ours - trained <= made
    assert {name for name in made if "serve" not in name} <= ours  # nothing is shown for no one
    with pytest.raises(ValueError, match=r".+"):
        metrics_of("sum by (")


def alerts_of(documents):
    found = of_kind(documents, "PrometheusRule")
    groups = [group for document in found for group in document["spec"]["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def test_every_alert_has_its_paragraph_in_the_runbook(by_overlay):
    runbook = (ROOT / "docs/kubernetes.md").read_text()
    assert len(alerts_of(by_overlay["gpu"])) == 10
    for rule in alerts_of(by_overlay["gpu"]):
        assert f"**{rule['alert']}**" in runbook
