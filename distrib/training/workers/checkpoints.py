"""A worker's state of training: loaded on all ranks or none, saved while training continues."""

import functools
import json
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch.distributed
from torch import Tensor

from distrib.checkpoint.bundle import BundleFacts
from distrib.checkpoint.state import SavedState
from distrib.checkpoint.store import CheckpointStore, checkpoint_name
from distrib.checkpoint.writer import CheckpointWriter, Rank
from distrib.config import JsonObject
from distrib.errors import CheckpointError, DataError
from distrib.events import emit
from distrib.fence import require_ours
from distrib.retries import with_retries
from distrib.storage import Folder
from distrib.training.best_bundle import write_best
from distrib.training.config import TrainingRun
from distrib.training.engines.base import Engine
from distrib.training.loop import TrainState
from distrib.training.records import EpochRecord
from distrib.training.workers.collectives import broadcast_object, gather_objects
from distrib.training.workers.loss_reducer import LossReducer
from distrib.training.workers.place import Place
from distrib.vocabulary import Vocabulary

POSITION = "position.json"
"""File of the training position, inside a checkpoint."""


class Attempt(NamedTuple):
    """One start of a run."""

    name: str
    """Equal on all ranks, different for every start."""

    token: str
    """While the run folder holds it, this start may write the run."""

    facts: BundleFacts
    """Kept in bundles: hash of the data and the like."""


class Trained(NamedTuple):
    """What a checkpoint saves, and is restored into."""

    engine: Engine
    state: TrainState
    loss_reducer: LossReducer
    history: list[EpochRecord]
    vocabulary: Vocabulary


class _Best(NamedTuple):
    """A new best epoch."""

    weights: dict[str, Tensor]
    record: EpochRecord


class RunCheckpoints:
    """The checkpoints of a run, as one rank writes and reads them.

    Args:
        run: The run.
        place: Of this rank.
        attempt: Which start of the run.
        trained: What is saved.
    """

    def __init__(self, run: TrainingRun, place: Place, attempt: Attempt, trained: Trained) -> None:
        self.run, self.place, self.attempt, self.trained = run, place, attempt, trained
        self.folder = Folder(run.run)
        self.store = CheckpointStore(self.folder)
        self.writer = CheckpointWriter(
            self.store,
            Rank(place.rank, place.world_size),
            retry_s=run.train.checkpoint.retry_s,
            in_background=run.train.checkpoint.in_background,
        )
        self.saved_s = time.monotonic()
        """When the last one was started."""

        self._best: _Best | None = None
        """Not written yet."""

    def resume(self) -> None:
        """Load the newest checkpoint that every rank finds intact, if there is one.

        Raises:
            CheckpointError: There are some, but none is intact.
        """
        faults: list[str] = []
        retry_s = self.run.train.checkpoint.retry_s
        is_first = self.place.rank == 0
        found = with_retries(self.store.complete, timeout_s=retry_s) if is_first else None
        names: list[str] = broadcast_object(found)
        for name in names:
            fault = self._load(name)
            if not fault:
                if is_first:
                    position = self.trained.state.position()
                    emit("resumed", checkpoint=name, **position, damaged=faults)
                return
            faults.append(fault)
        if faults:
            raise CheckpointError("; ".join(faults))

    def _load(self, name: str) -> str:
        """Load a checkpoint on all ranks, or on none; return what is wrong with it, if anything.

        One rank of each node fetches it for the others there.
        """
        place = f"distrib-{self.attempt.name}-{self.place.node}-{name}"
        folder = Path(tempfile.gettempdir(), place)
        fault = ""
        if self.place.local_rank == 0:
            try:
                self.store.fetch(name, folder, retry_s=self.run.train.checkpoint.retry_s)
            except (DataError, CheckpointError, OSError) as error:
                fault = str(error)
        fault = next(filter(None, gather_objects(fault)), "")
        if not fault:
            self._restore(folder)
        torch.distributed.barrier()
        if self.place.local_rank == 0:
            Folder(str(folder)).remove()
        return fault

    def _restore(self, folder: Path) -> None:
        trained = self.trained
        saved = Folder(str(folder)).read_json(POSITION)
        trained.engine.restore(SavedState(folder), saved["engine"])
        trained.state.go_to(saved["position"])
        trained.loss_reducer.take(saved["ledger"], self.place.rank, self.place.world_size)
        trained.history[:] = map(EpochRecord.model_validate, saved["history"])

    def save(self, best: dict[str, Tensor] | None = None, *, is_optional: bool = False) -> None:
        """Start to write a checkpoint; every rank must call.

        Args:
            best: Weights of the last epoch, where it is better than all before. They are kept until
                they are written.
            is_optional: Whether training need not wait where a rank still writes the one before;
                the next checkpoint replaces this one.
        """
        started_s = time.perf_counter()
        trained = self.trained
        if best is not None:
            self._best = _Best(best, trained.history[-1])
        reducers = gather_objects((self.writer.is_busy, trained.loss_reducer.to_json()))
        if not (is_optional and any(is_busy for is_busy, _ in reducers)):
            self._start([reducer for _, reducer in reducers])
        trained.state.checkpoint_s += time.perf_counter() - started_s

    def _start(self, reducers: list[JsonObject]) -> None:
        trained, is_first = self.trained, self.place.rank == 0
        position = {
            "position": trained.state.position(),
            "ledger": reducers,
            "engine": trained.engine.facts(),
            "history": [record.to_json() for record in trained.history],
        }
        best, self._best = self._best, None
        self.writer.start(
            checkpoint_name(trained.state.step, self.attempt.name),
            trained.engine.pieces(),
            {POSITION: json.dumps(position)} if is_first else {},
            functools.partial(self._before_writing, best) if is_first else None,
        )
        self.saved_s = time.monotonic()

    def _before_writing(self, best: _Best | None) -> None:
        """Check that this start still owns the run, keep the best weights, remove old checkpoints.

        In this order, a checkpoint whose history names a best epoch always has its bundle.
        """
        self.require_ours()
        if best is not None:
            facts = self.attempt.facts
            write_best(self.run, self.trained.vocabulary, best.weights, best.record, facts)
        self.prune()

    def prune(self) -> None:
        """Remove old checkpoints."""
        self.store.prune(self.run.train.checkpoint.keep, self.attempt.name)

    def require_ours(self) -> None:
        """Raise when a later start of this run has taken the folder over."""
        require_ours(self.folder, self.attempt.token)

    def wait(self) -> str:
        """Wait until all is written, on all ranks; return what failed on any of them."""
        self.writer.wait()
        best, self._best = self._best, None
        if best is not None and self.place.rank == 0 and not self.writer.fault:
            self.writer.run(functools.partial(self._before_writing, best), "the best epoch")
        return next(filter(None, gather_objects(self.writer.fault)), "")
