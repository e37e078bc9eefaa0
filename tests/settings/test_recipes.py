"""What init writes for each model follows from the log, and is a run that can be trained."""

from typing import get_args

import pytest

from distrib.config import load
from distrib.errors import ConfigError
from distrib.models import ModelConfig
from distrib.run_file import RunFile
from distrib.settings.guess import guess
from distrib.settings.recipes import Counts, recipe
from distrib.settings.starter import measure, run_file
from distrib.training.preflight.checks import check_run

MODELS = [kind.model_fields["name"].default for kind in get_args(get_args(ModelConfig)[0])]
LABELED = {"gmf", "mlp", "neumf", "conv_ncf"}
"""Models of likes and dislikes, which a log of stars must first be divided into."""


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "log.csv"
    rows = [f"u{n % 60},i{n * 7 % 41},{n % 5 + 1},{1_600_000_000 + n}" for n in range(1200)]
    path.write_text("\n".join(["user,item,stars,time", *rows]))
    found = guess(str(path), {})
    return found, measure(found)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_gets_a_run_that_can_be_trained(model, log, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(run_file(*log, "research", "run", model))
    file = load(RunFile, path, overrides=[f'run="{tmp_path}/run"'])
    assert file.model.name == model
    assert file.data.item_histories == (model in {"autorec", "vae_bmf"})
    assert ("[train]" in path.read_text()) == (model not in {"ease", "item_knn", "popularity"})
    if model not in LABELED:
        check_run(file.training())


def test_an_unknown_model_is_one_error_with_the_nearest_name(log):
    with pytest.raises(ConfigError, match="unknown name 'mult_vea'; did you mean 'mult_vae'"):
        run_file(*log, "research", "run", "mult_vea")


def test_the_decay_of_an_epoch_does_not_depend_on_the_size_of_the_log():
    for users, batch in ((290, 16), (6_040, 64), (138_493, 512)):
        found = recipe("conv4rec", Counts(users, 5_000, 100 * users, batch))
        per_epoch = found.optimizer["weight_decay"] * 1e-3 * (users // batch)
        assert per_epoch == pytest.approx(0.3, rel=0.05)
    assert recipe("elsa", Counts(10, 10, 100, 16)).model == {}


def test_few_ratings_decay_faster_than_interactions():
    few, many = (recipe("conv4rec", Counts(1000, 5000, 1000 * n, 64)).model for n in (12, 20))
    assert few["rating_decay"] == 10.0
    assert "rating_decay" not in many


def test_similarities_of_few_users_count_less():
    few, many = (recipe("item_knn", Counts(1000, 5000, 1000 * n, 64)).model for n in (12, 20))
    assert few == {"num_neighbors": 400, "shrink": 50.0}
    assert many == {}


def test_tiles_are_large_however_small_the_log():
    for users, wanted in ((60, 64), (610, 64), (6040, 512), (10**6, 512)):
        train = recipe("vae_bmf", Counts(users, 5000, 100 * users, 16)).train
        assert (train["batch_users"], train["tiles"]) == (wanted, {"items": 512})
