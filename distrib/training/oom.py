"""Advice when memory runs out."""

import torch

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


def advice(config: TrainingRun, what: str) -> str:
    """Return a message that names what ran out of memory, and the settings that need less.

    Args:
        config: The run.
        what: What ran out of memory, where, at what size.

    Returns:
        The message.
    """
    engine = config.engine
    return (
        f"{what}; set engine.micro_batch_users (now {engine.micro_batch_users or 'all'} of "
        f"{config.train.batch_users} users at once), lower engine.block_items "
        f"({engine.block_items}) or engine.keep_output_mb ({engine.keep_output_mb}), raise "
        f"engine.zero_stage ({engine.zero_stage}) or set engine.offload; where histories fill the "
        "memory, set train.feed = 'streaming' in a new run folder; jobs/doctor.py measures what a "
        "run needs"
    )
