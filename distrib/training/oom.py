"""Advice when memory runs out."""

import torch

from distrib.objectives.base import Chunks
from distrib.training.config import TrainingRun

_SIGNS = (
    "can't allocate memory",  # torch on the CPU
    "out of memory",  # CUDA, also from inside NCCL
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # no room for its workspace
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out."""
    is_torch = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_torch or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
    )


def advice(config: TrainingRun, what: str, chunks: Chunks | None = None) -> str:
    """Return a message that names what ran out of memory, and the settings that need less.

    Args:
        config: The run.
        what: What ran out of memory, where, at what size.
        chunks: Of the last layer, where they were sized already.

    Returns:
        The message.
    """
    engine = config.engine
    items, keep_mb = engine.block_items, engine.keep_output_mb
    if chunks is not None:
        items, keep_mb = chunks.chunk_items, chunks.keep_bytes >> 20
    stage = f"raise engine.zero_stage ({engine.zero_stage}) or "
    stage = stage if config.train.max_workers > 1 else ""  # nothing is sharded on one
    return (
        f"{what}; set engine.micro_batch_users (now {engine.micro_batch_users or 'all'} of "
        f"{config.train.batch_users} users at once), lower engine.block_items "
        f"({items}) or engine.keep_output_mb ({keep_mb}), {stage}set engine.offload; where "
        "histories fill the "
        "memory, set train.feed = 'streaming' in a new run folder; distrib doctor measures what a "
        "run needs"
    )
