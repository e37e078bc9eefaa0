"""Room for work: a cluster of our own is what it is, another one may grow, but not for ever."""

import pytest

from distrib.cluster import resources
from distrib.cluster.actors import actor_pool
from distrib.config import load
from distrib.errors import ConfigError
from distrib.run_file import RunFile
from distrib.training.preflight.checks import require_room
from tests.k8s.test_manifests import ROOT

pytestmark = pytest.mark.ray


@pytest.fixture
def growing(cluster, monkeypatch):
    """Somebody else's cluster, with nothing yet; each look at it finds four more cores."""
    asked, looks = [], []

    def present():
        looks.append(1)
        return {"CPU": 4.0 * (len(looks) - 1), "GPU": 0.0 + (len(looks) > 3)}

    monkeypatch.setattr(resources, "is_fixed", lambda: False)
    monkeypatch.setattr("distrib.cluster.actors.is_fixed", lambda: False)
    monkeypatch.setattr(resources, "present", present)
    monkeypatch.setattr("distrib.cluster.actors.present", present)
    monkeypatch.setattr(resources, "request_resources", lambda bundles: asked.append(bundles))
    monkeypatch.setattr(resources, "_POLL_S", 0.01)
    return asked


def trained_with(**settings):
    overrides = [f"train.{name} = {value}" for name, value in settings.items()]
    return load(RunFile, ROOT / "configs/demo.toml", overrides=overrides).training()


def test_a_cluster_of_our_own_refuses_at_once(cluster):
    assert resources.is_fixed()
    with pytest.raises(ConfigError, match="needs 5 CPU, there are 4"):
        require_room(trained_with(num_workers=5))
    with pytest.raises(ConfigError, match="the cluster has 0 GPU"):
        actor_pool(1, num_pieces=1)


def test_workers_are_asked_for_and_waited_for(growing, capfd):
    require_room(trained_with(num_workers=8))
    assert growing == [[{"CPU": 1.0}] * 8, []]  # and not asked for any longer
    assert '"lacking": {"CPU": 8.0}' in capfd.readouterr().err


def test_what_never_comes_is_refused_in_the_end(growing):
    with pytest.raises(ConfigError, match="needs 9 GPU, there are 1"):
        require_room(trained_with(num_workers=9, use_gpu="true", resource_timeout_s=0.2))
    assert growing[-1] == []


def test_actors_begin_with_what_is_there_and_grow_with_the_work(growing):
    pool = actor_pool(0.5, num_pieces=100)
    assert (pool.min_size, pool.initial_size, pool.max_size) == (1, 2, 100)


def test_no_more_actors_than_work(cluster):
    pool = actor_pool(0, num_pieces=2)
    assert pool.initial_size == pool.max_size == 2
    assert actor_pool(0, num_pieces=100).max_size == 4
