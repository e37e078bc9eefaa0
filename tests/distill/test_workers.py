"""Soft labels on clusters of their own: any number of workers writes the same bytes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distrib.models import YoutubeDnnConfig
from tests.world import ANY_LABEL, data_of, prepare, write_log, write_model

pytestmark = [pytest.mark.slow, pytest.mark.processes]
SOFTEN = """
import json, sys
import ray
from ray.cluster_utils import Cluster
from distrib.distill.config import SoftenConfig
from distrib.distill.job import soften

nodes, given = int(sys.argv[1]), json.loads(sys.argv[2])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
for _ in range(nodes - 1):
    cluster.add_node(num_cpus=1)
ray.init(address=cluster.address)
assert ray.cluster_resources()["CPU"] == nodes
soften(given["run"], given["prepared"], SoftenConfig(**given["soften"]))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.parametrize("method", ["propagation", "neighbors"])
def test_one_two_and_four_workers_write_the_same_bytes(tmp_path, method):
    write_log(tmp_path / "log.csv", range(900))
    data = data_of(tmp_path / "data", tmp_path / "log.csv", num_shards=5)
    prepare(data)
    run = write_model(tmp_path / "run", data, config=YoutubeDnnConfig(latent_width=8))
    found = {}
    for nodes in (1, 2, 4):
        output = tmp_path / f"labels-{nodes}"
        soften = {"output": str(output), "method": method, "num_clusters": 7}
        soften |= ANY_LABEL
        given = {"run": run, "prepared": data.prepared, "soften": soften}
        command = [sys.executable, "-c", SOFTEN, str(nodes), json.dumps(given)]
        subprocess.run(command, check=True, timeout=300, cwd=Path(__file__).parents[2])
        names = sorted([*output.glob("part-*"), output / "_SUCCESS"])
        found[nodes] = {path.name: path.read_bytes() for path in names}
        assert len(found[nodes]) == 6
    assert found[1] == found[2] == found[4]
