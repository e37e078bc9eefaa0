"""What Ray Train runs on every worker: feed, engine and loop; validate, checkpoint and report."""

import logging
import math
import tempfile
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.train import Checkpoint, CheckpointConsistencyMode, CheckpointUploadMode
from torch import Tensor

from distrib.checkpoint import store
from distrib.checkpoint.bundle import BUNDLE, load_bundle, restored, write_bundle
from distrib.data.collate import Rows, example
from distrib.data.feed import Feed, Resident
from distrib.data.schema import Role
from distrib.errors import CheckpointError
from distrib.evaluate.protocol import measure, selection_score
from distrib.events import Interval, emit, rounded
from distrib.metrics import Sums
from distrib.score.scorer import Scorer
from distrib.storage import Folder
from distrib.train.config import TrainConfig
from distrib.train.deepspeed_engine import DeepSpeedEngine
from distrib.train.loop import TrainState, run_epochs
from distrib.train.progress import Bar
from distrib.train.step import TrainStep
from distrib.train.warm_start import begin_with
from distrib.vocabulary import Vocabulary

STATE = "state.json"


class Inputs(NamedTuple):
    """What the driver hands to every worker."""

    config: str
    """`TrainConfig` as JSON."""

    resident: Resident
    vocabulary: ray.ObjectRef
    facts: dict[str, Any]
    """Kept in the bundle: hash of the data and the like."""

    shows_bar: bool


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Train from the latest checkpoint, or from the start, to the last epoch.

    Args:
        settings: ``{"inputs": Inputs}``.

    Returns:
        ``{"history": one entry per epoch}``, with ``"diverged"`` where the loss was not finite.
    """
    logging.getLogger().setLevel(logging.WARNING)  # Ray would tell of every report
    worker = Worker(settings["inputs"])
    worker.resume()
    run_epochs(
        worker.state,
        worker.engine,
        worker.feed,
        num_epochs=worker.config.loop.num_epochs,
        on_step=worker.on_step,
        on_epoch=worker.on_epoch,
    )
    outcome: dict[str, Any] = {"history": worker.history}
    return outcome if worker.diverged is None else {**outcome, "diverged": worker.diverged}


class Worker:
    """One rank of a run."""

    def __init__(self, inputs: Inputs) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.config = config = TrainConfig.model_validate_json(inputs.config)
        self.facts = inputs.facts
        self.vocabulary: Vocabulary = ray.get(inputs.vocabulary)
        train_rows: Rows = ray.get(inputs.resident.train)
        self.valid_rows: Rows = ray.get(inputs.resident.valid)
        self.feed = Feed(
            train_rows,
            batch_users=config.loop.batch_users,
            seed=config.seed,
            rank=self.rank,
            world_size=self.world_size,
        )
        self.engine = _engine(config, self.vocabulary, self.device)
        self.state = TrainState(config.seed)
        self.history: list[dict[str, Any]] = []
        self.diverged: dict[str, Any] | None = None
        self.attempt = _agreed(uuid.uuid4().hex[:8] if self.rank == 0 else None)
        self.interval = Interval(config.loop.log_every_s)
        self.bar = Bar(
            self.feed.num_steps * config.loop.num_epochs, shown=inputs.shows_bar and self.rank == 0
        )
        self._sums: dict[str, Tensor] = {}
        self._counted = 0

    def resume(self) -> None:
        """Load the latest checkpoint that every rank finds whole, if there is one.

        Raises:
            CheckpointError: There are some, but none is whole.
        """
        faults: list[str] = []
        for checkpoint in _newest_first():
            fault = self._load(checkpoint)
            if not fault:
                if self.rank == 0:
                    emit("resumed", epoch=self.state.epoch, step=self.state.step, damaged=faults)
                return
            faults.append(fault)
        if faults:
            raise CheckpointError("; ".join(faults))

    def _load(self, checkpoint: Checkpoint) -> str:
        """Load a checkpoint on all ranks, or on none; return what is wrong with it, if anything."""
        with tempfile.TemporaryDirectory() as folder:
            fault = ""
            try:
                store.download(checkpoint.filesystem, checkpoint.path, Path(folder))
            except (CheckpointError, OSError) as error:
                fault = str(error)
            fault = next(filter(None, _gathered(fault)), "")
            if not fault:
                saved = Folder(folder).read_json(STATE)
                self.engine.load(folder)
                self.state.epoch, self.state.step = saved["epoch"], saved["step"]
                self.history = saved["history"]
        return fault

    def on_step(self, state: TrainState, terms: dict[str, Tensor]) -> None:
        """Add up losses; tell now and then, without waiting for other ranks."""
        for name, term in terms.items():
            self._sums[name] = self._sums[name] + term if name in self._sums else term
        self._counted = state.num_users
        self.bar.reach(state.step)
        if self.rank == 0 and self.interval.due():
            users_per_s = state.num_users / (state.data_s + state.compute_s)
            losses = {name: float(term) for name, term in terms.items()}
            emit(
                "step",
                epoch=state.epoch,
                step=state.step,
                users_per_s=round(users_per_s),
                rank_sums=rounded(losses),
            )

    def on_epoch(self, state: TrainState) -> bool:
        """Validate, checkpoint and report; False when the loss is not finite."""
        losses = self._mean_losses()
        if not all(math.isfinite(value) for value in losses.values()):
            self.diverged = {"epoch": state.epoch, "step": state.step, "losses": losses}
            return False
        weights = self.engine.weights()
        metrics = self._validate(weights)
        users_per_s = state.num_users / (state.data_s + state.compute_s)
        entry = {
            "epoch": state.epoch,
            "step": state.step,
            "losses": losses,
            "valid": metrics,
            "users_per_s": users_per_s,
            "data_share": state.data_s / (state.data_s + state.compute_s),
            "selection": selection_score(metrics, self.config.selection)
            if metrics
            else float(state.epoch),
        }
        self.history.append(entry)
        self._checkpoint(entry, weights)
        if self.rank == 0:
            emit(
                "epoch",
                epoch=state.epoch,
                **rounded({**losses, **metrics}),
                users_per_s=round(users_per_s),
            )
        return True

    def _mean_losses(self) -> dict[str, float]:
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name].double() for name in names])
        torch.distributed.all_reduce(sums)
        self._sums = {}
        return dict(zip(names, (sums / self._counted).tolist(), strict=True))

    def _validate(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """Measure on the validation users, each on one rank; empty where there are none."""
        if self.valid_rows.num_users == 0:
            return {}
        model = restored(self.config.model, self.vocabulary, weights)
        scorer = Scorer(
            model, self.vocabulary, device=self.device, block_items=self.config.engine.block_items
        )
        mine = np.arange(self.valid_rows.num_users)[self.rank :: self.world_size]
        sums = Sums({})
        size = self.config.evaluate.batch_users
        for start in range(0, len(mine), size):
            asked = example(self.valid_rows, mine[start : start + size], Role.VALID_TARGET)
            sums = sums.merged(measure(scorer, asked, self.config.evaluate))
        merged = Sums({})
        for part in _gathered(sums):
            merged = merged.merged(part)
        return {name: summary.mean for name, summary in merged.summaries().items()}

    def _checkpoint(self, entry: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """Write, upload and register a checkpoint; returns once it is durable."""
        name = f"epoch-{self.state.epoch:04d}-{self.attempt}"
        with tempfile.TemporaryDirectory() as folder:
            self.engine.save(folder)
            if self.rank == 0:
                saved = {
                    "epoch": self.state.epoch,
                    "step": self.state.step,
                    "history": self.history,
                }
                Folder(folder).write_json(STATE, saved)
                facts = {**self.facts, "epoch": self.state.epoch, "valid": entry["valid"]}
                write_bundle(
                    Folder(folder) / BUNDLE, weights, self.config.model, self.vocabulary, facts
                )
            ray.train.report(
                {"selection": entry["selection"], "epoch": self.state.epoch},
                checkpoint=Checkpoint.from_directory(folder),
                checkpoint_dir_name=name,
                checkpoint_upload_mode=CheckpointUploadMode.SYNC,
                checkpoint_upload_fn=_upload,
            )
        # A report that has returned is not registered yet; a worker lost now would redo the epoch.
        ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)


def _engine(config: TrainConfig, vocabulary: Vocabulary, device: torch.device) -> DeepSpeedEngine:
    torch.manual_seed(config.seed)
    model = config.model.build(vocabulary.catalogue)
    if config.loop.warm_start:
        earlier = load_bundle(Folder(config.loop.warm_start) / BUNDLE)
        known = begin_with(model, vocabulary, earlier)
        if torch.distributed.get_rank() == 0:
            emit("warm_start", items=len(vocabulary), known_items=known)
    objective = config.objective.build(vocabulary.levels)
    step = TrainStep(model, objective, block_items=config.engine.block_items)
    return DeepSpeedEngine(
        step, config.optimizer, config.engine, batch_users=config.loop.batch_users, device=device
    )


def _newest_first() -> list[Checkpoint]:
    """Return all checkpoints of the run that Ray Train knows, the latest first."""
    latest = ray.train.get_checkpoint()
    if latest is None:
        return []
    reported = [entry.checkpoint for entry in ray.train.get_all_reported_checkpoints()]
    older = [checkpoint for checkpoint in reversed(reported) if checkpoint.path != latest.path]
    return [latest, *older]


def _gathered(mine: Any) -> list[Any]:
    """Return what each rank has, in the order of ranks."""
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, mine)
    return everyone


def _agreed(token: str | None) -> str:
    """Give all ranks the token of rank 0."""
    box = [token]
    torch.distributed.broadcast_object_list(box, src=0)
    return str(box[0])


def _upload(checkpoint: Checkpoint, name: str) -> Checkpoint:
    context = ray.train.get_context()
    storage = context.get_storage()
    target = storage.build_checkpoint_path_from_name(name)
    store.upload_part(
        Path(checkpoint.path),
        storage.storage_filesystem,
        target,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
    )
    return Checkpoint(path=target, filesystem=storage.storage_filesystem)
