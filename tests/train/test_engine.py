"""Engines must agree: DeepSpeed with any stage and number of ranks equals the local reference."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distrib.train.deepspeed_engine import deepspeed_config
from distrib.train.engine import EngineConfig, LocalEngine, OptimizerConfig, build_optimizer
from tests.train.engine_ranks import CASES, OPTIMIZER, losses, make_step

ROOT = Path(__file__).parents[2]


def run_ranks(world_size: int, folder: Path) -> list[dict]:
    command = [sys.executable, "-m", "tests.train.engine_ranks"]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(world_size), str(folder / "meeting"), str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    results = []
    for rank in ranks:
        out, err = rank.communicate(timeout=280)
        assert rank.returncode == 0, err[-3000:]
        line = next(line for line in out.splitlines() if line.startswith("RESULT "))
        results.append(json.loads(line.removeprefix("RESULT ")))
    return results


@pytest.fixture(scope="module", params=[1, 2])
def measured(request, tmp_path_factory):
    return run_ranks(request.param, tmp_path_factory.mktemp(f"ranks{request.param}"))


@pytest.fixture(scope="module")
def reference():
    found = {case: losses(LocalEngine(make_step(case), OPTIMIZER), 0, 1) for case in CASES}
    for case, values in found.items():
        assert np.isfinite(values).all(), case
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stage", range(4))
def test_every_stage_and_rank_count_gives_the_losses_of_the_local_engine(
    case, stage, measured, reference
):
    # float32; six Adam steps let sums in another order grow to a few 1e-6 of the loss.
    np.testing.assert_allclose(measured[0][f"{case}/fp32/{stage}"], reference[case], rtol=2e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stage", range(1, 4))
def test_bf16_stays_near_the_local_engine_and_stages_agree(case, stage, measured, reference):
    # bf16 has 8 bits: 0.4 % a number; terms are sums of many. Terms near 0 need an absolute part.
    found = measured[0][f"{case}/bf16/{stage}"]
    np.testing.assert_allclose(found, reference[case], rtol=0.02, atol=0.05)
    np.testing.assert_allclose(found, measured[0][f"{case}/bf16/1"], rtol=2e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stage", range(1, 4))
def test_fp16_scales_its_losses_and_trains(case, stage, measured, reference):
    found = np.array(measured[0][f"{case}/fp16/{stage}"])
    # Before the first update only rounding (11 bits) differs; later ones may have been skipped.
    np.testing.assert_allclose(found[0], reference[case][0], rtol=5e-3, atol=5e-3)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, measured[0][f"{case}/fp16/1"], rtol=2e-3, atol=2e-3)


def test_replicas_are_equal_and_a_saved_engine_comes_back_whole(measured):
    for key in measured[0]:
        if key.endswith("/restored"):
            assert all(rank[key] for rank in measured), key
        if key.endswith("/digest"):
            assert len({rank[key] for rank in measured}) == 1, key


def test_deepspeeds_defaults_with_a_trap_are_written_out():
    engine, optimizer = EngineConfig(precision="bf16", zero_stage=2), OptimizerConfig()
    config = deepspeed_config(engine, optimizer, batch_users=11, world_size=2)
    assert config["gradient_clipping"] == 0.0
    assert config["train_batch_size"] == 2 * config["train_micro_batch_size_per_gpu"] == 12
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["communication_data_type"] == "fp32"
    stage_0 = deepspeed_config(EngineConfig(zero_stage=0), optimizer, batch_users=4, world_size=1)
    assert "data_types" not in stage_0


def test_weight_decay_falls_on_named_parameters_only():
    step = make_step("conv4rec")
    optimizer = build_optimizer(step.model, OPTIMIZER)
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(step.model.input_IDZ), id(step.model.output_IDZ)}
    everything = [p for g in optimizer.param_groups for p in g["params"]]
    assert len(everything) == len(list(step.model.parameters()))


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "adagrad"])
def test_every_optimizer_lowers_the_loss(name):
    engine = LocalEngine(make_step("conv4rec"), OptimizerConfig(name=name, learning_rate=0.003))
    first = np.sum(losses(engine, 0, 1))
    for _ in range(10):
        last = np.sum(losses(engine, 0, 1))
    assert last < first
    assert np.isfinite(last)
