"""A server under more than it can answer."""

import pytest

from distrib.serve.config import ServeConfig
from distrib.serve.deployment import ServePlan, start
from tests.serve.test_deployment import TOKEN, Load, eventually, free_port, histories


@pytest.mark.slow
def test_at_twice_its_capacity_it_says_429_and_nothing_worse(world):
    from ray import serve

    run, data = world
    config = ServeConfig(
        port=free_port(), token=TOKEN, max_queue=4, batch_users=2, batch_wait_ms=50.0
    )
    url = start(ServePlan.of(run, data.prepared, config))
    try:
        with Load(url, histories(data), num_clients=40) as load:
            eventually(lambda: load.statuses[200] > 40 and load.statuses[429] > 20, 60.0)
        assert set(load.statuses) == {200, 429}
    finally:
        serve.shutdown()
