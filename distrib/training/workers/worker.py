"""One rank of a run: feed, engine and loop; validate, checkpoint, agree with the others."""

import logging
import time
import uuid
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor

from distrib.checkpoint.bundle import BundleFacts
from distrib.data.feeds.base import BatchSharding, Feed, RankBatch
from distrib.data.feeds.loader import TrainingData
from distrib.errors import MemoryLimitError
from distrib.evaluation.baseline import POPULARITY
from distrib.evaluation.protocol import is_meant, selection_score
from distrib.events import Interval, emit, rounded
from distrib.training.build import build_engine
from distrib.training.config import TrainingRun
from distrib.training.engines.base import Update
from distrib.training.loop import TrainState, run_epochs
from distrib.training.oom import advice, is_of_memory
from distrib.training.records import Divergence, EpochRecord, Outcome, best_record
from distrib.training.schemes import iterative_scheme_of
from distrib.training.schemes.base import ExportContext
from distrib.training.workers.checkpoints import Attempt, RunCheckpoints, Trained
from distrib.training.workers.collectives import broadcast_object, gather_objects
from distrib.training.workers.loss_reducer import LossReducer, Reduced
from distrib.training.workers.monitor import TrainMonitor, memory_gb, speed_of
from distrib.training.workers.place import Place
from distrib.training.workers.validation import Validator, watch_calibration
from distrib.training.workers.watchdog import Watchdog, start_watchdog
from distrib.vocabulary import Vocabulary

_EXPLOSION_FACTOR = 4.0
"""Training has diverged where its loss is this many times that of predicting the mean rating."""

_COLLAPSE_ADVICE = (
    "raise objective.warmup_steps, lower the weight of the unlabeled loss, or allow more with "
    "objective.collapse_factor"
)

_PREEMPTION_S = 5.0  # between preemption checks


class Inputs(NamedTuple):
    """What every rank of a run needs."""

    run: TrainingRun
    data: TrainingData
    vocabulary: Vocabulary
    facts: BundleFacts
    """Kept in the bundle: hash of the data and the like."""

    token: str
    """See `distrib.fence`."""


def train_rank(inputs: Inputs, place: Place) -> Outcome:
    """Train from the latest checkpoint, or from the start, to the last epoch.

    Args:
        inputs: The run and its data.
        place: Of this rank; torch.distributed must be up. It is closed in the end.

    Returns:
        How training ended.

    Raises:
        MemoryLimitError: Out of memory.
    """
    logging.getLogger().setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", r"`torch\.distributed\.", FutureWarning)  # DeepSpeed's
    worker = None
    try:
        worker = Worker(inputs, place)
        return worker.train()
    except (MemoryError, RuntimeError) as error:
        if not is_of_memory(error):
            raise
        step = "before the first step" if worker is None else f"step {worker.state.step + 1}"
        text = str(error).splitlines()[0][:200]
        what = f"rank {place.rank}, {step}: out of memory at {memory_gb():.1f} GiB ({text})"
        chunks = None if worker is None else worker.engine.step_module.chunks
        raise MemoryLimitError(advice(inputs.run, what, chunks)) from error
    finally:
        place.close()
        if worker is not None:
            worker.close()


class Worker:
    """One rank of a run."""

    def __init__(self, inputs: Inputs, place: Place) -> None:
        self.place, self.rank, self.world_size = place, place.rank, place.world_size
        self.device = place.device
        self.run = run = inputs.run
        self.scheme = iterative_scheme_of(run)
        self.inputs = inputs
        self.vocabulary = inputs.vocabulary
        train = run.train
        self.watchdog = start_watchdog(self.rank, self.world_size, train.collective_timeout_s)
        sharding = BatchSharding(train.batch_users, run.seed, self.rank, self.world_size)
        on_device = self.device if train.histories_on_gpu and train.use_gpu else None
        self.feed: Feed = self.scheme.open_feed(inputs.data, sharding, run, on_device)
        self.engine = build_engine(run, self.vocabulary, self.device)
        self.state = TrainState(run.seed)
        self.loss_reducer = LossReducer(self.device, max_skipped_updates=train.max_skipped_updates)
        self.history: list[EpochRecord] = []
        self.ending = Outcome([])
        """Why training ended early; equal on all ranks."""

        name = str(broadcast_object(uuid.uuid4().hex[:8]))
        self.checkpoints = RunCheckpoints(
            run,
            place,
            Attempt(name, inputs.token, inputs.facts),
            Trained(self.engine, self.state, self.loss_reducer, self.history, self.vocabulary),
        )
        self.checkpoints.writer.on_wait = self.watchdog.touch
        self.log_interval = Interval(train.log_every_s)
        self.preemption_interval = Interval(_PREEMPTION_S)
        num_steps = self.feed.num_steps(0)
        bar = place.post_progress
        self.monitor = TrainMonitor(run, self.engine, num_steps, bar=bar, is_first=self.rank == 0)
        self._noted = 0
        """Count of the epoch that the loss reducer has received."""

        self.validator = Validator(
            run, self.vocabulary, self.feed, inputs.data.num_valid, self.device
        )

    def close(self) -> None:
        """Stop the threads."""
        self.watchdog.close()
        self.monitor.close()

    def train(self) -> Outcome:
        """Resume, train, and wait until all is written."""
        self.checkpoints.resume()
        self._noted = self.state.count
        run_epochs(
            self.state,
            self.engine,
            _Watched(self.feed, self.watchdog),
            num_epochs=self._last_epoch(),
            on_step=self._on_step,
            on_epoch=self._on_epoch,
        )
        fault = self.checkpoints.wait()
        if self.rank == 0 and not fault:
            self.checkpoints.require_ours()
            self.checkpoints.prune()
        has_ended = self.ending.divergence or self.ending.fault or self.ending.stopped
        ending = self.ending if has_ended else Outcome([], fault=fault)
        return ending._replace(history=self.history)

    def _last_epoch(self) -> int:
        """Return the last epoch; for a run that is out of patience, the current one at most."""
        num_epochs = self.run.train.num_epochs
        return min(num_epochs, self.state.epoch) if self._is_out_of_patience() else num_epochs

    def _on_step(self, state: TrainState, update: Update) -> bool:
        """Count an update; every few steps, agree with the other ranks on what comes next."""
        self.watchdog.progress("reading")
        self.loss_reducer.add(update, state.count - self._noted)
        self._noted = state.count
        train = self.run.train
        every = train.checkpoint.every_steps
        is_due = bool(every) and state.step % every == 0
        is_last = state.epoch_step == self.feed.num_steps(state.epoch)
        if not (is_due or is_last or state.step % train.check_steps == 0):
            return True
        return self._agree(is_due=is_due and not is_last, is_last=is_last)

    def _agree(self, *, is_due: bool, is_last: bool) -> bool:
        """Decide with all ranks: continue, save a checkpoint, or stop."""
        every_s = self.run.train.checkpoint.every_s
        age_s = time.monotonic() - self.checkpoints.saved_s
        is_late = bool(every_s) and age_s > every_s and not is_last
        reduced = self.loss_reducer.agree(
            stop=float(bool(self.place.stop_reason())),
            fault=float(bool(self.checkpoints.writer.fault)),
            due=float(is_due or (self.rank == 0 and is_late)),
            ask=float(self.rank == 0 and self.preemption_interval.due()),
        )
        if reduced.non_finite is not None:
            found = reduced.non_finite
            step = self.state.step - found.steps_ago
            divergence = Divergence(self.state.epoch + 1, step, found.term, found.value)
            self.ending = Outcome([], divergence)
            return False
        if reduced.flags["fault"]:
            self.ending = Outcome([], fault=self.checkpoints.wait())
            return False
        reason = self._reason_to_leave(reduced)
        if reason:
            self._save()
            fault = self.checkpoints.wait()
            self.ending = Outcome([], fault=fault, stopped="" if fault else reason)
            return False
        if reduced.flags["due"]:
            self._save()
        self._show(reduced)
        return True

    def _reason_to_leave(self, reduced: Reduced) -> str:
        """Return why all ranks should stop: the driver requests it, or nodes are preempted."""
        if reduced.flags["stop"]:
            return str(broadcast_object(self.place.stop_reason()))
        return self.place.preemption() if reduced.flags["ask"] else ""

    def _show(self, reduced: Reduced) -> None:
        """Show progress; only rank 0 does."""
        state = self.state
        self.monitor.reach(state, reduced.means, self.run.optimizer.rate(state.updates))
        if self.rank == 0 and self.log_interval.due():
            emit("step", epoch=state.epoch + 1, step=state.step, **self.monitor.summary())

    def _on_epoch(self, state: TrainState) -> bool:
        """Validate and save a checkpoint, where that is due; return False to end training."""
        train = self.run.train
        self._noted = 0
        is_end = state.epoch >= train.num_epochs
        if is_end or state.epoch % train.validate_every_epochs == 0:
            return self._record_epoch(state, is_end=is_end)
        if self.scheme.exports_every_epoch:
            self._exported(is_end=False)  # the next epoch reads it
        if self._is_checkpoint_due():
            self._save(is_optional=True)
        return True

    def _is_checkpoint_due(self) -> bool:
        every = self.run.train.checkpoint.every_epochs
        return bool(every) and self.state.epoch % every == 0

    def _record_epoch(self, state: TrainState, *, is_end: bool) -> bool:
        """Validate, keep the record, and save; return False to end training."""
        losses, recorded = self.loss_reducer.mean_losses(), self.loss_reducer.mean_recorded()
        if self._has_diverged(losses, recorded):
            return False
        self.loss_reducer.clear()
        weights = self._exported(is_end=is_end)
        self.watchdog.progress("validating")
        started_s = time.perf_counter()
        chunk_items = self.engine.step_module.chunks.chunk_items
        measured = self.validator.measured(
            weights, chunk_items, self.watchdog.touch, is_first=not self.history
        )
        metrics = measured.get("model", {})
        record = EpochRecord(
            epoch=state.epoch,
            step=state.step,
            losses=losses,
            recorded=recorded,
            valid=metrics,
            popularity=measured.get(POPULARITY, {}),
            selection=selection_score(metrics, self.run.selection)
            if metrics
            else float(state.epoch),
            speed=self.monitor.speed(state),
            **self.monitor.shares(state),
            valid_s=time.perf_counter() - started_s,
            skipped_updates=state.step - state.updates,
        )
        self.history.append(record)
        if self.rank == 0:
            watch_calibration(metrics, state.epoch)
        state.start_clocks()  # time to write the checkpoint counts for the next epoch
        is_end = is_end or self._is_out_of_patience()
        best = weights if record is best_record(self.history) else None
        if is_end or best is not None or self._is_checkpoint_due():
            self._save(best, is_optional=not is_end)
        self.monitor.show_epoch(record)
        if self.rank == 0:
            self.place.post_epoch(record)
            shares = {"checkpoint_share": record.checkpoint_share or 0.0}
            kind, num_levels = self.run.model.spec.output, len(self.vocabulary.levels)
            shown = {n: v for n, v in metrics.items() if is_meant(n, kind, num_levels)}
            found = {**losses, **record.curves, **shown, **speed_of(record), **shares}
            emit("epoch", epoch=state.epoch, **rounded(found))
        return not is_end

    def _exported(self, *, is_end: bool) -> dict[str, Tensor] | None:
        """Return the state of the model that scores; None where it is not needed now.

        Without validation the last epoch is the best, and weights are needed only then.
        """
        needs = is_end or self.scheme.exports_every_epoch or self.inputs.data.num_valid > 0
        if not needs:
            return None
        weights = self.engine.weights()
        self.watchdog.progress("exporting")
        context = ExportContext(
            self.run,
            self.vocabulary,
            self.feed,
            self.device,
            gather_objects,
            self.engine.step_module.model,
            self.state.epoch - 1,
        )
        return self.scheme.export(weights, context)

    def _has_diverged(self, losses: dict[str, float], recorded: dict[str, float]) -> bool:
        """Stop when the objective collapses, or the loss explodes while still finite."""
        for name, limit in self.engine.step_module.objective.limits.items():
            if recorded.get(name, 0.0) > limit:
                why = f"above {limit:.3g}: the objective has collapsed"
                place = self.state.epoch, self.state.step
                found = Divergence(*place, name, recorded[name], why, _COLLAPSE_ADVICE)
                self.ending = Outcome([], found)
                return True
        if not self.run.model.spec.divergence_advice or not self.history:
            return False
        count_L = self.vocabulary.train_count_IL.sum(0)
        spread = float(np.cov(self.vocabulary.levels, fweights=count_L))
        term, value = next(iter(losses.items()))
        if value <= _EXPLOSION_FACTOR * spread:
            return False
        why = f"over {_EXPLOSION_FACTOR:g} times the loss of the mean rating"
        divergence = Divergence(self.state.epoch, self.state.step, term, value, why)
        self.ending = Outcome([], divergence)
        return True

    def _is_out_of_patience(self) -> bool:
        """Return whether the best epoch lies too far back."""
        patience = self.run.train.patience
        if not patience or not self.history:
            return False
        return self.history[-1].epoch - best_record(self.history).epoch >= patience

    def _save(self, best: dict[str, Tensor] | None = None, *, is_optional: bool = False) -> None:
        """Start to write a checkpoint; see `RunCheckpoints.save`."""
        self.watchdog.progress("writing a checkpoint")
        self.checkpoints.save(best, is_optional=is_optional)


class _Watched:
    """A feed that reports each batch to the watchdog."""

    def __init__(self, feed: Feed, watchdog: Watchdog) -> None:
        self._feed, self._watchdog = feed, watchdog

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[RankBatch]:
        for batch in self._feed.batches(epoch, first_step):
            self._watchdog.progress("computing")
            yield batch
