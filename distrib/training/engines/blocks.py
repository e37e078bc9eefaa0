"""How many items the last layer decodes at a time, where the run file leaves it open."""

import torch

from distrib.models.base import Model
from distrib.models.capabilities import interaction_head
from distrib.models.outputs import ClassOutput
from distrib.training.engines.config import EngineConfig

_SHARE = 0.25
"""Share of the free memory that a block may take, and that kept blocks may take."""

_BYTES_OF_OUTPUT = 14
"""A number of the output, its loss and its gradient, in bf16 and float32: measured."""

_BYTES_OF_PARAMETER = 24
"""Its float32 master, both moments, its gradient, its copy that computes, and that of the model
that validation measures."""

_DEEP_CHANNELS = 5
"""Hidden channels of a decoder of classes, for each class."""


def output_width(model: Model) -> int:
    """Return how many numbers the last layer holds for a user and an item, at most."""
    if interaction_head(model) is not None or not isinstance(model.output, ClassOutput):
        return 1
    return _DEEP_CHANNELS * (len(model.output.levels) + 1)


def block_sizes(free_bytes: int, rows: int, items: int, width: int = 1) -> tuple[int, int]:
    """Return the items of a block and how much output is kept, for a GPU.

    One block of all items where memory allows: recomputing blocks is for want of memory, and each
    block costs launches.

    Args:
        free_bytes: Memory beside the model, its gradients and the optimizer.
        rows: Rows that are decoded at once.
        items: Of the catalog.
        width: See `output_width`.

    Returns:
        Items, at least what a CPU takes, and MiB.
    """
    room, least = max(0, int(_SHARE * free_bytes)), EngineConfig()
    fitting = room // (_BYTES_OF_OUTPUT * width * max(1, rows))
    block = items if fitting >= items else max(least.chunk_items, fitting)
    return block, max(least.kept_mb, room >> 20)


def with_blocks(
    engine: EngineConfig, device: torch.device, rows: int, items: int, model: Model
) -> EngineConfig:
    """Return settings whose blocks are sized for a device; those that a run file sets stay.

    Args:
        engine: Of the run.
        device: Of this rank.
        rows: Rows that are decoded at once.
        items: Of the catalog.
        model: What is trained.

    Returns:
        The settings.
    """
    block, keep_mb = engine.chunk_items, engine.kept_mb
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        free_bytes -= _BYTES_OF_PARAMETER * parameters
        sized = block_sizes(free_bytes, rows, items, output_width(model))
        block = sized[0] if engine.block_items == "auto" else block
        keep_mb = sized[1] if engine.keep_output_mb == "auto" else keep_mb
    return engine.model_copy(update={"block_items": block, "keep_output_mb": keep_mb})
