"""The step: model and objective as one module, so that an engine wraps one module."""

import torch
from torch import Tensor, nn
from typing_extensions import override

from distrib.batch import Batch, TrainInput
from distrib.models.base import Model
from distrib.models.capabilities import TrainsInPhases, Variational
from distrib.objectives import Objective
from distrib.objectives.base import Chunks, LossContext, Recorder
from distrib.parameters import roles_of
from distrib.rng import CounterRng
from distrib.training.ranks import gather_rows


class TrainStep(nn.Module):
    """Computes the loss terms of a batch; uses every parameter inside one forward."""

    def __init__(
        self, model: Model, objective: Objective, *, block_items: int, keep_output_mb: int = 0
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.chunks = Chunks(block_items, keep_output_mb << 20)
        self.recorder = Recorder()
        """What the objective recorded in the last forward pass."""

        # Kept: a test against a protocol walks over its methods, each time.
        self._has_phases = isinstance(model, TrainsInPhases)
        self._has_kl = isinstance(model, Variational)

    @override
    def forward(
        self, inputs: TrainInput, target: Batch, rng: CounterRng, step: int
    ) -> dict[str, Tensor]:
        """Compute each term of the loss, summed over the batch's users.

        Args:
            inputs: What the model reads; for an autoencoder the same as ``target``.
            target: What it should decode.
            rng: The epoch's randomness.
            step: Updates made so far.

        Returns:
            float32 scalars by name; a term ``divergence`` is added where the model has a KL term.
        """
        self.recorder = Recorder()
        users = self.model.encode(inputs, rng)
        terms_TB = self.objective(self.model, users, target, self.context(rng, step))
        return self.terms_of(terms_TB, self.objective.terms, users, step)

    def filled_terms(
        self, batch: Batch, rng: CounterRng, kl_weight: Tensor, num_rows: int
    ) -> dict[str, Tensor]:
        """Compute the terms of an autoencoder whose batch ends with rows that do not count.

        Args:
            batch: Input and target.
            rng: The epoch's randomness.
            kl_weight: Weight of the KL term.
            num_rows: Rows that count.

        Returns:
            As `forward` does.
        """
        users = self.model.encode(batch, rng)
        terms_TB = self.objective(self.model, users, batch, self.context(rng, 0))
        sums = terms_TB[:, :num_rows].sum(1).unbind()
        terms = dict(zip(self.objective.terms, sums, strict=True))
        kl_B = self._kl(users)
        if kl_B is not None:
            terms["divergence"] = kl_weight * kl_B[:num_rows].sum()
        return terms

    def terms_of(
        self, terms_TB: Tensor, names: tuple[str, ...], users: tuple[Tensor, ...], step: int
    ) -> dict[str, Tensor]:
        """Sum the terms of an objective over the users, and add the KL term of the model."""
        terms = dict(zip(names, terms_TB.sum(1).unbind(), strict=True))
        kl = self.weighted_kl(users, step)
        if kl is not None:
            terms["divergence"] = kl
        if self.training:
            terms[names[0]] = terms[names[0]] + self._no_gradient()
        return terms

    def context(self, rng: CounterRng, step: int) -> LossContext:
        """Return what an objective needs to know about this step."""
        return LossContext(
            rng,
            step,
            self.chunks,
            self._trains_items(),
            gather=gather_rows,
            recorder=self.recorder,
        )

    def _trains_items(self) -> bool:
        """Return whether the current phase trains the decoder's tables."""
        if not self._has_phases:
            return True  # at once: each step is spared a walk over all parameters
        assert isinstance(self.model, TrainsInPhases)
        trained = {id(p) for p in self.model.phases()[self.model.phase]}
        tables = roles_of(self.model).decoder.values()
        return not tables or any(id(table) in trained for table in tables)

    def weighted_kl(self, users: tuple[Tensor, ...], step: int) -> Tensor | None:
        """Return the KL divergence of all users times its weight, where the model has one."""
        kl_B = self._kl(users)
        return None if kl_B is None else self.objective.kl.weight(step) * kl_B.sum()

    def _kl(self, users: tuple[Tensor, ...]) -> Tensor | None:
        if not self._has_kl:
            return None
        assert isinstance(self.model, Variational)
        return self.model.kl(users)

    def _no_gradient(self) -> Tensor | float:
        """Return 0, with gradient 0 for the parameters that this phase does not train.

        Without it ZeRO-3 would reuse the last gradients of such parameters.
        """
        if not self._has_phases:
            return 0.0
        assert isinstance(self.model, TrainsInPhases)
        phases, current = self.model.phases(), self.model.phase
        resting = [p for name in phases if name != current for p in phases[name]]
        return 0.0 * torch.stack([p.float().sum() for p in resting]).sum() if resting else 0.0


def total(terms: dict[str, Tensor]) -> Tensor:
    """Sum the terms to the loss."""
    return torch.stack(list(terms.values())).sum()
