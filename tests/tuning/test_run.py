"""A study on the cluster: trials, successive halving, resuming, faults."""

import json

import pytest
from ray.util import placement_group_table

from distrib.config import load
from distrib.data.prepare.job import prepare
from distrib.data.splits.rules import NoSplit
from distrib.errors import ConfigError
from distrib.models import EaseConfig
from distrib.report.plots import study
from distrib.run_file import RunFile
from distrib.tuning.job import RESULT, check, search

pytestmark = pytest.mark.ray

TEXT = """
run = "{folder}/run"
[data]
prepared = "{folder}/data"
source = {{ format = "synthetic", num_users = 1500, num_items = 60, num_interactions = 20_000 }}
num_shards = 2
[model]
name = "{model}"
"""


def file_of(folder, model, **settings):
    path = folder / "run.toml"
    path.write_text(TEXT.format(folder=folder, model=model))
    overrides = [f"search.{name} = {value}" for name, value in settings.items()]
    return load(RunFile, path, overrides=overrides)


@pytest.mark.timeout(600)  # starts many workers; a busy machine took 267 s
def test_a_study_finds_the_best_and_goes_on_with_more_trials(cluster, tmp_path):
    space = '{"model.penalty" = {values = [0.001, 30.0]}, "seed" = {low = 0, high = 9}}'
    file = file_of(tmp_path, "ease", space=space, num_trials=2, seed=3)
    prepare(file.data)
    first = search(file.search, file.run, file.training_with)
    assert [trial.epochs for trial in first.trials] == [1, 1]
    more = file_of(tmp_path, "ease", space=space, num_trials=3, seed=3, max_concurrent=2)
    second = search(more.search, more.run, more.training_with)
    by_number = {trial.trial: trial for trial in second.trials}
    for trial in first.trials:
        assert by_number[trial.trial] == trial
    penalties = [trial.settings["model.penalty"] for trial in second.trials]
    assert set(penalties) == {0.001, 30.0}
    assert penalties == sorted(penalties, reverse=True)  # best first
    assert second.trials[0].selection == second.trials[0].valid["ndcg@100"]
    assert "model.penalty=30.0" in second.best
    assert json.loads((tmp_path / "run" / RESULT).read_text()) == second.to_json()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [RESULT, "trials"]
    assert study(second.trials).startswith(b"\x89PNG")


def test_fields_that_are_not_there_and_values_that_do_not_fit_are_told_before_any_trial(
    cluster, tmp_path
):
    file = file_of(tmp_path, "ease", space='{"model.penalti" = {values = [1.0]}}')
    with pytest.raises(ConfigError, match="did you mean 'penalty'"):
        check(file.search, file.training_with)
    file = file_of(tmp_path, "ease", space='{"model.penalty" = {values = [-1.0]}}')
    with pytest.raises(ConfigError, match="greater than 0"):
        check(file.search, file.training_with)
    file = file_of(tmp_path, "ease", space='{"model.penalty.x" = {values = [1.0]}}')
    file = file.model_copy(update={"model": EaseConfig(penalty=2.0)})
    with pytest.raises(ConfigError, match=r"'penalty' is 2\.0, not a section"):
        check(file.search, file.training_with)
    file = file_of(tmp_path, "ease", space='{"score.k" = {values = [1, 2]}}')
    with pytest.raises(ConfigError, match=r"\['score\.k'\], which do not affect training"):
        check(file.search, file.training_with)
    with pytest.raises(ConfigError, match=r"space\.model\.penalty\.hihg = 2\.0: unknown key; did"):
        file_of(tmp_path, "ease", space='{"model.penalty" = {low = 1.0, hihg = 2.0}}')
    with pytest.raises(ConfigError, match=r"search\.space is empty"):
        check(file_of(tmp_path, "ease").search, file.training_with)


def test_data_without_validation_targets_are_refused(cluster, tmp_path):
    file = file_of(tmp_path, "ease", space='{"model.penalty" = {values = [1.0]}}')
    data = file.data.model_copy(update={"split": NoSplit()})
    prepare(data)
    with pytest.raises(ConfigError, match="nothing to validate on"):
        check(file.search, file.training_with)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_halving_ends_what_is_behind_and_a_bad_draw_ends_itself(cluster, tmp_path):
    space = '{"optimizer.learning_rate" = {values = [0.01, 1e-7, 1e30]}}'
    settings = {"num_trials": 6, "grace_epochs": 1, "reduction": 2, "seed": 0}
    file = file_of(tmp_path, "mult_vae", space=space, **settings)
    file = file.model_copy(update={"train": file.train.model_copy(update={"num_epochs": 8})})
    prepare(file.data)
    result = search(file.search, file.run, file.training_with)
    rates = [trial.settings["optimizer.learning_rate"] for trial in result.trials]
    assert set(rates) == {0.01, 1e-7, 1e30}
    assert rates[0] == 0.01
    by_rate = dict(zip(rates, result.trials, strict=True))
    assert result.trials[0].epochs == 8
    assert by_rate[1e-7].epochs < 8
    assert "not finite" in by_rate[1e30].fault
    held = [one for one in placement_group_table().values() if one["state"] == "CREATED"]
    assert not held  # by workers of trials that were ended early; later trials would wait for it
