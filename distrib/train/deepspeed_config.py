"""DeepSpeed's configuration from typed fields, and what of it a run file may add."""

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from distrib.train.engine import EngineConfig
    from distrib.train.optimizer import OptimizerConfig

_OURS = {
    "train_batch_size": "train.batch_users",
    "train_micro_batch_size_per_gpu": "engine.micro_batch_users",
    "gradient_accumulation_steps": "engine.micro_batch_users",
    "gradient_clipping": "optimizer.gradient_clipping",
    "optimizer": "optimizer",
    "scheduler": "optimizer.schedule",
    "bf16.enabled": "engine.precision",
    "fp16.enabled": "engine.precision",
    "data_types": "engine.precision",
    "torch_autocast": "engine.precision",
    "communication_data_type": "engine.precision",
    "zero_optimization.stage": "engine.zero_stage",
    "zero_optimization.offload_optimizer": "engine.offload",
    "zero_optimization.offload_param": "engine.offload",
    "zero_optimization.contiguous_gradients": "engine.zero_stage",
    "zero_optimization.reduce_scatter": "engine.zero_stage",
    "zero_allow_untested_optimizer": "optimizer.name",
    "zero_force_ds_cpu_optimizer": "engine.offload",
}
"""What other settings decide, and which."""

_KNOWN = {
    "activation_checkpointing",
    "aio",
    "bf16",
    "comet",
    "comms_logger",
    "csv_monitor",
    "disable_allgather",
    "dump_state",
    "flops_profiler",
    "fp16",
    "gradient_predivide_factor",
    "memory_breakdown",
    "prescale_gradients",
    "seq_parallel_communication_data_type",
    "steps_per_print",
    "tensorboard",
    "timers",
    "use_data_before_expert_parallelism",
    "wall_clock_breakdown",
    "wandb",
    "zero_optimization",
}
"""Keys that pass through. DeepSpeed ignores what it does not know at the top, without a word; and
it knows some that would change what the engine does (``compile``, ``sparse_gradients``)."""

_TABLES = {"bf16", "fp16", "zero_optimization"}


def faults_of(extra: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a pass-through table: clashes, and names that DeepSpeed ignores."""
    faults = [
        f"deepspeed.{path}: {_OURS[path]} decides that; set it there"
        for path in _paths(extra)
        if path in _OURS
    ]
    for key, value in extra.items():
        if key in _TABLES and not isinstance(value, Mapping):
            faults.append(f"deepspeed.{key} = {value!r}: this is a table")
        if key not in _KNOWN and key not in _OURS:
            near = difflib.get_close_matches(key, _KNOWN, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"those that do: {sorted(_KNOWN)}"
            faults.append(f"deepspeed.{key}: this key does not pass through; {hint}")
    return faults


def _paths(table: Mapping[str, Any]) -> list[str]:
    """Return all keys, those of tables inside joined by a dot."""
    inner = [
        f"{k}.{path}" for k, v in table.items() if isinstance(v, Mapping) for path in _paths(v)
    ]
    return [*table, *inner]


def num_micro_batches(engine: "EngineConfig", *, batch_users: int, world_size: int) -> int:
    """Return how many forward passes a rank makes of its part of a global batch."""
    share = -(-batch_users // world_size)
    return -(-share // engine.micro_batch_users) if engine.micro_batch_users else 1


def deepspeed_config(
    engine: "EngineConfig", optimizer: "OptimizerConfig", *, batch_users: int, world_size: int
) -> dict[str, Any]:
    """Build DeepSpeed's configuration from typed fields; all values with a trap are written out.

    Args:
        engine: Precision, ZeRO stage, accumulation.
        optimizer: For gradient clipping.
        batch_users: Users of a global batch.
        world_size: Ranks.

    Returns:
        The configuration as DeepSpeed takes it.
    """
    steps = num_micro_batches(engine, batch_users=batch_users, world_size=world_size)
    micro = -(-batch_users // (world_size * steps))
    stage, precision = engine.zero_stage, engine.precision
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "overlap_comm": torch.cuda.is_available(),
    }
    if engine.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if engine.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    config: dict[str, Any] = {
        "train_batch_size": micro * world_size * steps,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
        "gradient_clipping": optimizer.gradient_clipping,  # DeepSpeed's own default is 1.0
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16", "initial_scale_power": 16},
        "communication_data_type": "fp32",
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": optimizer.name in {"sgd", "nadam"},
        "zero_force_ds_cpu_optimizer": False,  # its own would be compiled at run time
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }
    if stage > 0:  # refused by DeepSpeed at stage 0
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return _merged(config, engine.deepspeed)


def _merged(ours: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(ours)
    for key, value in extra.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result
