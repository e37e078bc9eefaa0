"""Multinomial likelihood: one softmax over all items, each interaction a draw from it."""

from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from distrib.batch import Batch, Cells
from distrib.config import Config
from distrib.objectives.base import sum_by_row


class MultinomialConfig(Config):
    """Settings of the multinomial objective; the defaults are Mult-VAE's for ML-20M."""

    name: Literal["multinomial"] = "multinomial"

    accepts: ClassVar[str] = "scores"

    divergence_cap: Annotated[float, Field(ge=0.0)] = 0.2
    """Weight that the divergence from the prior ends at; 1 is the evidence lower bound."""

    anneal_steps: NonNegativeInt = 200_000
    """Updates over which the weight would grow from 0 to 1; it stops at the cap."""

    def build(self, levels: tuple[float, ...]) -> "Multinomial":
        """Make the objective."""
        del levels
        return Multinomial(self)


class _Carry(NamedTuple):
    largest_B: Tensor
    exponentials_B: Tensor
    targets_B: Tensor


class _Learned(NamedTuple):
    log_normaliser_B: Tensor
    length_B: Tensor


class Multinomial:
    """-sum over a user's interactions of log softmax, nats, plus the annealed divergence.

    The normaliser is gathered online over the blocks (largest score and sum of exponentials), in
    float32. Not divided by the length of the history, so long histories weigh more.

    Source: Liang et al., "Variational Autoencoders for Collaborative Filtering", WWW 2018, eq. 2
    and 6.
    """

    term_names = ("reconstruction",)

    def __init__(self, config: MultinomialConfig) -> None:
        self.config = config

    def accumulate(self, carry: _Carry | None, output: Tensor, cells: Cells) -> _Carry:
        """Merge a block into the online log-sum-exp and add its targets' scores."""
        targets_B = sum_by_row(output[cells.row_M, cells.column_M], cells, output.shape[0])
        largest_B = output.max(dim=1).values
        if carry is None:
            return _Carry(largest_B, (output - largest_B[:, None]).exp().sum(1), targets_B)
        highest_B = torch.maximum(carry.largest_B, largest_B)
        exponentials_B = carry.exponentials_B * (carry.largest_B - highest_B).exp()
        exponentials_B = exponentials_B + (output - highest_B[:, None]).exp().sum(1)
        return _Carry(highest_B, exponentials_B, carry.targets_B + targets_B)

    def finish(self, carry: _Carry, target: Batch) -> tuple[Tensor, _Learned]:
        """Return length * log-sum-exp - sum of the targets' scores."""
        log_normaliser_B = carry.largest_B + carry.exponentials_B.log()
        length_B = target.length_B.to(torch.float32)
        loss_B = length_B * log_normaliser_B - carry.targets_B
        return loss_B[None], _Learned(log_normaliser_B, length_B)

    def block_terms(self, output: Tensor, cells: Cells, learned: _Learned) -> Tensor:
        """Return length * softmax mass of the block - its targets' scores: the same gradient."""
        mass_B = (output - learned.log_normaliser_B[:, None]).exp().sum(1)
        targets_B = sum_by_row(output[cells.row_M, cells.column_M], cells, output.shape[0])
        return (learned.length_B * mass_B - targets_B)[None]

    def divergence_weight(self, step: int) -> float:
        """Return min(cap, step / anneal_steps)."""
        if self.config.anneal_steps == 0:
            return self.config.divergence_cap
        return min(self.config.divergence_cap, step / self.config.anneal_steps)
