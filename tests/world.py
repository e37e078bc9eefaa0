"""A small prepared log and runs of untrained models, for tests of scoring and serving."""

import numpy as np
import torch

from distrib.checkpoint.bundle import BUNDLE, BundleFacts, write_bundle
from distrib.data.config import DataConfig
from distrib.data.dataset import Dataset
from distrib.data.logs.config import Columns, CsvSource
from distrib.data.logs.rating_scale import RatingsConfig
from distrib.data.prepare.job import prepare
from distrib.data.splits.rules import NoSplit
from distrib.models.autoencoders.conv4rec import Conv4RecConfig
from distrib.storage import Folder

COLUMNS = Columns(user="user", item="item", rating="rating", time="time")


ANY_LABEL = {"min_mass_on_target": 0.0, "max_mass_on_target": 1.0, "max_evenness": 1.0}
"""Settings of `SoftenConfig` that refuse no labels, however bad."""


def write_log(path, users, seed=0):
    rng = np.random.default_rng(seed)
    rows = [
        f"{user},{item},{rng.integers(1, 6)},{time}"
        for time, (user, item) in enumerate(
            (user, item) for user in users for item in rng.choice(60, rng.integers(2, 20), False)
        )
    ]
    path.write_text("user,item,rating,time\n" + "\n".join(rows) + "\n")


def data_of(folder, log, **more):
    return DataConfig(
        prepared=str(folder),
        source=CsvSource(path=str(log), columns=COLUMNS, ids="int"),
        ratings=RatingsConfig(levels=(1.0, 2.0, 3.0, 4.0, 5.0)),
        split=NoSplit(),
        **{"num_shards": 3} | more,
    )


def make_world(folder):
    """Prepared data of 200 users, and the run of a model that no one trained."""
    (folder / "log").mkdir()
    write_log(folder / "log" / "0.csv", range(200))
    data = data_of(folder / "data", folder / "log")
    prepare(data)
    return write_model(folder / "run", data), data


def write_model(run, data, seed=0, config=None):
    """Write the bundle of a model that no one trained."""
    manifest = Dataset.open(data.prepared).manifest
    vocabulary = Dataset.open(data.prepared).vocabulary
    torch.manual_seed(seed)
    config = config or Conv4RecConfig(latent_width=8, rating_width=4)
    model = config.build(vocabulary.catalog)
    facts = BundleFacts(data=manifest.hash, epoch=seed, valid={"rmse": 0.9})
    write_bundle(Folder(str(run)) / BUNDLE, model.state_dict(), config, vocabulary, facts)
    return str(run)
