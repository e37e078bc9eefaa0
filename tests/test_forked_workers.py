"""Workers that are forked differ where workers that are started would."""

import os
import random
import threading

import pytest
import ray

pytestmark = pytest.mark.ray


@ray.remote(num_cpus=0)
class Probe:
    def facts(self):
        drawn = ray.ObjectRef.from_random().hex(), os.urandom(8), random.random()
        return os.getpid(), *drawn

    def setting(self):
        return os.environ.get("PROBED")

    def threads_run(self):
        found = []
        thread = threading.Thread(target=found.append, args=(1,))
        thread.start()
        thread.join(5.0)
        return found


def test_no_two_workers_draw_the_same(cluster):
    probes = [Probe.remote() for _ in range(4)]
    facts = ray.get([probe.facts.remote() for probe in probes])
    for column in zip(*facts, strict=True):
        assert len(set(column)) == len(probes)


def test_a_worker_has_the_environment_that_it_was_given(cluster):
    one = Probe.options(runtime_env={"env_vars": {"PROBED": "yes"}}).remote()
    other = Probe.remote()
    assert ray.get([one.setting.remote(), other.setting.remote()]) == ["yes", None]
    assert ray.get(one.threads_run.remote()) == [1]
