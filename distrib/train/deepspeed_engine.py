"""The engine on DeepSpeed: the same updates on any number of ranks, mixed precision, ZeRO."""

import contextlib
import io
import logging
from typing import Any

import deepspeed
import deepspeed.ops
import torch
import torch.distributed
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor

from distrib.batch import Batch
from distrib.errors import CheckpointError
from distrib.noise import Noise
from distrib.train.engine import EngineConfig, OptimizerConfig, build_optimizer
from distrib.train.step import TrainStep, total

_TAG = "engine"


def deepspeed_config(
    engine: EngineConfig, optimizer: OptimizerConfig, *, batch_users: int, world_size: int
) -> dict[str, Any]:
    """Build DeepSpeed's configuration from typed fields; all values with a trap are written out.

    Args:
        engine: Precision and ZeRO stage.
        optimizer: For gradient clipping.
        batch_users: Users of a global batch.
        world_size: Ranks.

    Returns:
        The configuration as DeepSpeed takes it.
    """
    micro = -(-batch_users // world_size)
    stage, precision = engine.zero_stage, engine.precision
    config: dict[str, Any] = {
        "train_batch_size": micro * world_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.gradient_clipping,  # DeepSpeed's own default is 1.0
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16", "initial_scale_power": 16},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": stage,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "overlap_comm": torch.cuda.is_available(),
        },
        "zero_allow_untested_optimizer": optimizer.name == "sgd",
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }
    if stage > 0:  # refused by DeepSpeed at stage 0
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


class DeepSpeedEngine:
    """See `Engine`. torch.distributed must be up; every rank makes one and calls all methods.

    Gradients are averaged over ranks by DeepSpeed, so each rank's sum is multiplied by the number
    of ranks and divided by the users of the global batch: the mean over users, however they are
    dealt.
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
        _forbid_builds()
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        config = deepspeed_config(
            engine, optimizer, batch_users=batch_users, world_size=self.world_size
        )
        with contextlib.redirect_stdout(io.StringIO()):  # it prints of its memory
            self.engine, *_ = deepspeed.initialize(
                model=step, optimizer=build_optimizer(step.model, optimizer), config=config
            )
        if engine.zero_stage == 3:
            # Tables are read in the step's forward, not in a layer's, so the step must fetch them.
            # A "leaf module" would not do: its hook fires before our gradients are there.
            for parameter in step.model.parameters():
                deepspeed.zero.register_external_parameter(step, parameter)

    def train_batch(
        self, source: Batch, target: Batch, noise: Noise, *, step: int, num_users: int
    ) -> dict[str, Tensor]:
        """Forward, backward, update; see `Engine`."""
        read = source.to(self.device)
        wanted = read if target is source else target.to(self.device)
        terms: dict[str, Tensor] = self.engine(read, wanted, noise, step)
        self.engine.backward(total(terms) * (self.world_size / num_users))
        self.engine.step()
        return {name: term.detach() for name, term in terms.items()}

    def weights(self) -> dict[str, Tensor]:
        """Gather the float32 master weights; see `Engine`."""
        gathered: dict[str, Tensor] = {}
        for name, parameter in self.step_module.model.named_parameters():
            master = safe_get_full_fp32_param(parameter)
            whole = parameter if master is None else master
            gathered[name] = whole.detach().float().cpu().reshape(_shape(parameter)).clone()
        for name, buffer in self.step_module.model.named_buffers():
            gathered[name] = buffer.detach().cpu().clone()
        return gathered

    def save(self, folder: str) -> None:
        """Write DeepSpeed's own files; each rank its part."""
        self.engine.save_checkpoint(folder, tag=_TAG)

    def load(self, folder: str) -> None:
        """Read DeepSpeed's own files.

        Args:
            folder: What `save` wrote, from all ranks.

        Raises:
            CheckpointError: They are not there; DeepSpeed itself would only warn and go on.
        """
        path, _ = self.engine.load_checkpoint(folder, tag=_TAG)
        if path is None:
            raise CheckpointError(
                f"{folder}: no engine state to go on from; start in a new run folder"
            )


def _shape(parameter: Tensor) -> torch.Size:
    """Return the whole shape, also of a parameter that ZeRO-3 has partitioned."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _forbid_builds() -> None:
    """Keep DeepSpeed from compiling at run time: a killed build leaves a lock that hangs others."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
