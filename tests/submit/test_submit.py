"""Submission: manifests from an overlay, kubectl calls, exit codes."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest
import yaml

from distrib.errors import ConfigError
from distrib.submit import kubernetes
from distrib.submit.command import plan_run, submission
from distrib.submit.kubernetes import manifests
from distrib.submit.request import JOBS, Request
from tests.k8s.test_manifests import ROOT, built

RUN_FILE = ROOT / "k8s/base/run.toml"

KUBECTL = """#!{python}
import json, pathlib, sys
place = pathlib.Path("{place}")
arguments, given = sys.argv[1:], ""
if "-f" in arguments and "-" in arguments:
    given = sys.stdin.read()
with (place / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps([arguments, given]) + "\\n")
if arguments[0] == "kustomize":
    print((place / "built.yaml").read_text())
elif "--dry-run=server" in arguments and (place / "refusal").exists():
    sys.exit((place / "refusal").read_text())
elif arguments[0] == "get":
    states = json.loads((place / "states.json").read_text())
    if not states:
        sys.exit(0)
    left = states[1:] if len(states) > 1 else states
    (place / "states.json").write_text(json.dumps(left))
    about = {{"uid": "u-1"}}
    print(json.dumps({{"apiVersion": "ray.io/v1", "metadata": about, "status": states[0]}}))
elif arguments[0] == "logs":
    print("a line of the job's log")
"""


def template(name, component, **labels):
    def group():
        pod = {"spec": {"volumes": [{"name": "run", "configMap": {"name": "distrib-run"}}]}}
        return {"template": pod}

    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": name,
            "namespace": "films",
            "labels": {"app.kubernetes.io/component": component, **labels},
        },
        "spec": {
            "suspend": True,
            "entrypoint": "python x.py",
            "rayClusterSpec": {"headGroupSpec": group(), "workerGroupSpecs": [group()]},
        },
    }


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    """A kubectl that notes what it is asked, and answers from files."""
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL.format(python=sys.executable, place=tmp_path))
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("distrib.submit.kubernetes._POLL_S", 0.01)
    (tmp_path / "built.yaml").write_text(yaml.safe_dump_all([template("distrib-train", "train")]))
    return tmp_path


def calls(place):
    return [json.loads(line) for line in (place / "calls.jsonl").read_text().splitlines()]


def submitted(kubectl, states, *more):
    (kubectl / "states.json").write_text(json.dumps(states))
    arguments = ["train", "--config", str(RUN_FILE), "--overlay", "somewhere", "--name", "night"]
    return submission("x", {}, [*arguments, *more])


def test_an_overlays_job_gets_a_name_a_run_file_and_its_settings():
    request = Request("score", "run = 'x'", ("score.k=5", "run='a b'"), "lists")
    built = [template("distrib-train", "train"), template("distrib-score", "score")]
    run, job = manifests(request, built)
    assert run["metadata"]["name"] == "lists-run"
    assert run["metadata"]["namespace"] == job["metadata"]["namespace"] == "films"
    assert run["data"] == {"run.toml": "run = 'x'"}
    assert job["metadata"]["name"] == "lists"
    assert job["spec"]["suspend"] is False
    assert job["spec"]["entrypoint"] == (
        "python /opt/distrib/jobs/score.py --config /etc/distrib/run.toml "
        """--set score.k=5 --set 'run='"'"'a b'"'"''"""
    )
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["template"]["spec"]["volumes"][0]["configMap"] == {"name": "lists-run"}
    assert built[1]["spec"]["suspend"] is True  # the template is unchanged


def test_a_night_by_hand_is_made_from_the_cron_job():
    cron = template("distrib-nightly", "nightly")
    cron = {**cron, "kind": "RayCronJob", "spec": {"schedule": "x", "jobTemplate": cron["spec"]}}
    _, job = manifests(Request("nightly", "", (), "n"), [template("distrib-train", "train"), cron])
    assert job["kind"] == "RayJob"
    assert "schedule" not in job["spec"]
    assert "/opt/distrib/jobs/nightly.py" in job["spec"]["entrypoint"]


def test_what_would_not_run_as_asked_is_refused():
    with pytest.raises(ConfigError, match="has no RayJob for 'convert'"):
        manifests(Request("convert", "", (), "c"), [template("distrib-train", "train")])
    bare = template("distrib-train", "train")
    del bare["spec"]["rayClusterSpec"]
    with pytest.raises(ConfigError, match="its jobs have no cluster"):
        manifests(Request("train", "", (), "t"), [bare])
    blind = template("distrib-train", "train")
    blind["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"] = []
    with pytest.raises(ConfigError, match="cannot read the run file"):
        manifests(Request("train", "", (), "t"), [blind])


@pytest.mark.parametrize("job", JOBS)
def test_every_job_has_a_template_in_the_overlays(job):
    found = [document for document in built(ROOT / "k8s/overlays/gpu") if document["metadata"]]
    _, made = manifests(Request(job, "", (), "x"), found)
    assert f"/opt/distrib/jobs/{job}.py" in made["spec"]["entrypoint"]


def test_every_script_that_ends_by_itself_can_be_submitted():
    others = {
        "compare",
        "plan",
        "score_through",
        "serve",
        "submit",
    }  # not cluster jobs, or long-running
    assert {path.stem for path in (ROOT / "jobs").glob("*.py")} - others == set(JOBS)


def test_a_queued_job_is_left_to_the_queue():
    queued = template("distrib-train", "train", **{"kueue.x-k8s.io/queue-name": "q"})
    _, job = manifests(Request("train", "", (), "t"), [queued])
    assert job["spec"]["suspend"] is True


def test_an_overlay_without_a_job_is_refused():
    with pytest.raises(ConfigError, match="has no RayJob"):
        manifests(Request("train", "", (), "t"), [{"kind": "Namespace"}])


def test_a_job_is_checked_created_owned_and_followed(kubectl, capfd):
    states = [
        {},
        {"jobDeploymentStatus": "Initializing"},
        {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"},
        {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"},
    ]
    assert submitted(kubectl, states) == 0
    asked = [arguments for arguments, _ in calls(kubectl)]
    assert [a[0] for a in asked if a[0] != "get"] == [
        "kustomize",
        "create",
        "create",
        "patch",
        "logs",
    ]
    check, create = (given for arguments, given in calls(kubectl) if arguments[0] == "create")
    assert check == create
    assert [d["kind"] for d in yaml.safe_load_all(create)] == ["ConfigMap", "RayJob"]
    (patch,) = (a for a in asked if a[0] == "patch")
    (owner,) = json.loads(patch[-1])["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("RayJob", "night", "u-1")
    run_and_report = capfd.readouterr()
    assert "a line of the job's log" in run_and_report.err
    assert "GPUs in training" in run_and_report.err  # the estimate, before submission
    assert json.loads(run_and_report.out)["exit_code"] == 0


def test_the_jobs_own_exit_code_comes_back(kubectl, capfd):
    message = "Job entrypoint command failed with exit code 75, last available logs: ..."
    failed = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": message}
    assert submitted(kubectl, [{}, failed]) == 75
    assert "job_failed" in capfd.readouterr().err
    failed["message"] = "Job entrypoint command failed with exit code -15, logs: exit code 0"
    assert submitted(kubectl, [{}, failed]) == 143
    failed["message"] = "the log says exit code 0"
    assert submitted(kubectl, [{}, failed]) == 1
    late = {"jobDeploymentStatus": "Failed", "jobStatus": "RUNNING", "reason": "DeadlineExceeded"}
    assert submitted(kubectl, [{}, late]) == 1
    assert "DeadlineExceeded" in capfd.readouterr().err


def test_a_job_that_is_deleted_meanwhile_is_told(kubectl, capfd, monkeypatch):
    monkeypatch.setattr("distrib.submit.kubernetes._owned", lambda *_: None)
    assert submitted(kubectl, []) == 1
    assert "was deleted" in capfd.readouterr().err


def test_a_cluster_that_does_not_answer_for_a_while_is_waited_for(kubectl, monkeypatch):
    real = kubernetes._Kubectl.read
    faults = [ConfigError("TLS handshake timeout")] * 3

    def read(self, *arguments):
        if faults:
            raise faults.pop()
        return real(self, *arguments)

    monkeypatch.setattr(kubernetes._Kubectl, "read", read)
    states = [{}, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}]
    assert submitted(kubectl, states) == 0


def test_a_job_that_is_out_of_sight_goes_on(kubectl, monkeypatch, capfd):
    def read(*_):
        raise ConfigError("connection refused")

    monkeypatch.setattr(kubernetes._Kubectl, "read", read)
    monkeypatch.setattr(kubernetes, "_PATIENCE_S", 0.05)
    assert submitted(kubectl, []) == 1
    assert "night: is still running, but the cluster does not respond" in capfd.readouterr().err


def test_every_attempt_is_followed(kubectl, capfd):
    running = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
    states = [{}, running, {"jobDeploymentStatus": "Retrying"}, running]
    states += [{"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}]
    assert submitted(kubectl, states) == 0
    logs = [arguments for arguments, _ in calls(kubectl) if arguments[0] == "logs"]
    assert len(logs) == 2
    assert not any("--since" in part for arguments in logs for part in arguments)


def test_what_the_server_refuses_is_told_and_nothing_is_created(kubectl, capfd):
    (kubectl / "refusal").write_text('namespaces "films" not found')
    assert submitted(kubectl, []) == 2
    run_and_report = capfd.readouterr().err
    assert 'namespaces "films" not found' in run_and_report
    assert "component=platform" in run_and_report
    assert sum(arguments[0] == "create" for arguments, _ in calls(kubectl)) == 1


def test_a_dry_run_shows_and_creates_nothing(kubectl, capfd):
    assert submitted(kubectl, [], "--dry-run") == 0
    shown, _, result = capfd.readouterr().out.rstrip().rpartition("\n")
    assert [d["kind"] for d in yaml.safe_load_all(shown)] == ["ConfigMap", "RayJob"]
    assert json.loads(result)["status"] == "not created"
    assert not [a for a, _ in calls(kubectl) if a[0] == "create" and "--dry-run=server" not in a]


def test_faults_come_before_kubectl_is_asked(kubectl, capfd):
    assert submitted(kubectl, [], "--set", "train.num_epochs=0") == 2
    assert "train.num_epochs = 0" in capfd.readouterr().err
    assert submitted(kubectl, [], "--name", "Night!") == 2
    assert "--name 'Night!'" in capfd.readouterr().err
    assert not (kubectl / "calls.jsonl").exists()


def test_without_kubectl_the_other_way_is_named(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = ["train", "--config", str(RUN_FILE), "--overlay", "somewhere"]
    assert submission("x", {}, arguments) == 2
    assert "install kubectl, or submit to a Ray cluster" in capfd.readouterr().err


def test_an_address_where_nobody_answers_is_told(capfd):
    arguments = ["train", "--config", str(RUN_FILE), "--address", "http://127.0.0.1:1"]
    assert submission("x", {}, arguments) == 2
    assert "--address http://127.0.0.1:1" in capfd.readouterr().err


def test_a_plan_needs_sizes_and_says_so(tmp_path, capfd):
    path = tmp_path / "run.toml"
    path.write_text(
        'run = "${STORE}/r"\n[data]\nprepared = "${STORE}/p"\n'
        'source = { format = "movielens", path = "${STORE}/r.csv" }\n[model]\nname = "mult_vae"\n'
    )
    assert plan_run("x", {}, ["--config", str(path)]) == 2
    assert "--users, --items and --interactions" in capfd.readouterr().err
    sizes = ["--users", "1000", "--items", "500", "--interactions", "9000"]
    assert plan_run("x", {}, ["--config", str(path), *sizes]) == 0
    run_and_report = json.loads(capfd.readouterr().out)
    assert run_and_report["steps"] == 4
    assert run_and_report["gpu_hours"] == 0.0
    assert plan_run("x", {}, ["--config", str(path), *sizes, "--gpu", "h100"]) == 0
    assert json.loads(capfd.readouterr().out)["gpu_hours"] > 0.0
    assert Path(path).exists()
