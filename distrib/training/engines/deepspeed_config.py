"""DeepSpeed's configuration from typed fields and a run file's additions."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distrib.config import JsonObject

if TYPE_CHECKING:
    from distrib.training.engines.config import EngineConfig
    from distrib.training.optimizer import OptimizerConfig


LARGEST_BUCKET = 500_000_000
"""Elements; DeepSpeed's default."""

_OVERLAPPING_STAGE = 2
"""ZeRO stage from which gradients are reduced during the backward pass."""

_ALIGNMENT = 16
_PARTS = 4
"""Parts of the gradient, so that the first is sent while the last is computed."""


def bucket_size(parameters: Iterable[Tensor], stage: int) -> int:
    """Return how many elements DeepSpeed reduces at a time.

    Its default is made for language models: two buffers of 5e8 elements for a gradient of a tenth
    of that.

    Args:
        parameters: Of the model.
        stage: ZeRO stage.

    Returns:
        The elements: no fewer than the largest parameter has, up to 5e8, as DeepSpeed aligns them.
    """
    sizes = [parameter.numel() for parameter in parameters]
    wanted = sum(sizes) if stage < _OVERLAPPING_STAGE else max(*sizes, sum(sizes) // _PARTS, 1)
    return min(-(-wanted // _ALIGNMENT) * _ALIGNMENT, LARGEST_BUCKET)


def num_micro_batches(engine: "EngineConfig", *, batch_users: int, world_size: int) -> int:
    """Return how many forward passes a rank makes over its part of a global batch."""
    share = -(-batch_users // world_size)
    return -(-share // engine.micro_batch_users) if engine.micro_batch_users else 1


def deepspeed_config(
    engine: "EngineConfig",
    optimizer: "OptimizerConfig",
    *,
    batch_users: int,
    world_size: int,
    bucket: int = LARGEST_BUCKET,
) -> JsonObject:
    """Build DeepSpeed's configuration from typed fields; surprising defaults are set explicitly.

    Args:
        engine: Precision, ZeRO stage, accumulation.
        optimizer: For gradient clipping.
        batch_users: Users of a global batch.
        world_size: Ranks.
        bucket: See `bucket_size`.

    Returns:
        DeepSpeed's configuration dictionary.
    """
    steps = num_micro_batches(engine, batch_users=batch_users, world_size=world_size)
    micro = -(-batch_users // (world_size * steps))
    stage, precision = engine.zero_stage, engine.precision
    zero: JsonObject = {
        "stage": stage,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        # Before, there is one reduction after the backward pass, and nothing to overlap it with.
        "overlap_comm": stage >= _OVERLAPPING_STAGE and torch.cuda.is_available(),
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if engine.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if engine.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    config: JsonObject = {
        "train_batch_size": micro * world_size * steps,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
        "gradient_clipping": optimizer.gradient_clipping,  # DeepSpeed's own default is 1.0
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16", "initial_scale_power": 16},
        "communication_data_type": engine.gradient_precision,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": optimizer.name in {"sgd", "nadam"},
        "zero_force_ds_cpu_optimizer": False,  # its own would be compiled at run time
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }
    if stage > 0:  # refused by DeepSpeed at stage 0
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return _merged(config, engine.deepspeed)


def _merged(ours: JsonObject, extra: Mapping[str, Any]) -> JsonObject:
    result = dict(ours)
    for key, value in extra.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result
