"""How gradients become updates: the rule, and its learning rate as a function of the update."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from distrib.config import Config
from distrib.models.base import Model


class ScheduleConfig(Config):
    """How the learning rate goes over the updates."""

    name: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up: no change, or a way down to ``final_share``."""

    warmup_steps: NonNegativeInt = 0
    """Updates over which the rate rises in equal steps to its full size."""

    decay_steps: NonNegativeInt = 0
    """Updates after the warm-up over which ``linear`` and ``cosine`` go down."""

    final_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the full rate that is left at the end of the way down."""

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
    """How gradients become updates."""

    name: Literal["adamw", "adam", "sgd", "adagrad"] = "adamw"
    """Rule of the update; ``adamw`` decays weights apart from the gradient."""

    learning_rate: PositiveFloat = 1e-3
    """Size of an update."""

    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)

    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Pull towards 0, on the parameters that the model names only (never biases and priors)."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running moments of the two Adams."""

    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Of ``sgd``."""

    gradient_clipping: Annotated[float, Field(ge=0.0)] = 0.0
    """Largest norm of the gradient; 0 for no limit."""

    @model_validator(mode="after")
    def _rules_take_what_they_know(self) -> "OptimizerConfig":
        if self.momentum and self.name != "sgd":
            raise ValueError(f"momentum = {self.momentum} is for sgd; {self.name} has betas")
        if self.weight_decay and self.name == "adagrad":
            raise ValueError(
                f"weight_decay = {self.weight_decay} with adagrad: DeepSpeed would let it fall on "
                "biases, too; set it to 0, or use another rule"
            )
        return self

    def rate(self, step: int) -> float:
        """Return the learning rate of the update that follows ``step`` others."""
        return self.learning_rate * self.schedule.share(step)


def build_optimizer(model: Model, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Make the optimizer, with weight decay where the model wants it."""
    if not config.weight_decay:
        return optimizer_of([(list(model.parameters()), False)], config)
    decayed = {id(parameter) for parameter in model.decayed_parameters()}
    return optimizer_of(
        [
            ([p for p in model.parameters() if (id(p) in decayed) == is_decayed], is_decayed)
            for is_decayed in (True, False)
        ],
        config,
    )


def optimizer_of(
    groups: list[tuple[list[torch.nn.Parameter], bool]], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """Make the optimizer of some parameters; updates of a tensor are one pass over memory.

    Args:
        groups: Parameters, and whether their weights decay.
        config: The rule.

    Returns:
        The optimizer.
    """
    entries = [
        {"params": parameters, "weight_decay": config.weight_decay if is_decayed else 0.0}
        for parameters, is_decayed in groups
        if parameters
    ]
    rate = config.learning_rate
    if config.name == "sgd":
        return torch.optim.SGD(entries, lr=rate, momentum=config.momentum, fused=True)
    if config.name == "adagrad":
        return torch.optim.Adagrad(entries, lr=rate)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(entries, lr=rate, betas=config.betas, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = rate
