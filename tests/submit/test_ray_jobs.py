"""Submission to a Ray cluster that runs: token, Python and package."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from distrib.errors import ConfigError
from distrib.submit import ray_jobs
from distrib.submit.command import submission
from distrib.submit.request import Request
from tests.k8s.test_manifests import ROOT

RAY = Path(sys.executable).with_name("ray")

RUN_FILE = """
run = "{folder}/run"
[data]
prepared = "{folder}/prepared"
source = {{ format = "synthetic", num_users = 50, num_items = 20, num_interactions = 600 }}
split = {{ name = "none" }}
[model]
name = "popularity"
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A head that requires a token, where another `python` than Ray's comes first on the PATH."""
    wrong = tmp_path / "bin/python"
    wrong.parent.mkdir()
    wrong.write_text("#!/bin/sh\necho the wrong Python; exit 9\n")
    wrong.chmod(0o755)
    home = tmp_path / "home"
    environment = {
        "PATH": f"{wrong.parent}:/usr/bin:/bin",
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "of-the-cluster-0123456789abcdef",
    }
    port, dashboard = free_port(), free_port()
    folder = Path("/tmp") / f"distrib-ray-{port}"  # sockets have short paths
    flags = f"--port={port} --dashboard-port={dashboard} --temp-dir={folder} --num-cpus=2"
    more = "--node-ip-address=127.0.0.1 --object-store-memory=100000000 --disable-usage-stats"
    more += f" --dashboard-agent-listen-port={free_port()} --block"
    head = subprocess.Popen(
        [RAY, "start", "--head", *flags.split(), *more.split()],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    monkeypatch.setenv("HOME", str(home))
    yield f"http://127.0.0.1:{dashboard}", home / ".ray/auth_token"
    started = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
    for process in started:
        process.kill()
    head.wait()
    shutil.rmtree(folder, ignore_errors=True)


def reached(address):
    """Wait for the dashboard, which answers later than the head starts."""
    host, _, port = address.removeprefix("http://").partition(":")
    for _ in range(120):
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((host, int(port))) == 0:
                return
        subprocess.run(["sleep", "0.5"], check=True)
    pytest.fail(f"{address}: no dashboard after a minute")


@pytest.mark.processes
@pytest.mark.ray
@pytest.mark.long
def test_a_job_brings_its_package_and_finds_the_token_and_the_python(cluster, tmp_path, capfd):
    address, token = cluster
    reached(address)
    path = tmp_path / "run.toml"
    path.write_text(RUN_FILE.format(folder=tmp_path))
    arguments = ["prepare", "--config", str(path), "--address", address]

    assert submission("x", {}, arguments) == 2
    assert "requires a token, and none was found; set RAY_AUTH_TOKEN" in capfd.readouterr().err
    assert submission("x", {"RAY_AUTH_TOKEN": "another-one"}, arguments) == 2
    refused = capfd.readouterr().err
    assert "refuses the token of RAY_AUTH_TOKEN" in refused
    assert "another-one" not in refused

    token.parent.mkdir(parents=True)
    token.write_text("of-the-cluster-0123456789abcdef\n")
    code = submission("x", {}, arguments)
    shown = capfd.readouterr()
    assert code == 0, shown.err
    result = json.loads(shown.out)
    assert (result["status"], result["exit_code"]) == ("SUCCEEDED", 0)
    assert json.loads(result["result"])["counts"]["users"] == 50
    assert (tmp_path / "prepared/manifest.json").exists()


def test_the_job_folder_holds_the_package_and_no_bytecode(tmp_path):
    ray_jobs._fill(tmp_path, Request("train", "run = 'x'"))
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    own = {str(p.relative_to(ROOT)) for p in (ROOT / "distrib").rglob("*") if p.is_file()}
    assert names == {"run.toml", "start.sh"} | {n for n in own if "__pycache__" not in n}


@pytest.mark.parametrize("key", ["run", "data.prepared", "data.source.path"])
def test_a_path_into_the_folder_of_the_job_is_refused(key, tmp_path, capfd):
    path = tmp_path / "run.toml"
    path.write_text(
        'run = "s3://bucket/run"\n[data]\nprepared = "${STORE}/data"\n'
        'source = { format = "movielens", path = "/shared/ratings.csv" }\n'
        '[model]\nname = "popularity"\n'
    )
    arguments = ["train", "--config", str(path), "--address", "http://127.0.0.1:1"]
    assert submission("x", {}, [*arguments, "--dry-run"]) == 0
    assert submission("x", {}, [*arguments, "--dry-run", "--set", f'{key}="here/x"']) == 2
    assert f"{key} = 'here/x': relative to the working folder" in capfd.readouterr().err


def test_the_token_file_of_the_environment_comes_before_that_of_the_user(tmp_path):
    file = tmp_path / "token"
    file.write_text("of a file\n")
    given = {"RAY_AUTH_TOKEN_PATH": str(file)}
    assert ray_jobs._token(given) == ("of a file", str(file))
    assert ray_jobs._token(given | {"RAY_AUTH_TOKEN": "direct"}) == ("direct", "RAY_AUTH_TOKEN")
    file.unlink()
    assert ray_jobs._token(given) == ("", str(file))


def test_no_answer_is_one_error():
    with pytest.raises(ConfigError, match="check that the cluster runs"):
        ray_jobs.submit(Request("train", ""), "http://127.0.0.1:1", os.environ)
