"""What the loop asks of an engine, and the one-process engine that defines the right answer."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from distrib.batch import Read
from distrib.checkpoint.state import VALUE, Piece, SavedState
from distrib.config import Config
from distrib.models.base import Model
from distrib.noise import Noise
from distrib.train.deepspeed_config import faults_of
from distrib.train.optimizer import OptimizerConfig, build_optimizer, set_rate, train_part
from distrib.train.step import TrainStep, total


class EngineConfig(Config):
    """How the engine computes."""

    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Of parameters and activations; losses and the optimizer are float32 always."""

    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """What is spread over ranks: 1 optimizer state, 2 also gradients, 3 also parameters. 0 in fp32
    on one worker is computed without DeepSpeed."""

    offload: Literal["none", "optimizer", "all"] = "none"
    """What DeepSpeed keeps in CPU memory: the optimizer's state, or (stage 3) parameters, too."""

    parallel: Literal["data", "items"] = "data"
    """``items``: each rank owns a range of items in the last layer, and gathers the users' codes
    instead of adding up gradients as large as the catalogue. Without ZeRO, and without fp16."""

    block_items: PositiveInt = 4096
    """Items decoded at a time; peak memory grows with it, speed falls when it is small."""

    keep_output_mb: NonNegativeInt = 256
    """Decoded blocks are kept for the backward pass up to this size, and computed again beyond."""

    micro_batch_users: NonNegativeInt = 0
    """Users of a rank in one forward pass; gradients add up over as many as a batch needs. 0: all
    at once."""

    compile: bool = False
    """Whether torch.compile fuses the loss of a block: a third less of its time for rating classes,
    nothing for the multinomial; takes seconds at the start, and needs a C++ compiler."""

    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Handed to DeepSpeed as it is, e.g. ``zero_optimization.reduce_bucket_size``; what other
    settings decide is refused."""

    @property
    def is_plain(self) -> bool:
        """Whether one worker alone needs nothing of DeepSpeed; small steps are faster without."""
        is_whole = self.parallel == "data" and self.zero_stage == 0 and not self.micro_batch_users
        return is_whole and self.precision == "fp32" and not self.deepspeed

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
        if self.parallel == "items" and (
            self.precision == "fp16" or self.offload != "none" or self.deepspeed
        ):
            faults.append(
                "parallel 'items' is computed without DeepSpeed: precision fp16, offload and the "
                "deepspeed table are not for it; remove them, or set parallel = 'data'"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self


class Update(NamedTuple):
    """What one update did."""

    terms: dict[str, Tensor]
    """This rank's sums of the loss terms, detached."""

    gradient_norm: Tensor
    """Of the whole model, over all ranks, before clipping."""

    is_applied: bool = True
    """False where fp16 overflowed and the update was left out."""


class Engine(Protocol):
    """One update on the cluster, whatever does it."""

    step_module: TrainStep

    communication_share: float
    """Share of the time of an update that goes into waiting for other ranks, as last measured."""

    def train_batch(
        self, source: Read, target: Read, noise: Noise, *, step: int, num_users: int
    ) -> Update:
        """Make one update from this rank's part of a global batch.

        Args:
            source: What the model reads; may hold no users.
            target: What it should decode.
            noise: The epoch's randomness.
            step: Updates made so far.
            num_users: Users of the global batch, over all ranks; what losses are a mean over.

        Returns:
            Losses and the size of the gradient.
        """

    def begin_epoch(self, epoch: int) -> None:
        """Let the model get ready; also where training goes on within an epoch."""

    def end_epoch(self, epoch: int) -> None:
        """Let the model take note of an epoch's end; every rank must call."""

    def weights(self) -> dict[str, Tensor]:
        """Return the model's weights, whole, float32, on the CPU; every rank must call."""

    def pieces(self) -> Iterator[Piece]:
        """Yield what this rank must save: over all ranks, everything, once. Views, not copies."""

    def facts(self) -> dict[str, Any]:
        """Return what else is needed to go on, as JSON; equal on all ranks."""

    def restore(self, saved: SavedState, facts: dict[str, Any]) -> None:
        """Take up what `pieces` and `facts` gave, of however many ranks; every rank must call."""


class LocalEngine:
    """One process, plain torch, float32: the reference that every other engine must equal."""

    def __init__(
        self, step: TrainStep, config: OptimizerConfig, device: torch.device | str = "cpu"
    ) -> None:
        self.device = device
        self.step_module = step
        self.config = config
        self.communication_share = 0.0
        self.optimizer = build_optimizer(step.model, config)

    def train_batch(
        self, source: Read, target: Read, noise: Noise, *, step: int, num_users: int
    ) -> Update:
        """Forward, backward, update; see `Engine`."""
        read = source.to(self.device)
        wanted = read if target is source else target.to(self.device)
        terms: dict[str, Tensor] = self.step_module(read, wanted, noise, step)
        self.optimizer.zero_grad()
        (total(terms) / num_users).backward()
        parameters = [p for p in self.step_module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.config.gradient_clipping:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.gradient_clipping, norm)
        set_rate(self.optimizer, self.config.rate(step))
        self.optimizer.step()
        return Update({name: term.detach() for name, term in terms.items()}, norm)

    def begin_epoch(self, epoch: int) -> None:
        """Choose the part to train; see `Engine`."""
        train_part(self.optimizer, self.step_module.model.begin_epoch(epoch))

    def end_epoch(self, epoch: int) -> None:
        """Tell the model; see `Engine`."""
        self.step_module.model.end_epoch(epoch)

    def weights(self) -> dict[str, Tensor]:
        """Copy the state; see `Engine`."""
        state = self.step_module.model.state_dict()
        return {name: tensor.detach().float().cpu().clone() for name, tensor in state.items()}

    def pieces(self) -> Iterator[Piece]:
        """Yield every parameter; see `Engine`."""
        for name, parameter in self.step_module.model.named_parameters():
            yield piece_of(self.optimizer, name, parameter, (0, 0, parameter.numel()))
        yield from buffer_pieces(self.step_module.model)

    def facts(self) -> dict[str, Any]:
        """Return nothing; see `Engine`."""
        return {}

    def restore(self, saved: SavedState, facts: dict[str, Any]) -> None:
        """Copy every parameter; see `Engine`."""
        del facts
        for name, parameter in self.step_module.model.named_parameters():
            take_up(self.optimizer, saved, name, parameter, (0, 0, parameter.numel()))
        restore_buffers(self.step_module.model, saved)


Stretch = tuple[int, int, int]
"""Place of a stretch in the flat parameter, its place in the tensor that holds it, its length."""


def piece_of(optimizer: torch.optim.Optimizer, name: str, held: Tensor, stretch: Stretch) -> Piece:
    """Describe a stretch of a parameter by the tensor that the optimizer updates.

    Args:
        optimizer: Plain torch; keeps its state by tensor.
        name: Of the parameter in the model.
        held: float32; holds the stretch, and maybe those of other parameters.
        stretch: Which part.

    Returns:
        Views of its value and of the optimizer's state.
    """
    start, offset, length = stretch
    state = optimizer.state.get(held, {})
    flat = {VALUE: held} | {k: v for k, v in state.items() if _is_like(v, held)}
    return Piece(
        name,
        start,
        {k: v.detach().reshape(-1)[offset : offset + length] for k, v in flat.items()},
        {k: float(v) for k, v in state.items() if not _is_like(v, held) and v is not None},
    )


def take_up(
    optimizer: torch.optim.Optimizer, saved: SavedState, name: str, held: Tensor, stretch: Stretch
) -> None:
    """Write a saved stretch into the tensor that the optimizer updates; see `piece_of`."""
    start, offset, length = stretch
    state = optimizer.state[held]
    for kind in [VALUE, *saved.kinds(name)]:
        if kind != VALUE and kind not in state:
            state[kind] = torch.zeros_like(held, requires_grad=False)
        target = held if kind == VALUE else state[kind]
        part = target.data.view(-1)[offset : offset + length]
        part.copy_(saved.read(name, kind, start, length))
    place = held.device if optimizer.defaults.get("fused") else "cpu"  # where torch keeps counts
    for kind, value in saved.scalars(name).items():
        state[kind] = torch.tensor(value, dtype=torch.float32, device=place)


def _is_like(value: Any, held: Tensor) -> bool:
    return torch.is_tensor(value) and value.shape == held.shape and value.dim() > 0


def buffer_pieces(model: Model) -> Iterator[Piece]:
    """Yield what the model remembers besides its parameters."""
    for name, buffer in model.named_buffers():
        yield Piece(name, 0, {VALUE: buffer.detach().float().reshape(-1)}, {})


def restore_buffers(model: Model, saved: SavedState) -> None:
    """Take up what `buffer_pieces` yielded."""
    for name, buffer in model.named_buffers():
        value = saved.read(name, VALUE, 0, buffer.numel())
        buffer.copy_(value.view(buffer.shape))
