"""The jobs as functions: a data frame in, a trained model and lists out."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import distrib
from distrib.errors import ConfigError, DataError
from distrib.run_file import RunFile


@pytest.fixture(scope="module")
def log():
    rng = np.random.default_rng(0)
    group = rng.integers(0, 4, 150)
    rows = [
        (f"u{user}", f"i{item}")
        for user in range(150)
        for item in rng.choice(10, 6, replace=False) * 4 + group[user]
    ]
    return pd.DataFrame(rows, columns=["customer", "sku"])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_is_described_from_a_frame_and_sections_replace_its_parts(log, here):
    run = distrib.init(log, run="runs/shop", train={"num_epochs": 3})
    assert isinstance(run, RunFile)
    assert (run.run, run.data.prepared) == ("runs/shop", "runs/shop-data")
    assert run.data.source.columns.names() == ["customer", "sku"]
    assert (run.model.name, run.train.num_epochs, run.train.patience) == ("mult_vae", 3, 10)
    again = distrib.init(log, run="runs/shop", model="ease")
    assert again.data.source.path == run.data.source.path  # the same rows, the same file
    assert again.model.name == "ease"
    assert len(list((here / "runs/shop-log").iterdir())) == 1
    nightly = distrib.init(log, run="runs/shop", purpose="nightly")
    assert nightly.data.split.name == "none"
    with pytest.raises(ConfigError, match=r"unknown section\(s\) \['mdel'\]"):
        distrib.init(log, mdel="ease")
    with pytest.raises(ConfigError, match="latent_widht"):
        distrib.init(log, model={"name": "mult_vae", "latent_widht": 3})
    with pytest.raises(DataError, match="no columns of users and items"):
        distrib.init(pd.DataFrame({"price": [1.5, 2.5, 2.5]}), run="runs/none")


def test_all_jobs_as_functions(log, here, cluster):
    run = distrib.init(log, run="runs/shop", model="ease")
    prepared = distrib.prepare(run)
    assert prepared.counts.users == 150
    assert distrib.train(run).run.endswith("runs/shop")
    found = distrib.evaluate(run, evaluate={"ndcg_at": [10]})
    ours, popularity = (found.metrics[name]["ndcg@10"].mean for name in ("model", "popularity"))
    assert ours > popularity
    other = distrib.init(log, run="runs/other", model="popularity", data=run.data.model_dump())
    distrib.train(other)
    distrib.evaluate(other, evaluate={"ndcg_at": [10]})
    compared = distrib.compare(run, "runs/other", metrics=["ndcg@10"])
    assert f"{compared.intervals['ndcg@10']['other'].mean:.4f}" in str(compared)
    assert "0." in str(distrib.evaluate(run)).split("ndcg@10")[1]
    assert compared.intervals["ndcg@10"]["shop"].mean == pytest.approx(ours)
    assert [test.option for test in compared.comparisons["ndcg@10"]] == ["other"]
    with pytest.raises(ConfigError, match="compare needs two runs or more"):
        distrib.compare(run)
    result = distrib.score(run, score={"k": 4})
    lists = pq.read_table(result.output)
    assert len(lists) == 150
    model = distrib.Recommender.load(run.run)
    row = lists.to_pylist()[0]
    history = log[log["customer"] == row["user"]]["sku"].tolist()
    assert [one["item"] for one in model.recommend(history, 4)] == row["items"]


def test_run_files_and_sections_by_name(here, cluster):
    (here / "log.csv").write_text("user,item\n" + "".join(f"{n % 9},{n % 7}\n" for n in range(90)))
    (here / "run.toml").write_text(
        'run = "runs/a"\n[data]\nprepared = "runs/a-data"\nsplit = { name = "none" }\n'
        '[data.source]\nformat = "csv"\npath = "log.csv"\n'
        'columns = { user = "user", item = "item" }\n'
        '[model]\nname = "popularity"\n'
    )
    by_file = distrib.prepare("run.toml", data={"num_shards": 2})
    assert len(by_file.shards) == 2
    sections = {
        "run": "runs/b",
        "model": "popularity",
        "data": {
            "prepared": "runs/b-data",
            "num_shards": 2,
            "split": {"name": "none"},
            "source": {
                "format": "csv",
                "path": "log.csv",
                "columns": {"user": "user", "item": "item"},
            },
        },
    }
    assert distrib.prepare(**sections).hash == by_file.hash
    with pytest.raises(DataError, match="no test targets"):
        distrib.evaluate(**sections)
    with pytest.raises(ConfigError, match="does not exist"):
        distrib.train("absent.toml")
