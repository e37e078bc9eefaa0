"""What tests share: a tiny world, one Ray cluster for the session, the folder of real data."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
import torch.distributed

from distrib.batch import Batch
from distrib.data.config import DataConfig
from distrib.data.feeds.base import BatchSharding
from distrib.data.feeds.tiles import Ratings, TileConfig, TileFeed
from distrib.data.history_arrays import HistoryArrays, by_item
from distrib.feedback import Feedback
from distrib.vocabulary import Catalog
from tests.forked_workers import forking

os.environ.setdefault("NUMBA_DISABLE_JIT", "1")  # ranx would compile for 40 seconds
torch.set_num_threads(1)  # tensors here are tiny; threads would wait for each other

LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0)
FEEDBACK = Feedback(3.0, 2.0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs Ray, by its fixture."""
    for item in items:
        if {"cluster", "forked_workers"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("ray")


def rows_of(batch: Batch) -> HistoryArrays:
    """The histories of a batch, read in training."""
    number_B, pointer_P, item_N, value_N = batch
    arrays = (part.numpy() for part in (number_B, pointer_P, item_N.int(), value_N))
    return HistoryArrays(*arrays, np.zeros(len(item_N), np.int8))


class Small:
    """Some users with known histories, and the catalog that belongs to them."""

    def __init__(self, num_users: int = 37, item_count: int = 50, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        lengths = rng.integers(1, 15, size=num_users)
        self.items = [sorted(rng.choice(item_count, n, replace=False).tolist()) for n in lengths]
        self.values = [rng.integers(1, 6, size=n).astype(float).tolist() for n in lengths]
        self._count(item_count)

    @classmethod
    def of(cls, items: list[list[int]], values: list[list[float]], item_count: int) -> "Small":
        """The same, with histories by hand."""
        world = cls.__new__(cls)
        world.items, world.values = items, values
        world._count(item_count)
        return world

    def _count(self, item_count: int) -> None:
        num_users = len(self.items)
        counts = np.zeros((item_count, len(LEVELS)), dtype=np.int64)
        for items, values in zip(self.items, self.values, strict=True):
            for item, value in zip(items, values, strict=True):
                counts[item, int(value) - 1] += 1
        self.catalog = Catalog(item_count, LEVELS, counts, num_users, num_users, FEEDBACK)
        self.batch = self.users(range(num_users))

    def users(self, numbers: object) -> Batch:
        chosen = list(numbers)
        return Batch.from_lists(
            [self.items[n] for n in chosen], [self.values[n] for n in chosen], chosen
        )

    def tile_feed(
        self, users: int = 10, rank: int = 0, world_size: int = 1, **settings: object
    ) -> TileFeed:
        """Feed all ratings in blocks, of 15 items unless the settings say otherwise."""
        rows = rows_of(self.batch)
        columns = (self.catalog.item_count, len(self.items))
        config = TileConfig(**{"items": 15} | settings)
        sharding = BatchSharding(users, 0, rank, world_size)
        return TileFeed(Ratings(rows, by_item(rows), columns), rows, sharding, config)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """One rank alone."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def small() -> Small:
    torch.manual_seed(0)
    return Small()


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """URL of a bucket on an S3 server of our own; reached as users do, by the environment."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    fsspec.filesystem("s3").mkdir("bucket")
    yield "s3://bucket"
    server.stop()


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A catalog that pyiceberg's configuration names `shop`."""
    uri, warehouse = f"sqlite:///{tmp_path}/catalog.db", f"file://{tmp_path}/warehouse"
    sql = pytest.importorskip("pyiceberg.catalog.sql")
    config = pytest.importorskip("pyiceberg.utils.config")
    found = sql.SqlCatalog("shop", uri=uri, warehouse=warehouse)
    found.create_namespace("web")
    for name, value in (("TYPE", "sql"), ("URI", uri), ("WAREHOUSE", warehouse)):
        monkeypatch.setenv(f"PYICEBERG_CATALOG__SHOP__{name}", value)
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", config.Config())  # read when imported
    yield found
    found.close()


@pytest.fixture(scope="session")
def forked_workers() -> Iterator[None]:
    """Clusters that start from now on fork their workers."""
    pytest.importorskip("ray")
    with forking():
        yield


@pytest.fixture(scope="session")
def cluster(object_store: str, forked_workers: None) -> Iterator[None]:
    """One local Ray for all tests that need it; its workers reach the object store."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["RAY_num_workers_soft_limit"] = "16"  # noqa: SIM112  Ray spells it so; see cli
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=400 << 20,
        logging_level="ERROR",
        logging_config=ray.LoggingConfig(log_level="ERROR"),
    )
    yield
    ray.shutdown()


@pytest.fixture
def real_data() -> Path:
    """The folder of real rating logs, or a skip."""
    folder = os.environ.get("DISTRIB_DATA")
    if not folder:
        pytest.skip("DISTRIB_DATA is not set; see README, Real data")
    return Path(folder)


@pytest.fixture(scope="session")
def world(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, DataConfig]:
    """Run folder and data; see `make_world`."""
    from tests.world import make_world  # what it imports knows Ray

    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Headless Chromium, driven by Selenium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--window-size=1500,900",
    ):
        options.add_argument(flag)
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield found
    found.quit()
