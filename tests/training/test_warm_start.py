"""A model that was trained before the data grew, and begins again with what it knew."""

import re

import numpy as np
import pyarrow as pa
import pytest
import torch

from distrib.checkpoint.bundle import BUNDLE, Bundle, load_bundle
from distrib.data.config import DataConfig
from distrib.data.dataset import Dataset
from distrib.data.logs.config import Columns, CsvSource
from distrib.data.logs.rating_scale import RatingsConfig
from distrib.data.prepare.job import prepare
from distrib.errors import ConfigError
from distrib.evaluation.config import EvaluateConfig
from distrib.models.autoencoders.conv4rec import Conv4RecConfig
from distrib.models.autoencoders.mult_vae import MultVaeConfig
from distrib.objectives import RatingClassesConfig
from distrib.parameters import roles_of
from distrib.storage import Folder
from distrib.training.config import TrainConfig, TrainingRun
from distrib.training.engines.config import EngineConfig
from distrib.training.optimizer import OptimizerConfig
from distrib.training.preflight.checks import preflight
from distrib.training.warm_start import begin_with, kind_faults
from distrib.training.workers.launch import launch
from distrib.vocabulary import Vocabulary
from tests.models.test_contract import CASES

LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0)
BEGINNERS = [config for config in CASES if config.spec.scheme != "two_sided"]  # others are refused


def item_tables_of(model):
    roles = roles_of(model)
    return {id(table) for table in (*roles.encoder.values(), *roles.decoder.values())}


def vocabulary_of(ids):
    counts = np.arange(5 * len(ids)).reshape(len(ids), 5)
    return Vocabulary(pa.array(ids), LEVELS, counts, 100)


@pytest.mark.parametrize("config", BEGINNERS, ids=repr)
def test_known_items_keep_their_rows_wherever_they_stand(config):
    old, new = vocabulary_of(["a", "b", "c"]), vocabulary_of(["z", "c", "a", "y", "x"])
    torch.manual_seed(0)
    earlier, fresh = config.build(old.catalog), config.build(new.catalog)
    untouched = {name: value.clone() for name, value in fresh.named_parameters()}
    assert begin_with(fresh, new, Bundle(earlier, old, config, {})) == 2
    tables = item_tables_of(fresh)
    was = dict(earlier.named_parameters())
    for name, value in fresh.named_parameters():
        if id(value) in tables:
            torch.testing.assert_close(value[1], was[name][2])
            torch.testing.assert_close(value[2], was[name][0])
            torch.testing.assert_close(value[[0, 3, 4]], untouched[name][[0, 3, 4]])
        else:
            torch.testing.assert_close(value, was[name])


@pytest.mark.parametrize("config", BEGINNERS, ids=repr)
def test_every_parameter_that_grows_with_the_catalogue_is_named(config):
    small, large = (config.build(vocabulary_of(list("abcdefgh")[:n]).catalog) for n in (3, 7))
    grows = {
        name
        for (name, one), (_, other) in zip(
            small.named_parameters(), large.named_parameters(), strict=True
        )
        if one.shape != other.shape
    }
    tables = item_tables_of(small)
    assert {name for name, value in small.named_parameters() if id(value) in tables} == grows


def test_a_model_of_another_kind_is_refused():
    old = vocabulary_of(["a"])
    config = MultVaeConfig(hidden_width=4, latent_width=2)
    bundle = Bundle(config.build(old.catalog), old, config, {})
    (fault,) = kind_faults(bundle, MultVaeConfig(hidden_width=4, latent_width=3), (1.0,))
    assert re.search(r"latent_width=2.* there, .*=3.* now; levels", fault)
    assert kind_faults(bundle, config, LEVELS) == []


def train_config(run, prepared, **train):
    return TrainingRun(
        run=str(run),
        prepared=str(prepared),
        seed=0,
        model=Conv4RecConfig(latent_width=4, rating_width=4),
        objective=RatingClassesConfig(),
        optimizer=OptimizerConfig(learning_rate=train.pop("learning_rate", 1e-2)),
        engine=EngineConfig(precision="fp32"),
        train=TrainConfig(num_epochs=1, batch_users=16, **train),
        evaluate=EvaluateConfig(recall_at=(5,), ndcg_at=(5,)),
    )


@pytest.mark.ray
def test_a_grown_log_is_trained_on_from_the_earlier_model(cluster, tmp_path):
    (tmp_path / "log").mkdir()
    rows = [f"u{n % 30},i{n % 13},{n % 5 + 1},{n}" for n in range(390)]
    (tmp_path / "log" / "1.csv").write_text("\n".join(["u,i,r,t", *rows]))
    columns = Columns(user="u", item="i", rating="r", time="t")
    data = DataConfig(
        prepared=str(tmp_path / "data"),
        source=CsvSource(path=str(tmp_path / "log"), columns=columns),
        ratings=RatingsConfig(levels=LEVELS),
        num_shards=2,
        extend=True,
    )
    prepare(data)
    launch(train_config(tmp_path / "first", data.prepared))
    (tmp_path / "log" / "2.csv").write_text("u,i,r,t\nu1,new,5,999\nnobody,i1,2,999\nu1,i0,4,999\n")
    prepare(data)
    with pytest.raises(ConfigError, match="belongs to a run with another configuration"):
        preflight(train_config(tmp_path / "first", data.prepared))
    still = {"warm_start": str(tmp_path / "first"), "learning_rate": 1e-12}
    launch(train_config(tmp_path / "second", data.prepared, **still))
    first, second = (
        load_bundle(Folder(str(tmp_path / run)) / BUNDLE) for run in ("first", "second")
    )
    grown = Dataset.open(data.prepared).vocabulary
    assert second.vocabulary.fingerprint == grown.fingerprint != first.vocabulary.fingerprint
    count = len(first.vocabulary)
    torch.testing.assert_close(
        second.model.output_IDZ[:count], first.model.output_IDZ, atol=1e-6, rtol=0
    )
    assert len(grown) == count + 1
