"""The step: model and objective as one module, so that an engine wraps one thing."""

import torch
from torch import Tensor, nn
from typing_extensions import override

from distrib.batch import Batch
from distrib.models.base import Model, State
from distrib.objectives import CellObjective, CodeObjective, FactoredObjective, Objective
from distrib.rng import Noise
from distrib.tiles import Block, Read
from distrib.train.chunked_loss import Blocks, blocked_terms


class TrainStep(nn.Module):
    """Computes the terms of the loss of a batch; touches every parameter inside one forward."""

    def __init__(
        self,
        model: Model,
        objective: Objective | CellObjective | CodeObjective,
        *,
        block_items: int,
        keep_output_mb: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.blocks = Blocks(block_items, keep_output_mb << 20)

    @override
    def forward(self, source: Read, target: Read, noise: Noise, step: int) -> dict[str, Tensor]:
        """Compute each term of the loss, summed over the batch's users.

        Args:
            source: What the model reads; for an autoencoder the same as ``target``.
            target: What it should decode; of a block, its cells.
            noise: The epoch's randomness.
            step: Updates made so far.

        Returns:
            float32 scalars by name; a term ``divergence`` is added where the model has one.
        """
        state = self.model.encode(source, noise)
        cells = target.cells if isinstance(target, Block) else target
        terms_TB = self._terms(state, cells, noise, step)
        terms = dict(zip(self.objective.term_names, terms_TB.sum(1).unbind(), strict=True))
        divergence_B = self.model.divergence(state)
        if divergence_B is not None:
            terms["divergence"] = self.objective.divergence_weight(step) * divergence_B.sum()
        if self.training:
            name = self.objective.term_names[0]
            terms[name] = terms[name] + self._no_gradient()
        return terms

    def _no_gradient(self) -> Tensor | float:
        """Return 0, whose gradient by what this epoch does not train is 0.

        Without it ZeRO-3 would take the last gradients of such parameters for new ones.
        """
        parts = self.model.parts()
        resting = [p for name in parts if name != self.model.part for p in parts[name]]
        return 0.0 * torch.stack([p.float().sum() for p in resting]).sum() if resting else 0.0

    def _terms(self, state: State, target: Batch, noise: Noise, step: int) -> Tensor:
        """Return the objective's terms, looking at no more than the objective needs."""
        objective = self.objective
        if isinstance(objective, CodeObjective):
            return objective.code_terms(state[0], self.model.tied_gram(), target)
        if isinstance(objective, CellObjective):
            output_N = self.model.decode_cells(state, target)
            return objective.cell_terms(output_N, target, self.model.variance_cells(state, target))
        odds = self.model.odds()
        if odds is not None and isinstance(objective, FactoredObjective):
            interactions = objective.interactions
            blocks = self.blocks._replace(candidates=interactions.candidates(target, noise, step))
            by_item_TB = blocked_terms(odds, interactions, state, target, blocks)
            levels_NL = self.model.decode_levels(state, target)
            return torch.cat([by_item_TB, objective.level_terms(levels_NL, target)])
        assert isinstance(objective, Objective)
        blocks = self.blocks._replace(candidates=objective.candidates(target, noise, step))
        return blocked_terms(self.model, objective, state, target, blocks)


def total(terms: dict[str, Tensor]) -> Tensor:
    """Add the terms up to the loss."""
    return torch.stack(list(terms.values())).sum()
