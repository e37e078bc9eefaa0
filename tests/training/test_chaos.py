"""Twenty faults in one run: killed workers, killed nodes, a lost head. The result must not change.

Nodes are raylets of their own with their own processes and object stores; the job is a process of
its own that is started again, as Kubernetes would, when the head and it are gone.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from distrib.storage import Folder
from distrib.training.run_folder import HISTORY

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(2400)]
ROOT = Path(__file__).parents[2]
NUM_FAULTS, HEAD_FAULT = 20, 10
RUN_FILE = """
run = "{folder}/{run}"
[data]
prepared = "{folder}/data"
source = {{ format = "synthetic", num_users = 1500, num_items = 60, num_interactions = 20_000 }}
num_shards = 3
[model]
name = "mult_vae"
hidden_width = 32
latent_width = 8
[engine]
precision = "fp32"
[train]
num_epochs = 40
batch_users = 4
num_workers = {workers}
resize_s = 2.0
max_failures = 100
collective_timeout_s = 20.0
checkpoint = {{ every_steps = 100 }}
"""


class World:
    """A cluster that can be hurt, and the job that runs on it."""

    def __init__(self, folder, run, *, workers="2", num_nodes=3):
        self.run = folder / run
        self.config = folder / f"{run}.toml"
        self.config.write_text(RUN_FILE.format(folder=folder, run=run, workers=workers))
        self.cluster, self.nodes, self.jobs, self.log = None, [], [], folder / f"{run}.log"
        self.num_nodes = num_nodes
        self.begin()

    def begin(self):
        """Start a head that does no work, the nodes, and the job."""
        arguments = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 200 << 20}
        self.cluster = Cluster(initialize_head=True, head_node_args=arguments)
        self.nodes = [self.add_node() for _ in range(self.num_nodes)]
        variables = {
            **os.environ,
            "RAY_ADDRESS": self.cluster.address,
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "PYTHONPATH": str(ROOT),
        }
        with self.log.open("a") as log:
            command = [sys.executable, ROOT / "jobs/train.py", "--config", self.config]
            self.jobs.append(
                subprocess.Popen(command, env=variables, cwd=ROOT, stdout=log, stderr=log)
            )

    def add_node(self):
        return self.cluster.add_node(num_cpus=1, object_store_memory=200 << 20)

    def num_steps(self):
        names = Folder(str(self.run)) / "checkpoints"
        steps = [int(name.split("-")[1]) for name in names.folders()]
        return max(steps, default=0)

    def wait_for_progress(self, seconds=180):
        """Wait until a newer checkpoint has appeared; False when the job has ended."""
        before, deadline = self.num_steps(), time.monotonic() + seconds
        while self.num_steps() <= before:
            if self.jobs[-1].poll() is not None:
                return False
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.05)
        return True

    def kill_worker(self, rng):
        workers = [
            process
            for process in psutil.Process().children(recursive=True)
            if "RayTrainWorker" in " ".join(process.cmdline())
        ]
        if workers:
            os.kill(rng.choice(workers).pid, signal.SIGKILL)

    def kill_node(self, rng):
        node = self.nodes.pop(rng.randrange(len(self.nodes)))
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.append(self.add_node())

    def lose_head(self):
        self.jobs[-1].kill()
        self.jobs[-1].wait()
        self.cluster.shutdown()
        self.begin()

    def end(self):
        latent = self.jobs[-1].wait(timeout=600)
        self.cluster.shutdown()
        assert latent == 0, self.log.read_text()[-3000:]
        return Folder(str(self.run)).read_json(HISTORY)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with the data that all runs read."""
    folder = tmp_path_factory.mktemp("chaos")
    config = folder / "prepare.toml"
    config.write_text(RUN_FILE.format(folder=folder, run="none", workers="2"))
    command = [sys.executable, ROOT / "jobs/prepare.py", "--config", config]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return folder


def test_twenty_faults_change_nothing(prepared):
    calm = World(prepared, "calm").end()
    world, rng, faults = World(prepared, "hurt"), random.Random(0), []
    while len(faults) < NUM_FAULTS:
        assert world.wait_for_progress(), f"the job ended after {len(faults)} faults"
        time.sleep(rng.random())
        if len(faults) == HEAD_FAULT:
            world.lose_head()
            faults.append("head")
        elif rng.random() < 0.6:
            world.kill_worker(rng)
            faults.append("worker")
        else:
            world.kill_node(rng)
            faults.append("node")
        print(json.dumps({"faults": len(faults), "last": faults[-1], "step": world.num_steps()}))
    hurt = world.end()
    assert faults.count("head") == 1
    assert len(world.jobs) == 2
    kept = ("epoch", "step", "losses", "valid", "selection")
    assert [{k: e[k] for k in kept} for e in hurt] == [{k: e[k] for k in kept} for e in calm]


def test_a_run_grows_and_shrinks_with_its_cluster(prepared):
    world = World(prepared, "elastic", workers="[1, 2]", num_nodes=1)

    def parts():
        names = sorted((world.run / "checkpoints").glob("step-*"))
        return len(list(names[-1].glob("_rank*"))) if names else 0

    for wanted in (1, 2, 1):
        if wanted == 2:
            world.nodes.append(world.add_node())
        elif world.nodes[1:]:
            world.cluster.remove_node(world.nodes.pop(), allow_graceful=False)
        deadline = time.monotonic() + 180
        while parts() != wanted:
            assert world.jobs[-1].poll() is None, world.log.read_text()[-3000:]
            assert time.monotonic() < deadline, world.log.read_text()[-3000:]
            time.sleep(0.1)
    history = world.end()
    assert [entry["epoch"] for entry in history] == list(range(1, 41))
