from pathlib import Path

import pytest

from distrib.config import load
from distrib.errors import ConfigError
from distrib.run_file import RunFile

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.toml"))
DEMO = Path(__file__).parent.parent / "configs/demo.toml"
ENVIRONMENT = {"DISTRIB_DATA": "/data"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_run_file_loads_and_survives_json(path):
    file = load(RunFile, path, environment=ENVIRONMENT)
    assert RunFile.model_validate_json(file.model_dump_json()) == file


def write(folder, text):
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_all_faults_are_told_at_once_with_the_nearest_key(tmp_path):
    path = write(
        tmp_path,
        'run = "r"\n[data]\nprepared = "p"\n[model]\nname = "conv4rec"\nlatent_widht = 3\n'
        '[train]\nnum_epochs = 1.5\n[engine]\nprecision = "fp8"\n',
    )
    with pytest.raises(ConfigError) as caught:
        load(RunFile, path)
    message = str(caught.value)
    assert "3 fault(s)" in message
    assert "latent_widht = 3: unknown key of 'conv4rec'; did you mean 'latent_width'?" in message
    assert "train.num_epochs = 1.5" in message
    assert "engine.precision = 'fp8'" in message


def test_an_unknown_model_lists_the_known_ones(tmp_path):
    path = write(tmp_path, 'run = "r"\n[data]\nprepared = "p"\n[model]\nname = "conv5rec"\n')
    with pytest.raises(ConfigError, match=r"'autorec', .*'conv4rec', .*'mult_vae', .*'rec_vae'"):
        load(RunFile, path)


def test_overrides_win_and_are_checked(tmp_path):
    text = 'run = "r"\n[data]\nprepared = "p"\n[model]\nname = "mult_vae"\n'
    file = load(RunFile, write(tmp_path, text), overrides=["train.num_epochs=3", 'run="other"'])
    assert (file.train.num_epochs, file.run) == (3, "other")
    with pytest.raises(ConfigError, match="'r' is a value, not a section"):
        load(RunFile, write(tmp_path, text), overrides=["run.deep=1"])
    table = 'data.source={format="movielens", path="u.data"}'
    assert load(RunFile, write(tmp_path, text), overrides=[table]).data.source.path == "u.data"
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(RunFile, write(tmp_path, text), overrides=["run=other"])


def test_an_unset_variable_is_a_fault_and_a_set_one_is_filled_in(tmp_path):
    text = 'run = "${PLACE}/r"\n[data]\nprepared = "p"\n[model]\nname = "mult_vae"\n'
    assert load(RunFile, write(tmp_path, text), environment={"PLACE": "s3://b"}).run == "s3://b/r"
    with pytest.raises(ConfigError, match="PLACE is not set"):
        load(RunFile, write(tmp_path, text))


def test_fp16_without_zero_is_refused(tmp_path):
    text = 'run = "r"\n[data]\nprepared = "p"\n[model]\nname = "mult_vae"\n'
    text += '[engine]\nprecision = "fp16"\nzero_stage = 0\n'
    with pytest.raises(ConfigError, match="fp16 with zero_stage 0 trains wrongly"):
        load(RunFile, write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml does not exist"):
        load(RunFile, tmp_path / "none.toml")


@pytest.mark.parametrize(
    "setting",
    [
        "serve.token=hunter2",  # quotes forgotten
        "serve.token=12345",
        'serve.token=["hunter2"]',
        'serve.tokn="hunter2"',
        'serve.token=""',
    ],
)
def test_no_message_repeats_a_secret(setting):
    with pytest.raises(ConfigError, match=r"tok\w*") as reported:
        load(RunFile, DEMO, overrides=[setting])
    assert "hunter2" not in str(reported.value)
    assert "12345" not in str(reported.value)


def test_an_unknown_model_is_one_line_with_the_nearest(tmp_path):
    path = write(tmp_path, 'run = "r"\n[data]\nprepared = "p"\n[model]\nname = "mult_vea"\n')
    with pytest.raises(ConfigError, match="'mult_vea'; did you mean 'mult_vae'") as caught:
        load(RunFile, path)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('train.num_epochs = "ten"', "train.num_epochs = 'ten': must be a whole number"),
        ("train.num_epochs = 1.5", "train.num_epochs = 1.5: must be a whole number"),
        ('optimizer.learning_rate = "fast"', "'fast': must be a number"),
        ("optimizer.learning_rate = -1.0", "must be greater than 0"),
        ('train.use_gpu = "yes"', "train.use_gpu = 'yes': must be true or false"),
        ("run = 3", "run = 3: must be text"),
        ("evaluate.recall_at = 20", "evaluate.recall_at = 20: must be a list"),
        ("train.checkpoint = 5", "train.checkpoint = 5: must be a table"),
        ('engine.precision = "int8"', "must be 'bf16', 'fp16' or 'fp32'"),
        ("score.policy.deny = [1.5, 2]", "policy.deny.0 = 1.5: must be a whole number or text"),
        ("score.policy.deny = 3", "policy.deny = 3: must be a list or text"),
        ('serve.replicas = [1, "x"]', "serve.replicas.1 = 'x': must be a whole number"),
        ("serve.models = {a = 3}", "serve.models.a = 3: must be text"),
        ('data.source = {format = "csv", path = "x"}', "data.source.columns: is required; set it"),
        ('model = {name = "ease", rank = 3}', "model.rank = 3: unknown key of 'ease'; remove it"),
    ],
)
def test_a_value_of_another_type_is_described_by_what_it_must_be(setting, message):
    with pytest.raises(ConfigError) as reported:
        load(RunFile, str(DEMO), overrides=[setting], environment={})
    assert message in str(reported.value)
    assert "1 fault" in str(reported.value)
    assert "Input" not in str(reported.value)
