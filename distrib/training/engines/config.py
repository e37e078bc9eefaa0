"""Settings of the engine, and which DeepSpeed keys a run file may add."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from distrib.config import Config

_CPU_BLOCK_ITEMS, _CPU_KEPT_MB = 4096, 256
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
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
    "communication_data_type": "engine.gradient_precision",
    "zero_optimization.stage": "engine.zero_stage",
    "zero_optimization.offload_optimizer": "engine.offload",
    "zero_optimization.offload_param": "engine.offload",
    "zero_optimization.contiguous_gradients": "engine.zero_stage",
    "zero_optimization.reduce_scatter": "engine.zero_stage",
    "zero_allow_untested_optimizer": "optimizer.name",
    "zero_force_ds_cpu_optimizer": "engine.offload",
}
"""DeepSpeed keys that other settings decide, and those settings."""

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
"""Keys that pass through. DeepSpeed silently ignores unknown top-level keys, and some known ones
would change what the engine does (``compile``, ``sparse_gradients``)."""

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
            faults.append(f"deepspeed.{key} = {value!r}: must be a table")
        if key not in _KNOWN and key not in _OURS:
            near = difflib.get_close_matches(key, _KNOWN, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"supported: {sorted(_KNOWN)}"
            faults.append(f"deepspeed.{key}: this key is not supported; {hint}")
    return faults


def _paths(table: Mapping[str, Any]) -> list[str]:
    """Return all keys; keys of nested tables are joined by dots."""
    inner = [
        f"{k}.{path}" for k, v in table.items() if isinstance(v, Mapping) for path in _paths(v)
    ]
    return [*table, *inner]


class EngineConfig(Config):
    """How the engine computes."""

    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Of parameters and activations; losses and the optimizer are always float32."""

    gradient_precision: Literal["fp32", "bf16"] = "fp32"
    """In which data-parallel workers add up their gradients: bf16 sends half as much, and rounds
    each sum to 8 bits. With ``precision = "bf16"`` only."""

    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """What is sharded over ranks: 1 optimizer state, 2 also gradients, 3 also parameters. On one
    worker there is nothing to shard."""

    offload: Literal["none", "optimizer", "all"] = "none"
    """What DeepSpeed keeps in CPU memory: the optimizer's state, or (stage 3) also parameters."""

    parallel: Literal["data", "rows", "items"] = "data"
    """How several workers share a batch. ``data``: by users, with DeepSpeed. ``rows``: by users,
    without it: of large tables only the gradient rows that the batch met are sent, and each worker
    keeps the whole state of the optimizer; for CPUs. ``items``: each rank owns a range of items in
    the last layer, and gathers the user embeddings instead of reducing gradients as large as the
    catalog. ``rows`` and ``items`` are without ZeRO and fp16."""

    block_items: PositiveInt | Literal["auto"] = "auto"
    """Items per chunk of the last layer; peak memory grows with it, small chunks are slow.
    ``auto``: 4,096 on a CPU; on a GPU all, or as many as fit into a quarter of what is free."""

    keep_output_mb: NonNegativeInt | Literal["auto"] = "auto"
    """Decoded chunks are kept for the backward pass up to this size, and recomputed beyond it.
    ``auto``: 256 on a CPU, on a GPU a quarter of its free memory."""

    micro_batch_users: NonNegativeInt = 0
    """Users of a rank in one forward pass; gradients accumulate over the batch. 0: all at once."""

    graphs: bool = False
    """On a GPU, record the updates of an autoencoder as CUDA graphs, for which interactions are
    filled up to one of a few sizes: a host then launches an update at once. Of one worker, without
    DeepSpeed; where that is not possible, the event ``graphs`` says why."""

    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Passed to DeepSpeed unchanged, e.g. ``zero_optimization.reduce_bucket_size``; keys that other
    settings decide are refused."""

    def needs_deepspeed(self, world_size: int) -> bool:
        """Return whether DeepSpeed trains: on several workers, or for what it alone can do."""
        if self.parallel != "data":
            return False
        has_more = self.precision == "fp16" or self.offload != "none" or bool(self.deepspeed)
        return world_size > 1 or has_more

    @property
    def chunk_items(self) -> int:
        """Items per chunk; what a CPU takes where that is left open."""
        return _CPU_BLOCK_ITEMS if self.block_items == "auto" else self.block_items

    @property
    def kept_mb(self) -> int:
        """Size of the kept chunks; what a CPU takes where that is left open."""
        return _CPU_KEPT_MB if self.keep_output_mb == "auto" else self.keep_output_mb

    @property
    def sent_dtype(self) -> torch.dtype:
        """Of gradients that workers send each other."""
        return _DTYPES[self.gradient_precision]

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters and activations."""
        return _DTYPES[self.precision]

    def faults(self, *, use_gpu: bool, max_skipped_updates: int, is_tied: bool) -> Iterator[str]:
        """Yield what the rest of a run file does not allow.

        Args:
            use_gpu: Whether workers have GPUs.
            max_skipped_updates: Consecutive updates that may be skipped.
            is_tied: Whether the model's first and last layers share one table.

        Yields:
            Each fault with its remedy.
        """
        if self.precision == "fp16" and not use_gpu:
            yield (
                "engine.precision = 'fp16' with train.use_gpu = false: DeepSpeed supports fp16 "
                "on GPUs (and few CPUs); use bf16 or fp32, or set train.use_gpu = true"
            )
        if max_skipped_updates and self.precision != "fp16":
            yield (
                f"train.max_skipped_updates = {max_skipped_updates} with engine.precision = "
                f"{self.precision!r}: only fp16 skips updates; set it to 0"
            )
        if self.parallel == "rows" and use_gpu:
            yield (
                "engine.parallel = 'rows' with train.use_gpu = true: it waits for the host to find "
                "the rows; set it to 'data' or 'items'"
            )
        if is_tied and self.parallel == "items":
            yield (
                "engine.parallel = 'items' with a model whose first and last layers share a table; "
                "set it to 'data'"
            )

    @model_validator(mode="after")
    def _what_does_not_go_together(self) -> "EngineConfig":
        faults = faults_of(self.deepspeed)
        if self.precision == "fp16" and self.zero_stage == 0:
            faults.append(
                "precision fp16 with zero_stage 0 trains wrongly in DeepSpeed (its issue 8393); "
                "use zero_stage 1, or precision bf16"
            )
        if self.offload != "none" and self.zero_stage < (3 if self.offload == "all" else 1):
            faults.append(
                f"offload {self.offload!r} with zero_stage {self.zero_stage}: the optimizer's "
                "state can be offloaded from stage 1 on, parameters in stage 3"
            )
        if self.parallel != "data" and (
            self.precision == "fp16" or self.offload != "none" or self.deepspeed
        ):
            faults.append(
                f"parallel {self.parallel!r} runs without DeepSpeed and does not support precision "
                "fp16, offload or the deepspeed table; remove them, or set parallel = 'data'"
            )
        if self.gradient_precision == "bf16" and (
            self.precision != "bf16" or self.parallel == "items"
        ):
            faults.append(
                f"gradient_precision bf16 with precision {self.precision}, parallel "
                f"{self.parallel!r}: it is for data-parallel workers in bf16; set it to fp32"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self
