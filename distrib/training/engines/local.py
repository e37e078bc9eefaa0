"""The single-process engine, the reference for all others."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from distrib.checkpoint.state import SavedState, StatePiece
from distrib.data.feeds.base import RankBatch
from distrib.models.capabilities import begin_epoch, end_epoch
from distrib.rng import CounterRng
from distrib.training.engines.base import Update
from distrib.training.engines.state import buffer_pieces, piece_of, restore_buffers, take_up
from distrib.training.optimizer import OptimizerConfig, build_optimizer, set_rate, train_phase
from distrib.training.step import TrainStep, total


class LocalEngine:
    """One process, plain torch, float32: the reference that every other engine must match."""

    def __init__(
        self, step: TrainStep, config: OptimizerConfig, device: torch.device | str = "cpu"
    ) -> None:
        self.device = device
        self.step_module = step
        self.config = config
        self.communication_share = 0.0
        self.optimizer = build_optimizer(step.model, config)

    def train_batch(self, batch: RankBatch, rng: CounterRng, *, step: int) -> Update:
        """Forward, backward, update; see `Engine`."""
        inputs, target, size = batch.to(self.device)
        terms: dict[str, Tensor] = self.step_module(inputs, target, rng, step)
        self.optimizer.zero_grad()
        (total(terms) / size).backward()
        parameters = [p for p in self.step_module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.config.gradient_clipping:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.gradient_clipping, norm)
        set_rate(self.optimizer, self.config.rate(step))
        self.optimizer.step()
        losses = {name: term.detach() for name, term in terms.items()}
        return Update(losses, norm, recorded=self.step_module.recorder.sums)

    def begin_epoch(self, epoch: int) -> None:
        """Select the phase to train; see `Engine`."""
        train_phase(self.optimizer, begin_epoch(self.step_module.model, epoch))

    def end_epoch(self, epoch: int) -> None:
        """Notify the model; see `Engine`."""
        end_epoch(self.step_module.model, epoch)

    def weights(self) -> dict[str, Tensor]:
        """Copy the state; see `Engine`."""
        state = self.step_module.model.state_dict()
        return {name: tensor.detach().float().cpu().clone() for name, tensor in state.items()}

    def pieces(self) -> Iterator[StatePiece]:
        """Yield every parameter; see `Engine`."""
        for name, parameter in self.step_module.model.named_parameters():
            yield piece_of(self.optimizer, name, parameter, (0, 0, parameter.numel()))
        yield from buffer_pieces(self.step_module.model)

    def facts(self) -> dict[str, float]:
        """Return nothing; see `Engine`."""
        return {}

    def restore(self, saved: SavedState, facts: Mapping[str, float]) -> None:
        """Copy every parameter; see `Engine`."""
        del facts
        for name, parameter in self.step_module.model.named_parameters():
            take_up(self.optimizer, saved, name, parameter, (0, 0, parameter.numel()))
        restore_buffers(self.step_module.model, saved)
