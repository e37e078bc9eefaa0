"""The engine on DeepSpeed: the same updates on any number of ranks, mixed precision, ZeRO."""

import contextlib
import io
import logging
import time
from collections.abc import Callable, Iterator, Mapping

import deepspeed
import deepspeed.comm.comm
import deepspeed.ops
import torch
import torch.distributed
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.utils import safe_get_full_fp32_param
from pydantic import ValidationError
from torch import Tensor

from distrib.checkpoint.state import SavedState, StatePiece
from distrib.data.feeds.base import RankBatch
from distrib.models.capabilities import begin_epoch, end_epoch
from distrib.parameters import roles_of
from distrib.rng import CounterRng
from distrib.training.engines import deepspeed_state
from distrib.training.engines.base import Update, add_up
from distrib.training.engines.config import EngineConfig
from distrib.training.engines.deepspeed_config import bucket_size, deepspeed_config
from distrib.training.engines.state import buffer_pieces, restore_buffers
from distrib.training.optimizer import OptimizerConfig, build_optimizer, set_rate, train_phase
from distrib.training.step import TrainStep, total

_SECTIONS = {
    "zero_optimization": DeepSpeedZeroConfig,
    "bf16": DeepSpeedBF16Config,
    "fp16": DeepSpeedFP16Config,
}
_SAMPLE_EVERY = 100  # updates between two timed ones


class DeepSpeedEngine:
    """See `Engine`. torch.distributed must be up; every rank makes one and calls all methods.

    Gradients are averaged over ranks by DeepSpeed, so each rank's sum is multiplied by the number
    of ranks and divided by the users of the global batch: the mean over users, however they are
    sharded.
    """

    def __init__(
        self,
        step: TrainStep,
        optimizer: OptimizerConfig,
        engine: EngineConfig,
        *,
        batch_users: int,
        device: torch.device,
    ) -> None:
        self.world_size = torch.distributed.get_world_size()
        self.device = device
        self.step_module = step
        self.optimizer = optimizer
        _forbid_builds()
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        config = deepspeed_config(
            engine,
            optimizer,
            batch_users=batch_users,
            world_size=self.world_size,
            bucket=bucket_size(step.model.parameters(), engine.zero_stage),
        )
        self.communication_share = 0.0
        self._num_batches = 0
        self.num_parts: int = config["gradient_accumulation_steps"]
        with contextlib.redirect_stdout(io.StringIO()):  # it prints memory statistics
            self.engine, *_ = deepspeed.initialize(
                model=step, optimizer=build_optimizer(step.model, optimizer), config=config
            )
        self.is_sharded = engine.zero_stage == 3
        if self.is_sharded:
            # Tables are read in the step's forward, not in a layer's, so the step must fetch them.
            # A "leaf module" would not do: its hook fires before our gradients are there.
            for parameter in step.model.parameters():
                deepspeed.zero.register_external_parameter(step, parameter)

    def train_batch(self, batch: RankBatch, rng: CounterRng, *, step: int) -> Update:
        """Forward and backward over each micro-batch, then the update; see `Engine`."""
        self._num_batches += 1
        if self.world_size == 1 or self._num_batches % _SAMPLE_EVERY != 2:
            return self._update(batch, rng, step)
        started_s = time.perf_counter()
        with _timed_communication() as spent:
            update = self._update(batch, rng, step)
        self.communication_share = min(1.0, spent() / (time.perf_counter() - started_s))
        return update

    def _update(self, batch: RankBatch, rng: CounterRng, step: int) -> Update:
        set_rate(self.engine.optimizer, self.optimizer.rate(step))
        summed: dict[str, Tensor] = {}
        recorded: dict[str, Tensor] = {}
        for inputs, target, count in batch.to(self.device).split(self.num_parts):
            terms: dict[str, Tensor] = self.engine(inputs, target, rng, step)
            # DeepSpeed averages over ranks and micro-batches; the loss is a mean over users.
            scale = self.world_size * self.num_parts / count
            self.engine.backward(total(terms) * scale)
            self.engine.step()
            add_up(summed, {name: term.detach() for name, term in terms.items()})
            add_up(recorded, self.step_module.recorder.sums)
        norm = self.engine.get_global_grad_norm()
        size = torch.as_tensor(0.0 if norm is None else norm, dtype=torch.float32)
        return Update(summed, size, bool(self.engine.was_step_applied()), recorded)

    def begin_epoch(self, epoch: int) -> None:
        """Select the phase to train; see `Engine`."""
        train_phase(self.engine.optimizer, begin_epoch(self.step_module.model, epoch))

    def end_epoch(self, epoch: int) -> None:
        """Notify the model, with its parameters gathered; see `Engine`."""
        model = self.step_module.model
        with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=self.is_sharded):
            end_epoch(model, epoch)
        deepspeed_state.set_to_zero(self.engine, model, set(roles_of(model).accumulated))

    def weights(self) -> dict[str, Tensor]:
        """Gather the float32 master weights; see `Engine`."""
        gathered: dict[str, Tensor] = {}
        for name, parameter in self.step_module.model.named_parameters():
            master = safe_get_full_fp32_param(parameter)
            whole = parameter if master is None else master
            gathered[name] = whole.detach().float().cpu().reshape(_shape(parameter)).clone()
        model = self.step_module.model
        buffers = dict(model.named_buffers())
        return {
            name: gathered[name] if name in gathered else buffers[name].detach().cpu().clone()
            for name in model.state_dict()
        }

    def pieces(self) -> Iterator[StatePiece]:
        """Yield the shards that ZeRO keeps on this rank; see `Engine`."""
        yield from deepspeed_state.pieces(self.engine, self.step_module.model)
        if torch.distributed.get_rank() == 0:
            yield from buffer_pieces(self.step_module.model)

    def facts(self) -> dict[str, float]:
        """Return the loss scale of fp16; see `Engine`."""
        return deepspeed_state.loss_scale(self.engine)

    def restore(self, saved: SavedState, facts: Mapping[str, float]) -> None:
        """Restore this rank's shards; see `Engine`."""
        deepspeed_state.restore(self.engine, self.step_module.model, saved)
        deepspeed_state.set_loss_scale(self.engine, facts)
        restore_buffers(self.step_module.model, saved)


def deepspeed_faults(engine: EngineConfig, optimizer: OptimizerConfig) -> list[str]:
    """Let DeepSpeed check what a run file adds to its configuration, before any worker starts.

    Args:
        engine: Holds the table.
        optimizer: For the rest of the configuration.

    Returns:
        Keys that DeepSpeed does not know, and values that it does not accept.
    """
    config = deepspeed_config(engine, optimizer, batch_users=1, world_size=1)
    faults = []
    for name, kind in _SECTIONS.items():
        try:
            kind(**config[name])
        except ValidationError as error:
            faults += [
                f"engine.deepspeed.{'.'.join([name, *map(str, fault['loc'])])}: {fault['msg']}"
                for fault in error.errors()
            ]
    return faults


@contextlib.contextmanager
def _timed_communication() -> Iterator[Callable[[], float]]:
    """Time DeepSpeed's collectives, made synchronous; yield a function for their sum, s."""
    logger, timers = deepspeed.comm.comm.comms_logger, deepspeed.comm.comm.timers.timers
    before = logger.enabled, logger.prof_all
    logger.comms_dict, logger.enabled, logger.prof_all = {}, True, True
    for timer in timers.values():
        timer.reset()
    try:  # the log's own latencies are running sums, so the timers are read instead
        yield lambda: sum(timers[name].elapsed() for name in logger.comms_dict) / 1000
    finally:
        logger.enabled, logger.prof_all = before


def _shape(parameter: Tensor) -> torch.Size:
    """Return the whole shape, also of a parameter that ZeRO-3 has partitioned."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _forbid_builds() -> None:
    """Keep DeepSpeed from compiling at run time: a killed build leaves a lock that hangs others."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
