"""What the loop asks of an engine, and the one-process engine that defines the right answer."""

from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from distrib.batch import Batch
from distrib.config import Config
from distrib.models.base import Model
from distrib.noise import Noise
from distrib.train.step import TrainStep, total


class OptimizerConfig(Config):
    """How gradients become updates."""

    name: Literal["adamw", "adam", "sgd", "adagrad"] = "adamw"
    """Rule of the update; ``adamw`` decays weights apart from the gradient."""

    learning_rate: PositiveFloat = 1e-3
    """Size of an update."""

    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Pull towards 0, on the parameters that the model names only (never biases and priors)."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running moments of the two Adams."""

    gradient_clipping: Annotated[float, Field(ge=0.0)] = 0.0
    """Largest norm of the gradient; 0 for no limit."""


class EngineConfig(Config):
    """How the engine computes."""

    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Of parameters and activations; losses and the optimizer are float32 always."""

    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """What is spread over ranks: 1 optimizer state, 2 also gradients, 3 also parameters."""

    block_items: PositiveInt = 4096
    """Items decoded at a time; peak memory grows with it, speed falls when it is small."""

    @model_validator(mode="after")
    def _fp16_needs_zero(self) -> "EngineConfig":
        if self.precision == "fp16" and self.zero_stage == 0:
            raise ValueError(
                "precision fp16 with zero_stage 0 trains wrongly in DeepSpeed (its issue 8393); "
                "use zero_stage 1, or precision bf16"
            )
        return self


def build_optimizer(model: Model, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Make the optimizer, with weight decay where the model wants it."""
    decayed = {id(parameter) for parameter in model.decayed_parameters()}
    groups = [
        {
            "params": [p for p in model.parameters() if (id(p) in decayed) == is_decayed],
            "weight_decay": config.weight_decay if is_decayed else 0.0,
        }
        for is_decayed in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    rate = config.learning_rate
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=rate)
    if config.name == "adagrad":
        return torch.optim.Adagrad(groups, lr=rate)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=rate, betas=config.betas)


class Engine(Protocol):
    """One update on the cluster, whatever does it."""

    def train_batch(
        self, source: Batch, target: Batch, noise: Noise, *, step: int, num_users: int
    ) -> dict[str, Tensor]:
        """Make one update from this rank's part of a global batch.

        Args:
            source: What the model reads; may hold no users.
            target: What it should decode.
            noise: The epoch's randomness.
            step: Updates made so far.
            num_users: Users of the global batch, over all ranks.

        Returns:
            This rank's sums of the loss terms, detached.
        """

    def weights(self) -> dict[str, Tensor]:
        """Return the model's weights, whole, float32, on the CPU; every rank must call."""

    def save(self, folder: str) -> None:
        """Write what is needed to go on into a local folder; every rank must call."""

    def load(self, folder: str) -> None:
        """Read back what `save` wrote; every rank must call."""


class LocalEngine:
    """One process, plain torch, float32: the reference that every other engine must equal."""

    def __init__(self, step: TrainStep, config: OptimizerConfig) -> None:
        self.step_module = step
        self.config = config
        self.optimizer = build_optimizer(step.model, config)

    def train_batch(
        self, source: Batch, target: Batch, noise: Noise, *, step: int, num_users: int
    ) -> dict[str, Tensor]:
        """Forward, backward, update; see `Engine`."""
        terms: dict[str, Tensor] = self.step_module(source, target, noise, step)
        self.optimizer.zero_grad()
        (total(terms) / num_users).backward()
        if self.config.gradient_clipping:
            torch.nn.utils.clip_grad_norm_(
                self.step_module.parameters(), self.config.gradient_clipping
            )
        self.optimizer.step()
        return {name: term.detach() for name, term in terms.items()}

    def weights(self) -> dict[str, Tensor]:
        """Copy the state; see `Engine`."""
        state = self.step_module.model.state_dict()
        return {name: tensor.detach().float().cpu().clone() for name, tensor in state.items()}
