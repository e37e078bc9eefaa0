"""Assembles model, objective and engine of a run."""

import torch.distributed

from distrib.checkpoint.bundle import BUNDLE, load_bundle
from distrib.events import emit
from distrib.models.base import Model
from distrib.models.sequential.config import SequenceConfig
from distrib.storage import Folder
from distrib.training.config import TrainingRun
from distrib.training.engines.base import Engine
from distrib.training.engines.blocks import with_blocks
from distrib.training.engines.config import EngineConfig
from distrib.training.engines.deepspeed_config import num_micro_batches
from distrib.training.engines.graphs import runner_on, why_not
from distrib.training.engines.item_parallel import ItemEngine
from distrib.training.engines.local import LocalEngine
from distrib.training.engines.row_sums import RowSums
from distrib.training.schemes import iterative_scheme_of
from distrib.training.schemes.base import IterativeScheme
from distrib.training.step import TrainStep
from distrib.training.warm_start import begin_with, load_pretrained, start_from
from distrib.vocabulary import Vocabulary


def build_engine(config: TrainingRun, vocabulary: Vocabulary, device: torch.device) -> Engine:
    """Build the model, warm-started where configured, and the engine around it."""
    torch.manual_seed(config.seed)
    scheme = iterative_scheme_of(config)
    model = _model(config, scheme, vocabulary)
    engine = _sized(config, model, device, len(vocabulary))
    assert config.objective is not None  # refused before any worker starts
    objective = config.objective.build(vocabulary.catalog)
    step = scheme.step(model, objective, engine)
    users, world_size = config.train.batch_users, torch.distributed.get_world_size()
    if engine.parallel != "items" and not engine.needs_deepspeed(world_size):
        return _local_engine(config, step.to(device), engine, device, scheme.decodes_inputs)
    _warn_of_no_graphs(engine)
    if engine.parallel == "items":
        return ItemEngine(step, config.optimizer, engine, batch_users=users, device=device)
    from distrib.training.engines.deepspeed import DeepSpeedEngine  # takes seconds

    return DeepSpeedEngine(step, config.optimizer, engine, batch_users=users, device=device)


def _model(config: TrainingRun, scheme: IterativeScheme, vocabulary: Vocabulary) -> Model:
    """Build the model, and start it from earlier ones where configured."""
    model = scheme.build(config.model, vocabulary)
    if config.train.warm_start:
        earlier = load_bundle(Folder(config.train.warm_start) / BUNDLE)
        known = begin_with(model, vocabulary, earlier)
        if torch.distributed.get_rank() == 0:
            emit("warm_start", items=len(vocabulary), known_items=known)
    if config.train.pretrained:
        start_from(model, config.model, load_pretrained(config.train.pretrained))
    return model


def _local_engine(
    config: TrainingRun,
    step: TrainStep,
    engine: EngineConfig,
    device: torch.device,
    decodes_inputs: bool,
) -> LocalEngine:
    """Build the engine without DeepSpeed; of one process, with graphs where that is possible."""
    ranks, runner = None, None
    world_size = torch.distributed.get_world_size()
    parts = num_micro_batches(engine, batch_users=config.train.batch_users, world_size=world_size)
    if world_size > 1:
        ranks = RowSums(engine.sent_dtype)
        _warn_of_no_graphs(engine)
    elif engine.graphs:
        on_gpu = device.type == "cuda"
        reason = why_not(
            step,
            config.optimizer.name,
            decodes_inputs=decodes_inputs,
            has_user_rows=config.model.spec.has_user_rows,
            num_parts=parts,
            on_gpu=on_gpu,
        )
        if not reason:
            runner = runner_on(device)
            reason = "" if on_gpu else "only GPUs have them; shapes are as they would be"
        emit("graphs", captured=not reason, reason=reason)
    return LocalEngine(
        step, config.optimizer, dtype=engine.dtype, num_parts=parts, runner=runner, ranks=ranks
    )


def _warn_of_no_graphs(engine: EngineConfig) -> None:
    if engine.graphs and torch.distributed.get_rank() == 0:
        emit("graphs", captured=False, reason="they are for one worker without DeepSpeed")


def _sized(config: TrainingRun, model: Model, device: torch.device, items: int) -> EngineConfig:
    """Return the settings of the engine, with blocks for the device."""
    users, world_size = config.train.batch_users, torch.distributed.get_world_size()
    parts = num_micro_batches(config.engine, batch_users=users, world_size=world_size)
    rows = -(-users // (world_size * parts))
    if isinstance(config.model, SequenceConfig) and config.model.every:
        rows *= config.model.max_length
    engine = with_blocks(config.engine, device, rows, items, model)
    if device.type == "cuda" and torch.distributed.get_rank() == 0:
        emit("blocks", items=engine.block_items, keep_output_mb=engine.keep_output_mb)
    return engine
