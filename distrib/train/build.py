"""Model, objective and engine of a run, put together."""

from typing import Any

import torch.distributed

from distrib.checkpoint.bundle import BUNDLE, load_bundle
from distrib.events import emit
from distrib.objectives.compiled import compiled
from distrib.storage import Folder
from distrib.train.config import TrainConfig
from distrib.train.engines.base import Engine
from distrib.train.engines.deepspeed import DeepSpeedEngine
from distrib.train.engines.item_parallel import ItemEngine
from distrib.train.engines.local import LocalEngine
from distrib.train.schemes.item_side import trained_model
from distrib.train.step import TrainStep
from distrib.train.warm_start import begin_with
from distrib.vocabulary import Vocabulary


def build_engine(config: TrainConfig, vocabulary: Vocabulary, device: torch.device) -> Engine:
    """Build the model, as a warm start where one is wanted, and the engine around it."""
    torch.manual_seed(config.seed)
    model = trained_model(config.model, vocabulary)
    if config.loop.warm_start:
        earlier = load_bundle(Folder(config.loop.warm_start) / BUNDLE)
        known = begin_with(model, vocabulary, earlier)
        if torch.distributed.get_rank() == 0:
            emit("warm_start", items=len(vocabulary), known_items=known)
    engine = config.engine
    assert config.objective is not None  # refused before any worker starts
    objective: Any = config.objective.build(vocabulary.catalogue)
    if engine.compile:
        objective = compiled(objective, is_factored=model.odds() is not None)
    step = TrainStep(
        model, objective, block_items=engine.block_items, keep_output_mb=engine.keep_output_mb
    )
    if torch.distributed.get_world_size() == 1 and engine.is_plain:
        return LocalEngine(step.to(device), config.optimizer, device)
    kind = ItemEngine if engine.parallel == "items" else DeepSpeedEngine
    return kind(step, config.optimizer, engine, batch_users=config.loop.batch_users, device=device)
