"""The engine without DeepSpeed. On one process it is the reference for all others."""

import time
from collections.abc import Iterator, Mapping

import torch
import torch.distributed
from torch import Tensor, nn

from distrib.checkpoint.state import SavedState, StatePiece
from distrib.data.feeds.base import RankBatch
from distrib.models.capabilities import begin_epoch, end_epoch
from distrib.parameters import roles_of
from distrib.rng import CounterRng
from distrib.training.engines.base import Update, add_up
from distrib.training.engines.graphs import FilledUpdates, Runner
from distrib.training.engines.masters import Masters
from distrib.training.engines.row_sums import RowSums
from distrib.training.engines.state import (
    buffer_pieces,
    make_alike,
    piece_of,
    restore_buffers,
    take_up,
)
from distrib.training.optimizer import (
    OptimizerConfig,
    groups_of,
    optimizer_of,
    set_rate,
    train_phase,
)
from distrib.training.step import TrainStep, total


class LocalEngine:
    """Plain torch. On one process in float32 it is the reference that all other engines must match.

    On several ranks each keeps all parameters and the whole state of the optimizer, and makes the
    same update.

    Args:
        step: Model and objective, on the device.
        config: The optimizer.
        dtype: Of parameters and activations; the optimizer always updates float32 masters.
        num_parts: Forward passes of an update.
        runner: Runs updates of a few fixed shapes; without it, shapes are those of the batches. Of
            one process.
        ranks: Adds up gradients over the ranks; None on one process.
    """

    def __init__(
        self,
        step: TrainStep,
        config: OptimizerConfig,
        *,
        dtype: torch.dtype = torch.float32,
        num_parts: int = 1,
        runner: Runner | None = None,
        ranks: RowSums | None = None,
    ) -> None:
        self.device = next(step.parameters()).device
        self.step_module = step
        self.config = config
        self.num_parts = num_parts
        self.communication_share = 0.0
        self._ranks = ranks
        if ranks is not None:
            make_alike(step.model, self.device)
        self.masters = Masters(step, dtype)
        groups = [
            group._replace(parameters=[self.masters.of(p) for p in group.parameters])
            for group in groups_of(step.model, config)
        ]
        self._filled: FilledUpdates | None = None
        if runner is not None:
            self._filled = FilledUpdates(step, self._update, self.device, runner)
        capturable = runner is not None and self.device.type == "cuda"
        self.optimizer = optimizer_of(groups, config, capturable=capturable)

    def train_batch(self, batch: RankBatch, rng: CounterRng, *, step: int) -> Update:
        """Forward and backward over each micro-batch, then the update; see `Engine`."""
        set_rate(self.optimizer, self.config.rate(step))
        batch = batch.to(self.device)
        if self._filled is not None and batch.target.num_users:
            return self._filled.update(batch, rng, step)
        started_s = time.perf_counter()
        losses: dict[str, Tensor] = {}
        recorded: dict[str, Tensor] = {}
        self.masters.clear()
        for inputs, target, size in batch.split(self.num_parts):
            terms: dict[str, Tensor] = self.step_module(inputs, target, rng, step)
            self._backward(terms, size)
            add_up(losses, {name: term.detach() for name, term in terms.items()})
            add_up(recorded, self.step_module.recorder.sums)
        norm = self._apply()
        if self._ranks is not None:
            self.communication_share = self._ranks.spent_s / (time.perf_counter() - started_s)
        return Update(losses, norm, recorded=recorded)

    def _update(self, terms: dict[str, Tensor], size: int) -> Tensor:
        """Update the model by the loss of a whole batch; return the norm of the gradient."""
        self.masters.clear()
        self._backward(terms, size)
        return self._apply()

    def _backward(self, terms: dict[str, Tensor], size: int) -> None:
        (total(terms) / size).backward()
        self.masters.collect()

    def _apply(self) -> Tensor:
        """Update the model by the gradients of all ranks; return their norm."""
        if self._ranks is not None:
            self._ranks.add_up(self.masters.all)
        updated = self.masters.with_gradient()
        norm = torch.nn.utils.get_total_norm([m.grad for m in updated if m.grad is not None])
        if self.config.gradient_clipping:
            torch.nn.utils.clip_grads_with_norm_(updated, self.config.gradient_clipping, norm)
        self.optimizer.step()
        self.masters.publish(updated)
        return norm

    def begin_epoch(self, epoch: int) -> None:
        """Select the phase to train; see `Engine`."""
        train_phase(self.optimizer, begin_epoch(self.step_module.model, epoch))

    def end_epoch(self, epoch: int) -> None:
        """Notify the model; see `Engine`."""
        model = self.step_module.model
        end_epoch(model, epoch)
        for parameter in roles_of(model).accumulated.values():
            self.masters.of(parameter).data.zero_()

    def weights(self) -> dict[str, Tensor]:
        """Copy the state; see `Engine`."""
        model = self.step_module.model
        masters = {name: self.masters.of(p) for name, p in model.named_parameters()}
        state = {**model.state_dict(), **masters}
        return {name: tensor.detach().float().cpu().clone() for name, tensor in state.items()}

    def pieces(self) -> Iterator[StatePiece]:
        """Yield this rank's share of the parameters; see `Engine`."""
        rank, world_size = 0, 1
        if self._ranks is not None:
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        for place, (name, master) in enumerate(self._named_masters()):
            if place % world_size == rank:
                yield piece_of(self.optimizer, name, master, (0, 0, master.numel()))
        if rank == 0:
            yield from buffer_pieces(self.step_module.model)

    def facts(self) -> dict[str, float]:
        """Return nothing; see `Engine`."""
        return {}

    def restore(self, saved: SavedState, facts: Mapping[str, float]) -> None:
        """Copy every parameter; see `Engine`."""
        del facts
        for name, master in self._named_masters():
            take_up(self.optimizer, saved, name, master, (0, 0, master.numel()))
        self.masters.publish([master for _, master in self._named_masters()])
        if self._filled is not None:
            self._filled.runner.forget()
        restore_buffers(self.step_module.model, saved)

    def _named_masters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.step_module.model.named_parameters():
            yield name, self.masters.of(parameter)
