"""What a run will need, against what models, engines and checkpoints are."""

from pathlib import Path

import pytest

from distrib.config import load
from distrib.data.dataset import RowCounts
from distrib.errors import ConfigError
from distrib.run_file import RunFile
from distrib.training.preflight.checks import run_faults
from distrib.training.preflight.estimate import _small, estimate, sizes_of_counts
from distrib.training.schemes import scheme_of
from distrib.training.schemes.base import Sizes

ROOT = Path(__file__).parents[2]
SIZES = Sizes(3000, 700, 40_000)


def config_of(name, **settings):
    overrides = [f"{key} = {value}" for key, value in settings.items()]
    path = ROOT / f"configs/{name}.toml"
    return load(RunFile, path, overrides=overrides, environment={"DISTRIB_DATA": "/x"}).training()


MODELS = ["conv4rec", "mult_vae", "rec_vae", "elsa", "u_autorec", "i_autorec", "vae_bmf"]


@pytest.mark.parametrize("name", [*MODELS, "biased_mf", "dae_cf"])
def test_parameters_are_those_of_the_model_at_full_size(name):
    config = config_of(f"ml20m_{name}")
    model = scheme_of(config).build(config.model, _small(SIZES.items, SIZES.users))
    wanted = sum(tensor.numel() for tensor in model.state_dict().values())
    assert estimate(config, SIZES).parameters == wanted


def test_the_operations_of_a_step_are_those_of_its_products():
    """Mult-VAE by hand: the first layer is a sum of rows, all others are products."""
    config = config_of("ml20m_mult_vae", **{"engine.precision": '"fp32"', "train.num_workers": 1})
    items, hidden, latent = SIZES.items, 600, 200
    small = hidden * 2 * latent + latent * hidden
    last = hidden * items
    # Forward and both gradients; the code's input has its own, so has the last layer's.
    flops = 2 * 3 * config.train.batch_users * (small + last)
    assert estimate(config, SIZES).step_s == pytest.approx(flops / 35e9, rel=0.02)


def test_more_workers_share_the_time_and_what_zero_spreads():
    settings = {"train.num_workers": 4, "engine.zero_stage": 3}
    one = estimate(config_of("ml20m_mult_vae", **{"train.num_workers": 1}), SIZES)
    four = estimate(config_of("ml20m_mult_vae", **settings), SIZES)
    sent_s = 2 * 3 / 4 * one.parameters * 4 / 1.25e9  # float32
    assert four.step_s - sent_s == pytest.approx(one.step_s / 4, rel=0.02)
    settings["engine.zero_stage"], settings["engine.parallel"] = 0, '"items"'
    by_items = estimate(config_of("ml20m_mult_vae", **settings), SIZES)
    assert by_items.step_s < four.step_s  # the last layer's gradients stay where they are
    buffer_gb = 2 * one.parameters / 2**30
    assert four.state_gb - buffer_gb == pytest.approx(one.state_gb / 4, rel=0.01)
    assert four.checkpoint_gb == one.checkpoint_gb


def test_by_rows_the_rows_that_are_met_are_sent_and_nothing_is_spread():
    settings = {"train.num_workers": 2, "engine.zero_stage": 0, "train.batch_users": 20}
    by_rows = {**settings, "engine.parallel": '"rows"'}
    for name, is_tied in (("ml20m_mult_vae", False), ("ml20m_elsa", True)):
        whole, rows = (estimate(config_of(name, **s), SIZES) for s in (settings, by_rows))
        run = config_of(name, **settings)
        met = run.train.batch_users * SIZES.interactions / SIZES.users / SIZES.items
        assert met < 1, "otherwise nothing is saved"
        table = 0 if is_tied else SIZES.items * run.model.hidden_width
        saved_s = table * (1 - met) * 4 / 1.25e9
        assert whole.step_s - rows.step_s == pytest.approx(saved_s, rel=0.02, abs=1e-9), name
        alone = estimate(config_of(name, **settings | {"train.num_workers": 1}), SIZES)
        assert rows.state_gb == alone.state_gb, name


def test_gradients_in_bf16_take_half_the_time_and_buffers_of_zero_count():
    settings = {"train.num_workers": 2, "engine.zero_stage": 2}
    whole = estimate(config_of("ml20m_mult_vae", **settings), SIZES)
    half = estimate(
        config_of("ml20m_mult_vae", **settings, **{"engine.gradient_precision": '"bf16"'}), SIZES
    )
    assert whole.step_s - half.step_s == pytest.approx(whole.parameters * 2 / 1.25e9, rel=0.01)
    settings["engine.zero_stage"] = 1
    fewer = estimate(config_of("ml20m_mult_vae", **settings), SIZES)
    spread, buffers = 4 * whole.parameters / 2, 2 * 2 * whole.parameters
    assert (whole.state_gb - fewer.state_gb) * 2**30 == pytest.approx(buffers - spread, rel=0.01)


def test_one_worker_in_fp32_updates_what_computes():
    settings = {"train.num_workers": 1, "engine.precision": '"fp32"'}
    found = estimate(config_of("ml20m_mult_vae", **settings), SIZES)
    assert found.state_gb * 2**30 == pytest.approx(16 * found.parameters, rel=0.01)


def test_hours_of_gpus_are_counted_where_there_are_any():
    settings = {"train.use_gpu": "true", "train.num_workers": 8}
    fast = estimate(config_of("ml20m_mult_vae", **settings), SIZES, "h100")
    slow = estimate(config_of("ml20m_mult_vae", **settings), SIZES, "t4")
    assert fast.gpu_hours == pytest.approx(8 * fast.train_hours)
    assert slow.score_hours / fast.score_hours == pytest.approx(989 / 65)
    assert estimate(config_of("ml20m_mult_vae"), SIZES).gpu_hours == 0.0
    with pytest.raises(ConfigError, match="one of t4"):
        estimate(config_of("ml20m_mult_vae", **settings), SIZES, "v5")


def test_memory_of_the_last_layer_is_that_of_a_block():
    wide = Sizes(3000, 1_000_000, 40_000)
    base = {"train.num_workers": 1, "engine.keep_output_mb": 0}
    whole = estimate(config_of("ml20m_mult_vae", **base, **{"engine.block_items": 1_000_000}), wide)
    blocks = estimate(config_of("ml20m_mult_vae", **base, **{"engine.block_items": 4096}), wide)
    share = 500 * 4 * 3 * (1_000_000 - 4096) / 2**30
    assert whole.worker_gb - blocks.worker_gb == pytest.approx(share, rel=0.01)


def test_what_products_do_not_tell_is_left_to_a_trial():
    found = estimate(config_of("ml20m_vae_bmf"), SIZES)
    assert found.step_s is None
    assert found.gpu_hours in (None, 0.0)
    assert "doctor" in found.lines()["a step"]
    with pytest.raises(ConfigError, match="computed in closed form"):
        estimate(config_of("ml20m_ease"), SIZES)


def test_sizes_are_those_of_a_manifest():
    counts = RowCounts(
        read=13,
        kept=13,
        rejected={},
        users=6,
        items=7,
        training_users=5,
        interactions_by_role={"input": 11, "test_target": 2},
        users_by_subset={},
    )
    assert sizes_of_counts(counts) == (5, 7, 11)


def test_what_cannot_train_a_model_of_sequences_is_refused():
    """A correction by the popularity of all interactions does not fit last ones as targets."""
    wrong = {"objective.against": '"batch"', "model.targets": '"last"'}
    why = "against = 'batch' with model.targets = 'last'"
    assert any(why in fault for fault in run_faults(config_of("ml1m_sas_rec", **wrong)))
    right = config_of("ml1m_sas_rec", **{"objective.against": '"batch"'})
    assert not any(why in fault for fault in run_faults(right))
