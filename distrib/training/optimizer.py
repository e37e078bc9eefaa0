"""The optimizer and its learning-rate schedule."""

import math
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from distrib.config import Config
from distrib.models.base import Model
from distrib.models.capabilities import phases_of
from distrib.parameters import role_of

CAPTURABLE = ("adam", "adamw")
"""Update rules that can be part of a CUDA graph."""

_PHASE, _IS_FROZEN = "phase", "is_frozen"  # keys of a parameter group


class ScheduleConfig(Config):
    """The learning rate over the updates."""

    name: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up: no change, or a decay to ``final_share``."""

    warmup_steps: NonNegativeInt = 0
    """Updates over which the rate rises linearly to its full value."""

    decay_steps: NonNegativeInt = 0
    """Updates after the warm-up over which ``linear`` and ``cosine`` decay."""

    final_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the full rate that is left after the decay."""

    @model_validator(mode="after")
    def _a_way_down_has_a_length(self) -> "ScheduleConfig":
        if (self.name == "constant") != (self.decay_steps == 0):
            raise ValueError(
                f"schedule {self.name!r} with decay_steps = {self.decay_steps}: linear and cosine "
                "need decay_steps above 0, constant needs 0"
            )
        return self

    def share(self, step: int) -> float:
        """Return the share of the full rate for the update that follows ``step`` others."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.name == "constant":
            return 1.0
        progress = min(1.0, (step - self.warmup_steps) / self.decay_steps)
        height = (
            1.0 - progress if self.name == "linear" else 0.5 + 0.5 * math.cos(math.pi * progress)
        )
        return self.final_share + (1.0 - self.final_share) * height


class OptimizerConfig(Config):
    """Settings of the optimizer."""

    name: Literal["adamw", "adam", "nadam", "sgd", "adagrad"] = "adamw"
    """Update rule; ``adamw`` decays weights separately from the gradient, the others add the weight
    times ``weight_decay`` to it."""

    learning_rate: PositiveFloat = 1e-3
    """Full rate; ``schedule`` scales it."""

    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)

    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Applied only to the parameters that the model marks for it (never biases and priors)."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the moment estimates of the Adam variants."""

    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Momentum of ``sgd``."""

    gradient_clipping: Annotated[float, Field(ge=0.0)] = 0.0
    """Largest norm of the gradient; 0 for no limit."""

    @model_validator(mode="after")
    def _rules_take_what_they_know(self) -> "OptimizerConfig":
        if self.momentum and self.name != "sgd":
            raise ValueError(f"momentum = {self.momentum}: {self.name} has none; set it to 0")
        if self.weight_decay and self.name == "adagrad":
            raise ValueError(
                f"weight_decay = {self.weight_decay} with adagrad: DeepSpeed would also apply it "
                "to biases; set it to 0, or use another optimizer"
            )
        return self

    def rate(self, step: int) -> float:
        """Return the learning rate of the update that follows ``step`` others."""
        return self.learning_rate * self.schedule.share(step)


class Group(NamedTuple):
    """Parameters that are updated alike."""

    parameters: list[torch.nn.Parameter]
    weight_decay: float
    phase: str
    """See `TrainsInPhases`."""


def build_optimizer(model: Model, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Make the optimizer, with weight decay on the parameters that the model marks for it."""
    return optimizer_of(groups_of(model, config), config)


def groups_of(model: Model, config: OptimizerConfig) -> list[Group]:
    """Return the parameters by phase and weight decay, the largest decay first."""
    groups = []
    for phase, parameters in phases_of(model).items():
        by_decay: dict[float, list[torch.nn.Parameter]] = {}
        for held in parameters:
            by_decay.setdefault(config.weight_decay * role_of(held).decay, []).append(held)
        groups += [Group(by_decay[decay], decay, phase) for decay in sorted(by_decay, reverse=True)]
    return groups


def optimizer_of(
    groups: list[Group], config: OptimizerConfig, *, capturable: bool = False
) -> torch.optim.Optimizer:
    """Make the optimizer of some parameters; fused, where torch can, to read memory only once.

    Args:
        groups: The parameters.
        config: Settings of the optimizer.
        capturable: Whether rate and number of updates stay on the device; of `CAPTURABLE` only.

    Returns:
        The optimizer, which skips the phases that `train_phase` did not select.
    """
    entries = [
        {
            "params": group.parameters,
            "weight_decay": group.weight_decay,
            _PHASE: group.phase,
        }
        for group in groups
    ]
    optimizer = _rule(entries, config, capturable=capturable)
    if len({group.phase for group in groups}) > 1:
        optimizer.register_step_pre_hook(_leave_alone)
    return optimizer


def _rule(
    entries: list[dict[str, Any]], config: OptimizerConfig, *, capturable: bool
) -> torch.optim.Optimizer:
    rate = config.learning_rate
    if config.name == "sgd":
        return torch.optim.SGD(entries, lr=rate, momentum=config.momentum, fused=True)
    if config.name == "adagrad":
        return torch.optim.Adagrad(entries, lr=rate)
    if config.name == "nadam":
        return torch.optim.NAdam(entries, lr=rate, betas=config.betas)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    held = torch.tensor(rate, device=entries[0]["params"][0].device) if capturable else rate
    return kind(entries, lr=held, betas=config.betas, fused=True, capturable=capturable)


def train_phase(optimizer: Any, phase: str) -> None:
    """Restrict the next updates to one phase; values and state of the others stay."""
    for group in optimizer.param_groups:
        group[_IS_FROZEN] = group.get(_PHASE, phase) != phase


def _leave_alone(optimizer: torch.optim.Optimizer, *_arguments: Any) -> None:
    """Drop the gradients of frozen phases: torch skips parameters that have none."""
    for group in optimizer.param_groups:
        if group.get(_IS_FROZEN, False):
            for parameter in group["params"]:
                parameter.grad = None


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next update."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
