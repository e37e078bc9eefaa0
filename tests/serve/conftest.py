"""A model behind the application, in this process: what it answers does not depend on Ray."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from starlette.testclient import TestClient

from distrib.checkpoint.bundle import BUNDLE, BundleFacts, write_bundle
from distrib.models.autoencoders.conv4rec import Conv4RecConfig
from distrib.serve.app import make_app
from distrib.serve.config import ServeConfig
from distrib.serve.model_host import ModelHost
from distrib.serve.replica import Replica
from distrib.storage import Folder
from distrib.vocabulary import PLAIN_LOG, Vocabulary
from tests.conftest import LEVELS

IDS = pa.array([1000 - n for n in range(50)])


class Noted:
    """Keeps what is reported of requests and batches."""

    def __init__(self):
        self.requests, self.batches, self.unknowns, self.reloads = [], [], 0, []

    def reached(self, route, status, elapsed_s):
        self.requests.append((route, status))
        assert elapsed_s > 0.0

    def batched(self, num_users):
        self.batches.append(num_users)

    def waiting(self, count):
        pass

    def unknown(self, count):
        self.unknowns += count

    def reloaded(self, *, is_well):
        self.reloads.append(is_well)


class LocalRouter:
    """Replicas in this process."""

    def __init__(self, replicas):
        self.replicas = replicas
        self.names = tuple(replicas)

    async def submit(self, model, what, *arguments):
        return await self.replicas[model].submit(what, *arguments)


def write_run(
    run, small, config=None, *, ids=IDS, levels=LEVELS, seed=0, scale=None, facts=PLAIN_LOG
):
    """Write the bundle of a model that no one trained."""
    torch.manual_seed(seed)
    counts = small.catalog.train_count_IL[:, : len(levels)]
    vocabulary = Vocabulary(ids, levels, counts, 37, 37, facts)
    config = config or Conv4RecConfig(latent_width=8, rating_width=4)
    model = config.build(vocabulary.catalog)
    if scale:
        for weight in model.state_dict().values():
            if weight.is_floating_point():
                torch.nn.init.normal_(weight, std=scale)
    facts = BundleFacts(data="none", epoch=2, valid={"rmse": 0.9}, seed=seed)
    write_bundle(Folder(str(run)) / BUNDLE, model.state_dict(), config, vocabulary, facts)
    return str(run)


def served(models, prepared="none", **settings):
    """Return a client of the application with some models, by name and run folder."""
    config = ServeConfig(**{"batch_wait_ms": 0.0} | settings)
    noted = Noted()
    hosts = {name: ModelHost(name, run, prepared, config) for name, run in models.items()}
    replicas = {name: Replica(host, config, noted) for name, host in hosts.items()}
    app = make_app(LocalRouter(replicas), config, noted)
    return SimpleNamespace(app=app, hosts=hosts, replicas=replicas, noted=noted, config=config)


@pytest.fixture
def run(small, tmp_path):
    return write_run(tmp_path / "run", small)


@pytest.fixture
def server(run):
    return served({"default": run})


@pytest.fixture
def client(server):
    with TestClient(server.app, raise_server_exceptions=True) as found:
        yield found


def history(small, user):
    return {
        "items": [1000 - item for item in small.items[user]],
        "ratings": np.asarray(small.values[user]).tolist(),
    }
