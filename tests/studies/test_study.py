"""Studies on a cluster: each run once, however often and by however many studies it is needed."""

import json
import re
import signal
import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from distrib.config import checked, load
from distrib.data.prepare.job import prepare
from distrib.errors import ConfigError
from distrib.evaluation.job import evaluate
from distrib.run_file import RunFile
from distrib.studies.analysis import analyzed
from distrib.studies.compare import compare, page_of
from distrib.studies.config import StudyFile
from distrib.studies.job import check, given, planned, study
from distrib.studies.results import RESULT, RUN_RESULT, StudyResult
from distrib.toml_text import toml_text
from distrib.training.workers.launch import launch
from tests.forked_workers import running

ROOT = Path(__file__).parents[2]

LOG = {"format": "synthetic", "num_users": 300, "num_items": 40, "num_interactions": 6000}
VAE = {"name": "mult_vae", "hidden_width": 16, "latent_width": 8}


def study_of(folder, name="one", models=("EASE", "VAE"), **fields):
    known = {
        "EASE": {"settings": {"model": {"name": "ease"}}},
        "VAE": {"settings": {"model": VAE}},
        "Other VAE": {"settings": {"model": {**VAE, "latent_width": 4}}},
        "broken": {"settings": {"model": VAE, "optimizer": {"learning_rate": 1e30}}},
    }
    document = {
        "title": name,
        "output": f"{folder}/{name}",
        "runs": f"{folder}/runs",
        "seeds": [0, 1],
        "metrics": ["ndcg@100", "recall@20"],
        "common": {
            "settings": {
                "data": {"source": LOG, "num_shards": 2},
                "train": {"num_epochs": 2, "batch_users": 64},
            }
        },
        "axes": {"model": {model: known[model] for model in models}},
        **fields,
    }
    return given(checked(StudyFile, document, where="study"), "distrib study", {})


def result_of(study_file):
    output = Path(study_file.file.output)
    return StudyResult.model_validate_json((output / RESULT).read_text())


def runs_of(folder):
    return {path.parent.name: path for path in Path(folder, "runs", "runs").glob(f"*/{RUN_RESULT}")}


@pytest.fixture(scope="module")
def first(cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    one = study_of(folder)
    answer = study(one)
    return folder, one, answer


def test_a_study_runs_everything_once_and_writes_what_people_read(first):
    folder, one, answer = first
    assert (answer["runs"], answer["failed"]) == (4, 0)
    found = {path.name for path in Path(folder, "one").iterdir()}
    assert found >= {"report.html", "study.json", "study.md", "results.csv", "comparisons.csv"}
    assert sorted(Path(folder, "one", "pictures").glob("*.png"))
    result = result_of(one)
    assert {row.address for row in result.rows} == runs_of(folder).keys()
    for row in result.rows:
        assert row.run is not None
        assert row.run.seed == row.seed
        assert row.run.cost.train_s > 0
        kept = {path.name for path in (folder / "runs/runs" / row.address).iterdir()}
        assert "bundle" in kept
        assert not kept & {"checkpoints", "best"}  # the disk would fill
    page = Path(answer["page"]).read_text()
    assert all(f'id="run-{address}"' in page for address in runs_of(folder))


def test_a_run_of_a_study_is_that_of_the_jobs(first):
    folder, one, _ = first
    file = one.cells[1].file(1, {"run": f"{folder}/alone", "data.prepared": f"{folder}/data"})
    prepare(file.data)
    launch(file.training())
    expected = evaluate(file.run, file.data.prepared, file.evaluate)
    row = next(row for row in result_of(one).rows if row.options["model"] == "VAE" and row.seed)
    assert row.run.data == expected.data
    for metric, value in expected.metrics["model"].items():
        assert row.run.metrics["model"][metric].mean == pytest.approx(value.mean, rel=1e-6), metric


def test_a_second_start_and_another_study_run_nothing_again(first):
    folder, one, _ = first
    stamps = {name: path.stat().st_mtime_ns for name, path in runs_of(folder).items()}
    assert planned(one).done == 4
    study(one)
    two = study_of(folder, "two", ("VAE", "Other VAE"))
    assert planned(two).done == 2
    assert study(two)["failed"] == 0
    after = runs_of(folder)
    assert len(after) == 6
    assert stamps == {name: after[name].stat().st_mtime_ns for name in stamps}
    shared = {row.address for row in result_of(one).rows} & {r.address for r in result_of(two).rows}
    assert len(shared) == 2


def test_another_metric_measures_again_and_trains_nothing(first):
    folder, *_ = first
    stamps = {name: path.stat().st_mtime_ns for name, path in runs_of(folder).items()}
    more = {"data": {"source": LOG, "num_shards": 2}, "train": {"num_epochs": 2, "batch_users": 64}}
    more["evaluate"] = {"catalog_at": [5]}
    wider = study_of(folder, "wider", metrics=["coverage@5"], common={"settings": more})
    assert study(wider)["failed"] == 0
    assert stamps == {name: path.stat().st_mtime_ns for name, path in runs_of(folder).items()}
    for row in result_of(wider).rows:
        assert 0 < row.run.mean("coverage@5") <= 1


def test_a_failed_run_is_a_row_with_its_reason_and_the_others_count(first):
    folder, *_ = first
    answer = study(study_of(folder, "three", ("EASE", "broken")))
    assert (answer["runs"], answer["failed"]) == (4, 2)
    assert "learning_rate" in Path(answer["page"]).read_text()
    result = StudyResult.model_validate_json((folder / "three" / RESULT).read_text())
    assert all(bool(row.fault) == (row.options["model"] == "broken") for row in result.rows)
    text = (folder / "three" / "study.md").read_text()
    for row in result.rows:
        assert text.count(row.address[:8]) == 1
        assert (f"({row.address[:8]}): {row.fault}" in text) == bool(row.fault)
    with pytest.raises(ConfigError, match="every run failed"):
        study(study_of(folder, "four", ("broken",), retry_failed=False))


def test_trials_choose_on_validation_and_soft_labels_come_from_the_base(first):
    folder, *_ = first
    axes = {
        "model": {
            "tuned": {
                "settings": {"model": VAE},
                "space": {"optimizer.learning_rate": {"values": [1e-9, 3e-3]}},
            },
            "base": {"settings": {"model": VAE}},
            "soft": {
                "settings": {
                    "model": VAE,
                    "objective": {"name": "soft_target"},
                    "soften": {"max_mass_on_target": 1.0, "min_mass_on_target": 0.0},
                },
                "labels_of": "base",
            },
        }
    }
    axes["model"]["soft"]["settings"]["soften"]["max_evenness"] = 1.0
    five = study_of(folder, "five", axes=axes, seeds=[0], num_trials=5)
    assert study(five)["failed"] == 0
    tuned, _, soft = result_of(five).rows
    assert tuned.tuned == {"optimizer.learning_rate": 3e-3}
    tried = result_of(five).trials
    assert len(tried) == 5
    assert max(tried, key=lambda one: one.selection).settings == tuned.tuned
    assert {one.address for one in tried} >= {tuned.address}
    assert soft.run.settings["objective"]["label"]["path"].startswith(f"{folder}/runs/labels/")


@pytest.mark.parametrize("form", ["csv", "lenskit", "recbole"])
def test_another_library_measures_the_same_on_what_is_exported(first, form):
    folder, *_ = first
    six = study_of(folder, f"six-{form}", export=form, seeds=[0])
    study(six)
    (place,) = (folder / f"six-{form}" / "export").iterdir()
    read = {"csv": pd.read_csv, "lenskit": pd.read_parquet}.get(form, _read_atomic)
    ending = {"csv": "csv", "lenskit": "parquet"}.get(form, "inter")
    names = [f"{place.name}.{part}.{ending}" for part in ("train", "valid", "test")]
    train, _, test = (read(place / name) for name in names)
    assert not {*map(tuple, train[["user_id", "item_id"]].to_numpy())} & {
        *map(tuple, test[["user_id", "item_id"]].to_numpy())
    }
    wanted: dict[str, dict[str, int]] = {}
    for user, item in test[["user_id", "item_id"]].astype(str).to_numpy():
        wanted.setdefault(user, {})[item] = 1
    for row in result_of(six).rows:
        lists = "parquet" if form == "lenskit" else "csv"
        table = place / f"lists-{row.address}.{lists}"
        found = pd.read_parquet(table) if form == "lenskit" else pd.read_csv(table)
        ranked: dict[str, dict[str, float]] = {}
        for user, item, rank in found[["user_id", "item_id", "rank"]].astype(str).to_numpy():
            ranked.setdefault(user, {})[item] = 1.0 / int(rank)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from ranx import Qrels, Run, evaluate

            theirs = evaluate(Qrels(wanted), Run(ranked), "ndcg@100")
        assert row.run.mean("ndcg@100") == pytest.approx(theirs, abs=1e-6)


def _read_atomic(path):
    frame = pd.read_csv(path, sep="\t")
    return frame.rename(columns=lambda name: name.partition(":")[0])


def test_groups_of_users_have_means_of_their_own(first, tmp_path):
    folder, one, _ = first
    row = result_of(one).rows[0]
    parts = sorted((folder / "runs/runs" / row.address).glob("measured/*/evaluation_by_user/*"))
    users = pd.concat([pd.read_parquet(path) for path in parts])
    users["group"] = np.where(users["user"].astype(int) % 3 == 0, "third", "rest")
    path = tmp_path / "groups.parquet"
    users[["user", "group"]].to_parquet(path)
    grouped = study_of(folder, "grouped", user_groups=str(path))
    study(grouped)
    (block,) = analyzed(result_of(grouped)).blocks
    for name, part in users.groupby("group"):
        assert block.by_group[name]["EASE"] == pytest.approx(part["model_ndcg@100"].mean())
    assert (folder / "grouped/pictures/groups-0.png").exists()


def test_runs_have_pages_and_ratings_have_charts(first):
    folder, *_ = first
    rated = {"name": "conv4rec", "latent_width": 8, "rating_width": 4}
    axes = {
        "model": {"Conv4Rec": {"settings": {"model": rated}}, "VAE": {"settings": {"model": VAE}}}
    }
    figures = [{"kind": "reliability"}, {"kind": "likely_and_liked", "option": "Conv4Rec"}]
    split = {"split": {"name": "entrywise"}, "source": LOG, "num_shards": 2}
    common = {"settings": {"data": split, "train": {"num_epochs": 1, "batch_users": 64}}}
    seven = study_of(
        folder, "seven", axes=axes, seeds=[0], figures=figures, common=common, run_pages=True
    )
    assert study(seven)["failed"] == 0
    pictures = {path.name for path in (folder / "seven/pictures").iterdir()}
    assert pictures >= {"reliability-seven.png", "likely-and-liked-seven.png"}
    links = re.findall(r'href="([^"#]+/report.html)"', (folder / "seven/report.html").read_text())
    assert len(links) == 2
    titles = [(folder / "seven" / link).read_text().partition("</title>")[0] for link in links]
    for row, title in zip(result_of(seven).rows, titles, strict=True):
        assert title.endswith(row.address)


def test_runs_are_compared_user_by_user(first):
    folder, one, _ = first
    ease, *_, vae = (f"{folder}/runs/runs/{row.address}" for row in result_of(one).rows)
    found = compare([ease, vae])
    assert found.intervals["ndcg@100"].keys() == found.runs.keys()
    (other,) = found.changed
    users = found.changed[other]
    gaps = [abs(user.difference) for user in users]
    assert gaps == sorted(gaps, reverse=True)
    name = next(iter(found.runs))
    assert users[0].difference == pytest.approx(users[0].values[other] - users[0].values[name])
    test = next(one for one in found.comparisons["ndcg@100"] if one.option == other)
    means = found.intervals["ndcg@100"]
    assert test.difference == pytest.approx(means[other].mean - means[name].mean)
    assert users[0].user in page_of(found)
    with pytest.raises(ConfigError, match="two runs or more"):
        compare([ease])
    with pytest.raises(ConfigError, match="was not evaluated"):
        compare([ease, str(folder)])
    with pytest.raises(ConfigError, match="twice"):
        compare([ease, f"{ease}/"])
    with pytest.raises(ConfigError, match="not measured by user"):
        compare([ease, vae], ["ndgc@100"])


@pytest.mark.long
def test_a_killed_study_goes_on_and_repeats_no_finished_run(forked_workers, tmp_path):
    file = study_of(tmp_path, "killed", ("EASE", "VAE")).file
    path = tmp_path / "study.toml"
    path.write_text(toml_text(json.loads(file.model_dump_json(exclude_unset=True))))
    command = running("jobs/study.py", "--config", str(path))
    started = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not runs_of(tmp_path) and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    started.send_signal(signal.SIGKILL)
    started.wait()
    time.sleep(3)  # workers notice that their driver is gone
    stamps = {name: path.stat().st_mtime_ns for name, path in runs_of(tmp_path).items()}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    assert (answer["runs"], answer["failed"]) == (4, 0)
    after = {name: path.stat().st_mtime_ns for name, path in runs_of(tmp_path).items()}
    assert len(after) == 4
    assert all(after[name] == stamp for name, stamp in stamps.items())


def test_metrics_that_no_run_measures_are_refused_before_any_run(tmp_path):
    figures = [{"kind": "scatter", "x": "rmsee", "y": "recall@20"}]
    wrong = study_of(tmp_path, metrics=["ndgc@100", "coverage@5"], figures=figures)
    with pytest.raises(ConfigError) as raised:
        check(wrong)
    for text in ("did you mean 'ndcg@100'", "'coverage@5': no run", "did you mean 'rmse'"):
        assert text in str(raised.value)


def test_every_study_in_the_repository_is_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    variables = {"DISTRIB_DATA": "/data"}
    for path in sorted((ROOT / "configs" / "studies").glob("*.toml")):
        file = load(StudyFile, path, environment=variables)
        found = given(file, "distrib study", variables)
        assert found.cells, path
        assert isinstance(found.cells[0].first_file, RunFile)
        assert np.prod([len(options) for options in file.axes.values()]) >= len(found.cells)
