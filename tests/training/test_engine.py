"""Engines must agree: any engine, stage, number of ranks, before and after a restart."""

import json
import multiprocessing
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from distrib.checkpoint.state import SavedState, write_pieces
from distrib.training.engines.config import EngineConfig
from distrib.training.engines.deepspeed_config import bucket_size, deepspeed_config
from distrib.training.engines.local import LocalEngine
from distrib.training.optimizer import OptimizerConfig, ScheduleConfig, build_optimizer
from tests.training.engine_ranks import (
    CASES,
    NUM_STEPS,
    OPTIMIZER,
    Job,
    losses,
    make_step,
    run_rank,
)

pytestmark = pytest.mark.processes

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.training.engine_ranks"])
HALF = NUM_STEPS // 2
ENGINES = {f"zero{stage}": {"precision": "fp32", "zero_stage": stage} for stage in range(4)}
ENGINES["items"] = {"precision": "fp32", "parallel": "items"}
ENGINES["rows"] = {"precision": "fp32", "parallel": "rows"}
ENGINES_OF = {
    "rec_vae": ("zero0", "zero1", "zero3", "items", "rows"),
    "elsa": ("zero1", "zero3"),
    "biased_mf": ("zero3", "rows"),
    "autorec": ("zero1",),
    "vae_bmf": ("zero0", "zero1", "zero2", "zero3", "rows"),
    "gmf-inverse_dual": ("zero1", "zero3"),
    "gmf-truncated": ("zero1",),
    "gmf-unlabeled": ("zero2",),
    "gmf-gradient": ("zero0", "zero1", "zero2", "rows"),
    "gmf-exact_gradient": ("zero0",),
    "neumf-exact_gradient": ("zero0",),
    "mult_vae-inverse_dual": ("zero0", "zero3"),
    "mult_vae-gradient": ("zero0", "zero1", "zero2"),
    "conv4rec-gradient": ("zero0", "zero1", "zero2"),
    "sas_rec": ("zero0", "zero1", "zero2", "zero3", "rows"),
    "sas_rec-in_batch": ("zero1",),
    "gru4rec": ("zero0", "zero2", "zero3", "rows"),
    "youtube_dnn": ("zero1", "zero3"),
    "deep_fm": ("zero0", "zero3"),
}
SPECIAL = {
    "items-accumulated": {"precision": "fp32", "parallel": "items", "micro_batch_users": 2},
    "rows-accumulated": {"precision": "fp32", "parallel": "rows", "micro_batch_users": 2},
    "accumulated": {"precision": "fp32", "zero_stage": 1, "micro_batch_users": 2},
    "offloaded": {"precision": "fp32", "zero_stage": 2, "offload": "optimizer"},
    "offloaded-all": {"precision": "fp32", "zero_stage": 3, "offload": "all"},
}
HALVED_CASES = ("conv4rec", "mult_vae")
BF16_CASES = [("vae_bmf", stage) for stage in (1, 3)]
PAIRS = [
    (case, kind)
    for case in CASES
    for kind in (ENGINES if case in HALVED_CASES else ENGINES_OF.get(case, ("zero2", "items")))
]
"""Each model on engines that meet it differently; the two that all else rests on, on all."""
SPECIAL_PAIRS = [
    *product(HALVED_CASES, SPECIAL),
    ("mult_vae-denoised", "accumulated"),
    ("mult_vae-denoised", "items-accumulated"),
    ("sas_rec", "accumulated"),
]
HALVES = {
    f"{p}/{s}": {"precision": p, "zero_stage": s} for p in ("bf16", "fp16") for s in (1, 2, 3)
}
HALVES["bf16/items"] = {"precision": "bf16", "parallel": "items"}
HALVES["bf16/rows"] = {"precision": "bf16", "parallel": "rows"}
HALVES["bf16/rows_sent"] = HALVES["bf16/rows"] | {"gradient_precision": "bf16"}
HALVES["bf16/sent"] = {"precision": "bf16", "zero_stage": 1, "gradient_precision": "bf16"}
HALVED = [
    *product(HALVED_CASES, HALVES),
    *((case, f"bf16/{stage}") for case, stage in BF16_CASES),
]


def run_ranks(world_size: int, jobs: dict[str, Job], folder: Path) -> list[dict[str, dict]]:
    """Do jobs on so many processes; for each rank, what it saw by the job's name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(list(jobs.values())))
    ranks = [
        FORKS.Process(target=run_rank, args=(n, world_size, folder)) for n in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    results = []
    for number, rank in enumerate(ranks):
        rank.join(280)
        assert rank.exitcode == 0, (folder / f"log{number}").read_text()[-3000:]
        seen = json.loads((folder / f"result{number}.json").read_text())
        results.append(dict(zip(jobs, seen, strict=True)))
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


def saved_at(folder, world_size, name):
    return str(folder / f"saved{world_size}" / name)


ALONE = {*SPECIAL, "zero1", "items", "bf16/1", "bf16/items", "fp16/1"} - {"rows-accumulated"}
"""Engines that are tried on one rank, too, where DeepSpeed trains only what it alone can do."""


def on_ranks(pairs):
    """Each pair on two ranks; on one rank those of the models that all else rests on."""
    alone = [pair for pair in pairs if pair[0] in HALVED_CASES and pair[1] in ALONE]
    return [(1, *pair) for pair in alone] + [(2, *pair) for pair in pairs]


EVERYTHING = on_ranks([*PAIRS, *HALVED, *SPECIAL_PAIRS])


@pytest.fixture(scope="module")
def measured(folder):
    """Six updates of every engine; its state after three is kept, and gone on from at the end."""
    return {world_size: _measured(folder, world_size) for world_size in (1, 2)}


def _measured(folder, world_size):
    jobs = {}
    everything = ENGINES | SPECIAL | HALVES
    for ranks, case, kind in EVERYTHING:
        if ranks != world_size:
            continue
        name, engine = f"{case}/{kind}", everything[kind]
        kept = saved_at(folder, world_size, name)
        jobs[name] = Job(case, engine)
        jobs[f"{name}/first"] = Job(case, engine, last=HALF, save=kept)
        jobs[f"{name}/second"] = Job(case, engine, begin=kept, first=HALF)
    return run_ranks(world_size, jobs, folder / str(world_size))


@pytest.fixture(scope="module")
def reference():
    found = {case: losses(case, LocalEngine(make_step(case), OPTIMIZER), 0, 1) for case in CASES}
    for case, values in found.items():
        assert np.isfinite(values).all(), case
    return found


@pytest.mark.parametrize(("ranks", "case", "kind"), on_ranks([*PAIRS, *SPECIAL_PAIRS]))
def test_every_engine_and_rank_count_gives_the_losses_of_the_local_engine(
    ranks, case, kind, measured, reference
):
    # float32; six Adam steps let sums in another order grow to some 1e-5 of the loss.
    found = measured[ranks][0][f"{case}/{kind}"]["losses"]
    np.testing.assert_allclose(found, reference[case], rtol=5e-5)


OWN_BF16 = ("items", "sent", "rows", "rows_sent")
HALVED_STAGES = (1, 2, 3, *OWN_BF16)
BF16 = [
    *((case, f"bf16/{stage}") for case in HALVED_CASES for stage in HALVED_STAGES),
    *((case, f"bf16/{stage}") for case, stage in BF16_CASES),
]


@pytest.mark.parametrize(("ranks", "case", "kind"), on_ranks(BF16))
def test_bf16_stays_near_the_local_engine_and_stages_agree(ranks, case, kind, measured, reference):
    # bf16 has 8 bits: 0.4 % a number; terms are sums of many. Terms near 0 need an absolute part.
    of_case = measured[ranks][0]
    found = of_case[f"{case}/{kind}"]["losses"]
    np.testing.assert_allclose(found, reference[case], rtol=0.02, atol=0.05)
    if kind.removeprefix("bf16/") not in OWN_BF16:
        np.testing.assert_allclose(found, of_case[f"{case}/bf16/1"]["losses"], rtol=2e-5)


def local_engine(case, *, dtype=torch.bfloat16, num_parts=1):
    return LocalEngine(make_step(case), OPTIMIZER, dtype=dtype, num_parts=num_parts)


@pytest.mark.parametrize(("ranks", "case"), [*((1, case) for case in HALVED_CASES), (2, "vae_bmf")])
def test_bf16_without_deepspeed_is_that_of_deepspeed(ranks, case, measured):
    found = losses(case, local_engine(case), 0, 1)
    expected = measured[ranks][0][f"{case}/bf16/1"]["losses"]
    # Not to the bit: DeepSpeed scales the loss in another place, and gradients have 8 bits.
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=5e-4)


@pytest.mark.parametrize("case", [*HALVED_CASES, "mult_vae-denoised", "sas_rec"])
def test_micro_batches_without_deepspeed_give_the_losses_of_the_whole(case, reference):
    found = losses(case, local_engine(case, dtype=torch.float32, num_parts=3), 0, 1)
    np.testing.assert_allclose(found, reference[case], rtol=5e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [*HALVED_CASES, "elsa", "gru4rec"])
def test_without_deepspeed_a_restored_engine_goes_on_bit_for_bit(case, dtype, tmp_path):
    whole = local_engine(case, dtype=dtype, num_parts=2)
    expected = losses(case, whole, 0, 1)
    first, second = (local_engine(case, dtype=dtype, num_parts=2) for _ in range(2))
    found = losses(case, first, 0, 1, last=HALF)
    write_pieces(tmp_path / "state-0.safetensors", first.pieces())
    second.restore(SavedState(tmp_path), first.facts())
    assert found + losses(case, second, 0, 1, first=HALF) == expected
    for name, value in whole.weights().items():
        assert torch.equal(value, second.weights()[name]), name
        assert value.dtype == torch.float32


FP16 = [(case, f"fp16/{stage}") for case in HALVED_CASES for stage in range(1, 4)]


@pytest.mark.parametrize(("ranks", "case", "kind"), on_ranks(FP16))
def test_fp16_scales_its_losses_and_trains(ranks, case, kind, measured, reference):
    found = np.array(measured[ranks][0][f"{case}/{kind}"]["losses"])
    # Before the first update only rounding (11 bits) differs; later ones may have been skipped.
    np.testing.assert_allclose(found[0], reference[case][0], rtol=5e-3, atol=5e-3)
    assert np.isfinite(found).all()
    first = measured[ranks][0][f"{case}/fp16/1"]["losses"]
    np.testing.assert_allclose(found, first, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_restored_engine_goes_on_bit_for_bit_and_replicas_are_equal(world_size, measured):
    ranks = measured[world_size]
    wanted = [f"{case}/{kind}" for number, case, kind in EVERYTHING if number == world_size]
    assert wanted
    for name in wanted:
        halves = [ranks[0][f"{name}/{half}"]["losses"] for half in ("first", "second")]
        assert halves[0] + halves[1] == ranks[0][name]["losses"], name
        for key in (name, f"{name}/second"):
            assert {rank[key]["digest"] for rank in ranks} == {ranks[0][name]["digest"]}, key


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3)])
def test_a_state_serves_any_number_of_ranks_and_any_engine(before, after, folder, reference):
    kinds = list(ENGINES)
    first = {
        f"{case}/{kind}": Job(
            case, ENGINES[kind], last=HALF, save=f"{folder}/{before}-{case}-{kind}"
        )
        for case in HALVED_CASES
        for kind in kinds
    }
    run_ranks(before, first, folder / f"{before}to{after}-first")
    second = {  # the same stage, and one that is another
        f"{case}/{kind}/{other}": Job(
            case, ENGINES[other], begin=f"{folder}/{before}-{case}-{kind}", first=HALF
        )
        for case in HALVED_CASES
        for place, kind in enumerate(kinds)
        for other in (kind, kinds[place - 1])
    }
    ranks = run_ranks(after, second, folder / f"{before}to{after}-second")
    for name, found in ranks[0].items():
        wanted = reference[name.split("/")[0]][HALF:]
        np.testing.assert_allclose(found["losses"], wanted, rtol=2e-5, err_msg=name)
        assert len({rank[name]["digest"] for rank in ranks}) == 1, name


def test_other_rules_go_on_bit_for_bit(folder):
    rules, engine = ("adam", "nadam", "sgd", "adagrad"), ENGINES["zero2"]
    jobs = {}
    for rule in rules:
        place = f"{folder}/{rule}"
        jobs[f"{rule}/whole"] = Job("mult_vae", engine, optimizer=rule)
        jobs[f"{rule}/first"] = Job("mult_vae", engine, last=HALF, save=place, optimizer=rule)
        jobs[f"{rule}/second"] = Job("mult_vae", engine, begin=place, first=HALF, optimizer=rule)
    found = run_ranks(2, jobs, folder / "rules")[0]
    for rule in rules:
        whole, first, second = (found[f"{rule}/{part}"] for part in ("whole", "first", "second"))
        assert first["losses"] + second["losses"] == whole["losses"], rule
        assert second["digest"] == whole["digest"], rule


def test_deepspeeds_defaults_with_a_trap_are_written_out():
    engine, optimizer = EngineConfig(precision="bf16", zero_stage=2), OptimizerConfig()
    config = deepspeed_config(engine, optimizer, batch_users=11, world_size=2)
    assert config["gradient_clipping"] == 0.0
    assert config["train_batch_size"] == 2 * config["train_micro_batch_size_per_gpu"] == 12
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["communication_data_type"] == "fp32"
    assert not config["zero_optimization"]["overlap_comm"]  # no GPU here
    stage_0 = deepspeed_config(EngineConfig(zero_stage=0), optimizer, batch_users=4, world_size=1)
    assert "data_types" not in stage_0


def test_buckets_follow_the_model_and_hold_its_largest_table():
    parameters = [torch.empty(size, device="meta") for size in (99, 60, 30, 10)]
    assert bucket_size(parameters, 0) == bucket_size(parameters, 1) == 208  # aligned
    assert bucket_size(parameters, 2) == bucket_size(parameters, 3) == 112
    assert bucket_size([torch.empty(16) for _ in range(40)], 2) == 160
    assert bucket_size([torch.empty(10**9, device="meta")], 1) == 500_000_000
    config = deepspeed_config(
        EngineConfig(), OptimizerConfig(), batch_users=4, world_size=1, bucket=70
    )
    assert config["zero_optimization"]["reduce_bucket_size"] == 70
    assert config["zero_optimization"]["allgather_bucket_size"] == 70


def test_the_rest_of_deepspeed_passes_through_and_clashes_are_refused():
    engine = EngineConfig(deepspeed={"zero_optimization": {"reduce_bucket_size": 1000}})
    config = deepspeed_config(engine, OptimizerConfig(), batch_users=4, world_size=1)
    assert config["zero_optimization"]["reduce_bucket_size"] == 1000
    assert config["zero_optimization"]["stage"] == 1
    wrong = {"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0, "memory_brakdown": True}
    with pytest.raises(
        ValueError, match=r"zero_optimization\.stage: engine\.zero_stage"
    ) as reported:
        EngineConfig(deepspeed=wrong)
    assert "gradient_clipping: optimizer.gradient_clipping" in str(reported.value)
    assert "did you mean 'memory_breakdown'?" in str(reported.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp16", "zero_stage": 0}, "trains wrongly"),
        ({"offload": "all", "zero_stage": 2}, "parameters in stage 3"),
        ({"offload": "optimizer", "zero_stage": 0}, "from stage 1 on"),
        ({"parallel": "items", "precision": "fp16"}, "without DeepSpeed"),
        ({"gradient_precision": "bf16", "precision": "fp32"}, "data-parallel workers in bf16"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EngineConfig(**settings)


def test_the_learning_rate_warms_up_and_goes_down():
    cosine = ScheduleConfig(name="cosine", warmup_steps=4, decay_steps=10, final_share=0.1)
    assert [cosine.share(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert cosine.share(9) == pytest.approx(0.55)
    assert cosine.share(14) == cosine.share(99) == pytest.approx(0.1)
    assert ScheduleConfig(name="linear", decay_steps=4).share(1) == 0.75
    assert ScheduleConfig().share(10**6) == 1.0
    with pytest.raises(ValueError, match="need decay_steps above 0"):
        ScheduleConfig(name="linear")


def test_weight_decay_falls_on_named_parameters_only():
    step = make_step("conv4rec")
    optimizer = build_optimizer(step.model, OPTIMIZER)
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    tables = step.model.input_IDZ, step.model.output_IDZ, step.model.rating_IZ
    assert decayed == {id(table) for table in tables}
    everything = [p for g in optimizer.param_groups for p in g["params"]]
    assert len(everything) == len(list(step.model.parameters()))


@pytest.mark.parametrize("name", ["adamw", "adam", "nadam", "sgd", "adagrad"])
def test_every_optimizer_lowers_the_loss(name):
    engine = LocalEngine(make_step("conv4rec"), OptimizerConfig(name=name, learning_rate=0.003))
    first = np.sum(losses("mult_vae", engine, 0, 1))
    for _ in range(3):
        last = np.sum(losses("mult_vae", engine, 0, 1))
    assert last < first
    assert np.isfinite(last)
