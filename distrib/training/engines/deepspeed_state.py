"""Where DeepSpeed's optimizers keep the float32 state of each parameter on this rank.

DeepSpeed's own checkpoints are tied to the number of ranks and to the ZeRO stage. In every stage,
a rank holds a slice of each flattened parameter and its optimizer state; saved as such slices, a
checkpoint of N ranks loads on M ranks and in any stage.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from distrib.checkpoint.state import VALUE, SavedState, StatePiece
from distrib.models.base import Model
from distrib.training.engines.state import Stretch, piece_of, take_up

_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class _Held(NamedTuple):
    name: str
    parameter: Tensor
    tensor: Tensor
    """float32; what the inner optimizer updates."""

    stretch: Stretch
    is_replicated: bool = False


def pieces(engine: Any, model: Model) -> Iterator[StatePiece]:
    """Yield what this rank should save; of a replicated parameter, each rank saves a share.

    Args:
        engine: DeepSpeed's engine.
        model: The model that it trains.

    Yields:
        Views of parameters and optimizer state.
    """
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    inner = _inner(engine)
    for held in _held(engine, model):
        stretch = held.stretch
        if held.is_replicated:
            share = -(-stretch[2] // world_size)
            start = min(rank * share, stretch[2])
            stretch = (start, start, min(share, stretch[2] - start))
        if stretch[2] > 0:
            yield piece_of(inner, held.name, held.tensor, stretch)


def restore(engine: Any, model: Model, saved: SavedState) -> None:
    """Write a saved state into a fresh engine.

    Args:
        engine: DeepSpeed's engine, not trained yet.
        model: The model that it trains.
        saved: The pieces of all ranks.

    Raises:
        CheckpointError: A parameter is missing.
    """
    inner = _inner(engine)
    for held in _held(engine, model):
        if held.stretch[2] > 0:
            take_up(inner, saved, held.name, held.tensor, held.stretch)
        _refresh(held, saved)
    _gather_persistent(engine)


def _gather_persistent(engine: Any) -> None:
    """Update small parameters, which stage 3 keeps whole on every rank, from their partitions."""
    persistent = getattr(engine.optimizer, "persistent_parameters", [])
    if persistent:
        persistent[0].partition(persistent)
        persistent[0].all_gather(persistent)


def _refresh(held: _Held, saved: SavedState) -> None:
    """Copy the saved float32 value into the parameter used for compute, in its precision."""
    parameter = held.parameter
    if hasattr(parameter, "ds_tensor"):
        start, _, length = held.stretch
        part = parameter.ds_tensor.data.view(-1)[:length]
        part.copy_(saved.read(held.name, VALUE, start, length))
    else:
        whole = saved.read(held.name, VALUE, 0, parameter.numel())
        parameter.data.copy_(whole.view(parameter.shape))


def set_to_zero(engine: Any, model: Model, names: set[str]) -> None:
    """Set parameters to 0, both the float32 masters and the copies used for compute.

    Args:
        engine: DeepSpeed's engine.
        model: The model that it trains.
        names: Names of the parameters.
    """
    for held in _held(engine, model):
        if held.name in names:
            _, offset, length = held.stretch
            held.tensor.data.view(-1)[offset : offset + length].zero_()
            computes = getattr(held.parameter, "ds_tensor", held.parameter)
            computes.data.zero_()
    if names:
        _gather_persistent(engine)


def loss_scale(engine: Any) -> dict[str, float]:
    """Return the state of fp16's loss scaling; empty in other precisions."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {key: getattr(scaler, key) for key in _SCALER if hasattr(scaler, key)}


def set_loss_scale(engine: Any, facts: Mapping[str, float]) -> None:
    """Restore what `loss_scale` returned."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    for key in _SCALER:
        if key in facts and hasattr(scaler, key):
            setattr(scaler, key, facts[key])


def _inner(engine: Any) -> torch.optim.Optimizer:
    """Return the plain torch optimizer inside DeepSpeed's."""
    optimizer: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return optimizer


def _held(engine: Any, model: Model) -> Iterator[_Held]:
    optimizer = engine.optimizer
    masters = _unsharded_masters(optimizer)
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id"):
            yield _Held(name, parameter, *_held_in_stage_3(optimizer, parameter))
        elif hasattr(parameter, "_hp_mapping"):
            yield _Held(name, parameter, *_held_in_stage_1_or_2(optimizer, parameter))
        else:
            master = masters.get(id(parameter), parameter)
            yield _Held(name, parameter, master, (0, 0, master.numel()), is_replicated=True)


def _held_in_stage_3(optimizer: Any, parameter: Any) -> tuple[Tensor, Stretch]:
    group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = size * torch.distributed.get_rank()
    length = max(0, min(size, parameter.ds_numel - start))  # the last ranks' parts are padded
    return optimizer.fp32_partitioned_groups_flat[group], (start, offset, length)


def _held_in_stage_1_or_2(optimizer: Any, parameter: Any) -> tuple[Tensor, Stretch]:
    flats = (
        optimizer.fp32_groups_flat_partition
        if hasattr(optimizer, "fp32_groups_flat_partition")
        else optimizer.single_partition_of_fp32_groups
    )
    mapping = parameter._hp_mapping
    if mapping is None:  # other ranks hold all of it
        return flats[0], (0, 0, 0)
    place, held = mapping.lp_fragment_address, mapping.hp_fragment_address
    return flats[mapping.param_group_index], (place.start, held.start, held.numel)


def _unsharded_masters(optimizer: Any) -> dict[int, Tensor]:
    """Return the float32 copies that stage 0 keeps of parameters in half precision."""
    if not hasattr(optimizer, "fp32_groups"):
        return {}
    return {
        id(low): master
        for lows, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        for low, master in zip(lows, masters, strict=True)
    }
