"""Inverse gradient for autoencoders: three losses of one forward pass, combined by a decision."""

from collections.abc import Iterator

import torch
from torch import Tensor
from typing_extensions import override

from distrib.batch import Batch, TrainInput
from distrib.models.base import Model
from distrib.objectives import Objective
from distrib.objectives.base import Recorder
from distrib.objectives.inverse_gradient_rows import (
    InverseGradientRows,
    InverseGradientRowsConfig,
    SplitRows,
)
from distrib.rng import CounterRng
from distrib.training.config import TrainingRun
from distrib.training.engines.config import EngineConfig
from distrib.training.schemes.look_ahead import FirstOrder
from distrib.training.schemes.meta import decision_faults, held_out_pairs
from distrib.training.schemes.user_rows import UserRows
from distrib.training.step import TrainStep


class MetaRowsStep(TrainStep):
    """The step of the inverse gradient; entries are held out of what the encoder reads."""

    def __init__(
        self,
        model: Model,
        objective: InverseGradientRows,
        *,
        block_items: int,
        keep_output_mb: int,
    ) -> None:
        super().__init__(model, objective, block_items=block_items, keep_output_mb=keep_output_mb)
        self.rows = objective
        is_sketched = objective.config.form == "sketched"
        self.look_ahead = FirstOrder(objective.config, is_sketched=is_sketched)

    @override
    def forward(
        self, inputs: TrainInput, target: Batch, rng: CounterRng, step: int
    ) -> dict[str, Tensor]:
        """Compute the three losses, and combine them; see `TrainStep`."""
        config = self.rows.config
        if not torch.is_grad_enabled():
            return super().forward(inputs, target, rng, step)
        is_held_out_N = held_out_entries(target, config)
        kept, held_out = target.keep(~is_held_out_N), target.keep(is_held_out_N)
        self.recorder = Recorder()
        users = self.model.encode(kept, rng)
        context = self.context(rng, step)._replace(repeats_backward=True)
        found = self.rows.parts(self.model, users, SplitRows(target, kept, held_out), context)
        terms = self.terms_of(found.supervised_TB, self.rows.losses.terms, users, step)
        held_out_loss, unlabeled = self.look_ahead.combined(
            found.held_out_B.sum(),
            found.unlabeled_B.sum(),
            [held for held in self.parameters() if held.requires_grad],
            self.recorder,
            config.ratio * config.schedule(step),
        )
        return {**terms, "held_out": held_out_loss, "inverse_dual": unlabeled}


class MetaRows(UserRows):
    """See `Scheme`; the objective is the inverse gradient for autoencoders."""

    @override
    def faults(self, run: TrainingRun) -> Iterator[str]:
        """Refuse where a decision would not be that of all ranks; see `Scheme`."""
        yield from super().faults(run)
        yield from decision_faults(run)

    @override
    def step(self, model: Model, objective: Objective, engine: EngineConfig) -> TrainStep:
        """Make the step; see `IterativeScheme`."""
        assert isinstance(objective, InverseGradientRows)
        return MetaRowsStep(
            model,
            objective,
            block_items=engine.chunk_items,
            keep_output_mb=engine.kept_mb,
        )


def held_out_entries(target: Batch, config: InverseGradientRowsConfig) -> Tensor:
    """Return which entries of histories are held out, bool ``[N]``.

    A pure function of the settings and the history. A user's first interaction always stays, so
    that the encoder has something to read.
    """
    row_N, length_B = target.row_N, target.length_B
    is_held_out_N = held_out_pairs(config, target.user_B[row_N], target.item_N)
    is_held_out_N &= (length_B >= config.min_history)[row_N]
    is_held_out_N[target.pointer_P[:-1][length_B > 0]] = False
    return is_held_out_N
