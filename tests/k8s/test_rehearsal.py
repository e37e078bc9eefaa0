"""The commands of the manifests on separate hosts, without Kubernetes; ``make rehearsal``, as root.

A head and two workers in network namespaces, started as KubeRay starts them from the overlay
``local-cpu``; an S3 store over HTTP; a fourth host that submits. Prepare, train on two hosts, lose
one, continue on a replacement, evaluate, score. Token authentication throughout.
"""

import json
import os
import secrets
import shutil
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
import yaml

from tests.k8s.hosts import GATEWAY, Host, Network
from tests.k8s.test_manifests import ROOT, built, jobs_of, of_kind

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

TRAIN = (
    "--set train.num_workers=2 --set train.cpus_per_worker=2 --set train.num_epochs=100 "
    "--set train.checkpoint.every_epochs=1"
)


def say(text):
    sys.stderr.write(f"[rehearsal] {text}\n")


class Rehearsal:
    def __init__(self, network, folder, store):
        self.network, self.folder = network, folder
        self.documents = built(ROOT / "k8s/overlays/local-cpu")
        self.token = secrets.token_hex(16)
        self.store = store["DISTRIB_STORE"]
        (self.run_map,) = [
            d for d in of_kind(self.documents, "ConfigMap") if "run.toml" in d["data"]
        ]
        (folder / "run.toml").write_text(self.run_map["data"]["run.toml"])
        (self.cluster,) = of_kind(self.documents, "RayCluster")
        network.place("/opt/distrib/jobs", is_file=False)
        network.place("/etc/distrib", is_file=False)
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "DISTRIB_TOKEN": "of the secret",
            **store,
        }

    def host(self, name, number, group=None):
        environment = dict(self.environment, HOME=str(self.folder / name))
        Path(environment["HOME"]).mkdir()
        if group is not None:
            (container,) = group["template"]["spec"]["containers"]
            environment |= {entry["name"]: entry["value"] for entry in container["env"]}
        (self.folder / "etc").mkdir(exist_ok=True)
        shutil.copy(self.folder / "run.toml", self.folder / "etc/run.toml")
        places = {"/opt/distrib/jobs": ROOT / "jobs", "/etc/distrib": self.folder / "etc"}
        host = Host(name, number, places, environment, self.folder / f"{name}.log")
        return self.network.add(host)

    def node(self, name, number, group, head=None):
        """Start a pod's command as KubeRay makes it from ``rayStartParams`` and limits."""
        host = self.host(name, number, group)
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        params = {
            "num-cpus": limits["cpu"],
            "memory": int(limits["memory"].removesuffix("Gi")) << 30,
            "object-store-memory": 500 << 20,
            "metrics-export-port": 8080,
            "dashboard-agent-listen-port": 52365,
            **group["rayStartParams"],
        }
        role = "--head" if head is None else f"--address={head.address}:6379"
        flags = " ".join(f"--{name}={value}" for name, value in params.items())
        port = "--port=6379 " if head is None else ""
        host.start(f"ray start {role} {port}--node-ip-address={host.address} --block {flags}")
        return host

    def asked(self, head, path, token=None, put=None):
        """Ask the dashboard, or put something to it."""
        content = None if put is None else json.dumps(put).encode()
        request = urllib.request.Request(f"http://{head.address}:8265{path}", content)
        request.add_header("content-type", "application/json")
        request.method = "GET" if put is None else "PUT"
        if token:
            request.add_header("authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            said = answer.read()
        return json.loads(said) if put is None else said

    def num_alive(self, head):
        found = self.asked(head, "/nodes?view=summary", self.token)["data"]["summary"]
        return sum(node["raylet"].get("state") == "ALIVE" for node in found)

    def submit(self, host, head, job, more="", timeout_s=400):
        """What the submitter of a RayJob does."""
        entry = next(
            spec["entrypoint"]
            for document, spec in jobs_of(self.documents)
            if document["metadata"]["name"] == f"distrib-{job}"
        )
        address = f"http://{head.address}:8265"
        say(f"ray job submit --address {address} -- {entry} {more}")
        done = host.call(f"ray job submit --address {address} -- {entry} {more}", timeout_s)
        with (self.folder / f"job-{job}.log").open("a") as log:
            log.write(done.stdout + done.stderr)
        return done


def eventually(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (OSError, KeyError, TypeError, ValueError):
            pass
        assert time.monotonic() < deadline, condition
        time.sleep(0.5)


@pytest.fixture
def store():
    """An S3 server that all hosts reach; environment of those who do."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("0.0.0.0", port=0)
    server.start()
    _, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
    options = {"key": "test", "secret": "test", "endpoint_url": f"http://127.0.0.1:{port}"}
    files = fsspec.filesystem("s3", **options, skip_instance_cache=True, use_listings_cache=False)
    bucket = f"rehearsal-{secrets.token_hex(4)}"  # the server keeps its data in this process
    files.mkdir(bucket)
    address = f"http://{GATEWAY}:{port}"
    place = {"DISTRIB_STORE": f"s3://{bucket}/distrib", "AWS_ENDPOINT_URL": address}
    yield {**keys, **place, "AWS_DEFAULT_REGION": "us-east-1"}, files
    server.stop()


@pytest.fixture
def rehearsal(store, tmp_path):
    if os.geteuid() or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("network namespaces need root, ip and unshare")
    with Network() as network:
        yield Rehearsal(network, tmp_path, store[0])


def test_a_cluster_of_hosts_prepares_trains_loses_one_goes_on_and_scores(rehearsal, store):
    files = store[1]
    group = rehearsal.cluster["spec"]["workerGroupSpecs"][0]
    head = rehearsal.node("head", 10, rehearsal.cluster["spec"]["headGroupSpec"])
    eventually(lambda: rehearsal.num_alive(head) == 1)
    workers = [rehearsal.node(f"worker{n}", 10 + n, group, head) for n in (1, 2)]
    eventually(lambda: rehearsal.num_alive(head) == 3)
    client = rehearsal.host("client", 20)
    say("a head without work and two workers are up")
    nobody_gets_in_without_the_token(rehearsal, head)
    a_bad_run_file_is_told(rehearsal, client, head)
    prepared = rehearsal.submit(client, head, "prepare")
    assert prepared.returncode == 0, prepared.stdout[-3000:]

    def lose_a_host():
        kept = f"{rehearsal.store}/runs/demo/checkpoints"
        eventually(lambda: len(files.ls(kept)) > 1, 300)
        workers[1].die()
        say(f"{workers[1].name} is lost; another comes")
        rehearsal.node("worker3", 13, group, head)

    with ThreadPoolExecutor(1) as pool:
        losing = pool.submit(lose_a_host)
        trained = rehearsal.submit(client, head, "train", TRAIN, timeout_s=900)
        losing.result()
    assert trained.returncode == 0, trained.stdout[-5000:]
    assert '"event": "workers_lost"' in trained.stdout
    assert '"epoch": 100' in trained.stdout
    say("training went on to its end")
    what_fails_in_the_middle_leaves_nothing(rehearsal, client, head)
    for job in ("evaluate", "score"):
        done = rehearsal.submit(client, head, job)
        assert done.returncode == 0, done.stdout[-3000:]
    success = json.loads(files.cat(f"{rehearsal.store}/runs/demo/recommendations/_SUCCESS"))
    assert success["counts"]["users"] == success["counts"]["users_read"] == 6000
    submit_returns_the_code_of_the_job(rehearsal, client, head, success["counts"])
    eventually(lambda: "ray_distrib_score_published_seconds" in scraped(head), 60)
    say("Prometheus finds our numbers")
    what_the_service_says_answers(rehearsal, head, workers[0])


def nobody_gets_in_without_the_token(rehearsal, head):
    for token in (None, "another"):
        with pytest.raises(urllib.error.HTTPError, match=r"40[13]"):
            rehearsal.asked(head, "/api/jobs/", token)
    say("no one gets in without the token")


def a_bad_run_file_is_told(rehearsal, client, head):
    bad = rehearsal.submit(client, head, "train", "--set train.num_epochs=0")
    assert bad.returncode == 1  # Ray's command line has no other error code
    assert "ConfigError" in bad.stdout
    assert "train.num_epochs = 0" in bad.stdout
    assert "Traceback" not in bad.stdout
    ended = rehearsal.asked(head, "/api/jobs/", rehearsal.token)[-1]
    assert (ended["status"], ended["driver_exit_code"]) == ("FAILED", 2)
    say("a bad run file is reported, with exit code 2")


def what_fails_in_the_middle_leaves_nothing(rehearsal, client, head):
    wrong = "--set optimizer.learning_rate=1e30 --set optimizer.name=\\'sgd\\'"
    run = f"--set run=\\'{rehearsal.store}/runs/bad\\'"
    failed = rehearsal.submit(client, head, "train", f"{TRAIN} {wrong} {run}")
    assert failed.returncode == 1
    assert "DivergedError" in failed.stdout, failed.stdout[-3000:]
    eventually(lambda: not busy(rehearsal, head), 60)
    say("a run that fails in the middle leaves nothing running")


def submit_returns_the_code_of_the_job(rehearsal, client, head, counts):
    script = f"python {ROOT}/jobs/submit.py"
    config = f"--config {rehearsal.folder}/run.toml --address http://{head.address}:8265"
    ours = client.call(f"{script} score {config}", 200)
    assert ours.returncode == 0, ours.stderr[-3000:]
    answer = json.loads(ours.stdout.splitlines()[-1])
    assert json.loads(answer["result"])["counts"] == counts
    nowhere = f"run=\\'{rehearsal.store}/none\\'"
    for job, setting, code in (("train", "train.batch_users=0", 2), ("score", nowhere, 1)):
        ours = client.call(f"{script} {job} {config} --set {setting}", 200)
        assert ours.returncode == code, ours.stderr[-3000:]
    say("jobs/submit.py returns the job's own code")


def what_the_service_says_answers(rehearsal, head, worker):
    """KubeRay puts ``serveConfigV2`` to the dashboard; requests go to pods with a replica."""
    (service,) = of_kind(rehearsal.documents, "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    rehearsal.asked(head, "/api/serve/applications/", rehearsal.token, config)

    def is_running():
        reported = rehearsal.asked(head, "/api/serve/applications/", rehearsal.token)
        state = reported["applications"]["distrib"]
        assert state["status"] != "DEPLOY_FAILED", state["message"]
        return state["status"] == "RUNNING"

    eventually(is_running, 120)
    wanted = {"history": {"items": [1, 2], "ratings": [5, 3]}, "options": {"k": 3}}
    request = urllib.request.Request(
        f"http://{worker.address}:8000/v1/models/default/recommendations",
        json.dumps(wanted).encode(),
        {"content-type": "application/json", "authorization": "Bearer of the secret"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        found = json.loads(answer.read())
    assert len(found["items"]) == 3, found
    say("the service answers with the model of the run")


def scraped(head):
    with urllib.request.urlopen(f"http://{head.address}:8080/metrics", timeout=10) as answer:
        return answer.read().decode()


def busy(rehearsal, head):
    """What of a job lives on; Ray's own actors are detached, and hold no core."""
    found = rehearsal.asked(head, "/api/v0/actors?limit=1000&detail=true", rehearsal.token)
    actors = found["data"]["result"]["result"]
    left = [a for a in actors if a["state"] == "ALIVE" and not a["is_detached"]]
    if left:
        say(f"still there: {[actor['class_name'] for actor in left]}")
    return left


STAND_IN = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
HEAD_ID = "f" * 51 + "00000"
"""What Ray's stand-in for a cloud calls its head."""


def test_a_cluster_that_has_nothing_grows_for_a_job_and_shrinks_again(rehearsal, store):
    """Autoscaling from zero, by Ray's stand-in for a cloud; the nodes are real."""
    node = {"node_config": {}, "resources": {"CPU": 2, "object_store_memory": 300 << 20}}
    growth = {
        "cluster_name": "rehearsal",
        "max_workers": 3,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.2,
        "provider": {
            "type": "external",
            "module": STAND_IN,
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
        },
        "available_node_types": {
            "ray.head.default": {"node_config": {}, "resources": {"CPU": 0}, "max_workers": 0},
            "cpu": {**node, "min_workers": 0, "max_workers": 3},
        },
        "head_node_type": "ray.head.default",
        **{key: {} for key in ("auth", "file_mounts")},
        **{
            key: []
            for key in (
                *("cluster_synced_files", "rsync_exclude", "rsync_filter"),
                *("initialization_commands", "setup_commands", "head_setup_commands"),
                *("worker_setup_commands", "head_start_ray_commands"),
                "worker_start_ray_commands",
            )
        },
        "file_mounts_sync_continuously": False,
    }
    path = rehearsal.folder / "growth.json"
    path.write_text(json.dumps(growth))
    rehearsal.environment |= {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }
    head = rehearsal.host("grower", 30, rehearsal.cluster["spec"]["headGroupSpec"])
    flags = "--num-cpus=0 --dashboard-host=0.0.0.0 --object-store-memory=300000000"
    head.start(
        f"ray start --head --port=6379 --node-ip-address={head.address} --block {flags} "
        f"--autoscaling-config={path}"
    )
    eventually(lambda: rehearsal.num_alive(head) == 1)
    client = rehearsal.host("client", 20)
    said = ""
    for job, more in (
        ("prepare", ""),
        ("train", "--set train.num_epochs=2 --set train.cpus_per_worker=2"),
        ("score", ""),
    ):
        done = rehearsal.submit(client, head, job, more)
        assert done.returncode == 0, done.stdout[-3000:]
        said += done.stdout
    assert "Adding 1 node(s) of type cpu" in said
    say("three jobs on nodes that came for them")
    too_many = "--set train.num_workers=50 --set train.resource_timeout_s=20"
    wide = rehearsal.submit(client, head, "train", too_many)
    assert "needs 50 CPU, there are" in wide.stdout, wide.stdout[-2000:]
    eventually(lambda: rehearsal.num_alive(head) == 1, 180)
    say("they have gone again")
