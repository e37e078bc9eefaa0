"""Numbers stay in sight of Prometheus while their process lives, also those that stand still."""

import time
import urllib.request

import pytest
import ray

from distrib.cluster.prometheus import keep, show

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def scraped():
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        return answer.read().decode()


def line_of(name):
    found = [line for line in scraped().splitlines() if line.startswith(f"ray_distrib_{name}{{")]
    return found[0] if found else ""


def test_a_gauge_that_is_set_once_does_not_vanish(cluster):
    show("stands_still", "For this test.", 3.0, run="r")
    keep("kept", "For this test.", 4.0)
    deadline = time.monotonic() + 60
    while not (line_of("stands_still") and line_of("kept")):
        assert time.monotonic() < deadline
        time.sleep(1)
    time.sleep(30)  # Ray forgets after twenty
    assert line_of("stands_still").endswith(" 3.0")
    assert 'run="r"' in line_of("stands_still")
    assert line_of("kept").endswith(" 4.0")
