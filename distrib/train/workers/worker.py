"""What Ray Train runs on every worker: feed, engine and loop; validate, checkpoint, agree."""

import functools
import json
import logging
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch.distributed
from torch import Tensor

from distrib.checkpoint.bundle import restored, write_bundle
from distrib.checkpoint.state import SavedState
from distrib.checkpoint.store import CheckpointStore, checkpoint_name
from distrib.checkpoint.writer import CheckpointWriter, Rank
from distrib.data.feeds.base import Dealing, Feed
from distrib.data.feeds.collate import example
from distrib.data.feeds.loader import Source
from distrib.data.schema import Role
from distrib.errors import CheckpointError, DataError, MemoryLimitError
from distrib.evaluate.protocol import EXPECTED, KNOWN, measure, selection_score
from distrib.events import Interval, emit, rounded
from distrib.metrics import Sums
from distrib.rng import Noise
from distrib.score.scorer import Scorer
from distrib.storage import Folder, patiently
from distrib.tiles import Read
from distrib.train.build import build_engine
from distrib.train.config import TrainConfig
from distrib.train.engines.base import Update
from distrib.train.loop import TrainState, run_epochs
from distrib.train.oom import advice, is_of_memory
from distrib.train.run_folder import BEST, best_entry, best_name, require_ours
from distrib.train.schemes.item_side import RowCodes
from distrib.train.workers.collectives import broadcast_object, gather_objects
from distrib.train.workers.control import Listener
from distrib.train.workers.loss_reducer import Agreed, Ledger
from distrib.train.workers.monitor import Meters, memory_gb
from distrib.train.workers.watchdog import Watchdog, start_watchdog
from distrib.vocabulary import Vocabulary

POSITION = "position.json"
"""Where training stood, inside a checkpoint."""


_DRIFT = 0.2  # of the expected interactions from the known ones, from which it is told
_WILD = 4.0  # losses by that of the mean rating, from which a model has gone astray
_PREEMPTION_S = 5.0  # between questions to Ray


class Inputs(NamedTuple):
    """What the driver hands to every worker."""

    config: str
    """`TrainConfig` as JSON."""

    source: Source
    vocabulary: ray.ObjectRef
    facts: dict[str, Any]
    """Kept in the bundle: hash of the data and the like."""

    shows_bar: bool
    token: str
    control: ray.actor.ActorHandle


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Train from the latest checkpoint, or from the start, to the last epoch.

    Args:
        settings: ``{"inputs": Inputs}``.

    Returns:
        ``{"history": one entry per epoch}``, with ``"diverged"``, ``"fault"`` or ``"stopped"``
        where training ended before its time.
    """
    logging.getLogger().setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", r"`torch\.distributed\.", FutureWarning)  # DeepSpeed's
    inputs: Inputs = settings["inputs"]
    worker = None
    try:
        worker = Worker(inputs)
        return worker.train()
    except (MemoryError, RuntimeError) as error:
        if not is_of_memory(error):
            raise
        rank = ray.train.get_context().get_world_rank()
        step = "before the first step" if worker is None else f"step {worker.state.step + 1}"
        text = str(error).splitlines()[0][:200]
        what = f"rank {rank}, {step}: out of memory at {memory_gb():.1f} GiB ({text})"
        config = TrainConfig.model_validate_json(inputs.config)
        raise MemoryLimitError(advice(config, what)) from error
    finally:
        if worker is not None:
            worker.close()


class Worker:
    """One rank of a run."""

    def __init__(self, inputs: Inputs) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.config = config = TrainConfig.model_validate_json(inputs.config)
        self.inputs = inputs
        self.folder = Folder(config.run)
        self.vocabulary: Vocabulary = ray.get(inputs.vocabulary)
        loop = config.loop
        self.watchdog = start_watchdog(self.rank, self.world_size, loop.hang_s)
        dealing = Dealing(loop.batch_users, config.seed, self.rank, self.world_size)
        self.feed: Feed = inputs.source.open(
            dealing,
            window_users=loop.window_users,
            blocks=loop.blocks,
            device=self.device if loop.rows_on_gpu and loop.use_gpu else None,
        )
        self.engine = build_engine(config, self.vocabulary, self.device)
        self.state = TrainState(config.seed)
        self.ledger = Ledger(self.device, max_skipped=loop.max_skipped)
        self.history: list[dict[str, Any]] = []
        self.ending: dict[str, Any] = {}
        """What ended training before its time; equal on all ranks."""

        self.attempt = str(broadcast_object(uuid.uuid4().hex[:8]))
        self.store = CheckpointStore(self.folder)
        self.writer = CheckpointWriter(
            self.store,
            Rank(self.rank, self.world_size),
            retry_s=loop.checkpoint.retry_s,
            in_background=loop.checkpoint.in_background,
        )
        self.writer.on_wait = self.watchdog.touch
        self.listener = Listener(inputs.control) if self.rank == 0 else None
        self.interval = Interval(loop.log_every_s)
        self.ask = Interval(_PREEMPTION_S)
        self.meters = Meters(
            config,
            self.engine,
            self.feed.num_steps(0),
            shown=inputs.shows_bar,
            is_first=self.rank == 0,
        )
        self._saved_s = time.monotonic()
        self._noted = 0
        """Users of the epoch that the ledger has heard of."""

    def close(self) -> None:
        """End the threads."""
        self.watchdog.close()
        self.meters.close()
        if self.listener is not None:
            self.listener.close()

    def train(self) -> dict[str, Any]:
        """Resume, train, and wait until all is written."""
        self._resume()
        run_epochs(
            self.state,
            self.engine,
            _Watched(self.feed, self.watchdog),
            num_epochs=self._last_epoch(),
            on_step=self._on_step,
            on_epoch=self._on_epoch,
        )
        fault = self._fault_of_writing()
        self.ending = self.ending or fault
        if self.rank == 0 and not fault:
            self._require_ours()
            self.store.prune(self.config.loop.checkpoint.keep, self.attempt)
        return {"history": self.history, **self.ending}

    def _fault_of_writing(self) -> dict[str, Any]:
        """Wait until all is written, on all ranks; return what failed on any of them."""
        self.writer.wait()
        faults = [fault for fault in gather_objects(self.writer.fault) if fault]
        return {"fault": faults[0]} if faults else {}

    def _resume(self) -> None:
        """Load the newest checkpoint that every rank finds whole, if there is one.

        Raises:
            CheckpointError: There are some, but none is whole.
        """
        faults: list[str] = []
        retry_s = self.config.loop.checkpoint.retry_s
        found = patiently(self.store.complete, for_s=retry_s) if self.rank == 0 else None
        names: list[str] = broadcast_object(found)
        for name in names:
            fault = self._load(name)
            if not fault:
                if self.rank == 0:
                    emit("resumed", checkpoint=name, **self.state.position(), damaged=faults)
                return
            faults.append(fault)
        if faults:
            raise CheckpointError("; ".join(faults))

    def _load(self, name: str) -> str:
        """Load a checkpoint on all ranks, or on none; return what is wrong with it, if anything.

        One rank of each node fetches it for all of that node.
        """
        context = ray.train.get_context()
        node = context.get_node_rank()  # several nodes may share a machine's folder
        folder = Path(tempfile.gettempdir(), f"distrib-{self.attempt}-{node}-{name}")
        fault = ""
        if context.get_local_rank() == 0:
            try:
                self.store.fetch(name, folder, retry_s=self.config.loop.checkpoint.retry_s)
            except (DataError, CheckpointError, OSError) as error:
                fault = str(error)
        fault = next(filter(None, gather_objects(fault)), "")
        if not fault:
            saved = Folder(str(folder)).read_json(POSITION)
            self.engine.restore(SavedState(folder), saved["engine"])
            self.state.go_to(saved["position"])
            self._noted = self.state.num_users
            self.ledger.take(saved["ledger"], self.rank, self.world_size)
            self.history = saved["history"]
        torch.distributed.barrier()
        if context.get_local_rank() == 0:
            Folder(str(folder)).remove()
        return fault

    def _last_epoch(self) -> int:
        """Return where to end; a run that has lost its patience is at its end."""
        num_epochs = self.config.loop.num_epochs
        return min(num_epochs, self.state.epoch) if self._is_out_of_patience() else num_epochs

    def _on_step(self, state: TrainState, update: Update) -> bool:
        """Note an update; now and then agree with the other ranks on what comes next."""
        self.watchdog.progress("reading")
        self.ledger.add(update, state.num_users - self._noted)
        self._noted = state.num_users
        loop = self.config.loop
        every = loop.checkpoint.every_steps
        is_due = bool(every) and state.step % every == 0
        is_last = state.epoch_step == self.feed.num_steps(state.epoch)
        if not (is_due or is_last or state.step % loop.check_steps == 0):
            return True
        return self._agree(is_due=is_due and not is_last, is_last=is_last)

    def _agree(self, *, is_due: bool, is_last: bool) -> bool:
        """Decide with all ranks: go on, keep the place, or leave."""
        every_s, now_s = self.config.loop.checkpoint.every_s, time.monotonic()
        is_late = bool(every_s) and now_s - self._saved_s > every_s and not is_last
        agreed = self.ledger.agree(
            stop=float(self.listener is not None and bool(self.listener.reason)),
            fault=float(bool(self.writer.fault)),
            due=float(is_due or (self.rank == 0 and is_late)),
            ask=float(self.rank == 0 and self.ask.due()),
        )
        if agreed.bad is not None:
            step = self.state.step - agreed.bad.steps_ago
            where = {"epoch": self.state.epoch + 1, "step": step}
            self.ending = {"diverged": {**where, **agreed.bad._asdict()}}
            return False
        if agreed.flags["fault"]:
            self.ending = self._fault_of_writing()
            return False
        reason = self._reason_to_leave(agreed)
        if reason:
            self._save()
            self.ending = self._fault_of_writing() or {"stopped": reason}
            return False
        if agreed.flags["due"]:
            self._save()
        self._tell(agreed)
        return True

    def _reason_to_leave(self, agreed: Agreed) -> str:
        """Return why all ranks should leave: the driver's word, or a node that is to go."""
        if agreed.flags["stop"]:
            return str(broadcast_object(self.listener.reason if self.listener else None))
        if not agreed.flags["ask"]:
            return ""
        notice = ray.train.get_preemption_info()  # waits for all ranks
        return "" if notice is None else f"preemption of ranks {notice.preempted_ranks}"

    def _tell(self, agreed: Agreed) -> None:
        """Show progress; only rank 0 does."""
        state = self.state
        self.meters.reach(state, agreed.means, self.config.optimizer.rate(state.updates))
        if self.rank == 0 and self.interval.due():
            emit("step", epoch=state.epoch + 1, step=state.step, **self.meters.summary())

    def _on_epoch(self, state: TrainState) -> bool:
        """Validate and keep the place; False when there is no hope of a better epoch."""
        loop = self.config.loop
        losses = self.ledger.mean_losses()
        if self._is_wild(losses):
            return False
        self.ledger.clear()
        self._noted = 0
        is_end = state.epoch >= loop.num_epochs
        # Without validation the last epoch is the best, and weights are wanted then only.
        reads_both = self.config.model.traits.rows == "both"
        is_wanted = is_end or reads_both or self.inputs.source.num_valid > 0
        weights = self._scoring(self.engine.weights()) if is_wanted else None
        self.watchdog.progress("validating")
        started_s = time.perf_counter()
        metrics = self._validate(weights)
        entry: dict[str, Any] = {
            "epoch": state.epoch,
            "step": state.step,
            "losses": losses,
            "valid": metrics,
            "selection": selection_score(metrics, self.config.selection)
            if metrics
            else float(state.epoch),
            **self.meters.speed(state),
            "valid_s": time.perf_counter() - started_s,
            "skipped_updates": state.step - state.updates,
        }
        self.history.append(entry)
        self._watch_calibration(metrics)
        state.start_clocks()  # what writing takes away from training counts to the next epoch
        is_end = is_end or self._is_out_of_patience()
        best = weights if entry is best_entry(self.history) else None
        every = loop.checkpoint.every_epochs
        if is_end or best is not None or (every and state.epoch % every == 0):
            self._save(best)
        self.meters.tell_epoch(entry)
        if self.rank == 0:
            shown = (self.config.speed_name, "data_share", "checkpoint_share")
            self.inputs.control.tell.remote(entry)
            facts = rounded({**losses, **metrics, **{key: entry[key] for key in shown}})
            emit("epoch", epoch=state.epoch, **facts)
        return not is_end

    def _is_wild(self, losses: dict[str, float]) -> bool:
        """End training where a model that invites it has gone astray among finite numbers."""
        if not self.config.model.traits.remedy or self.state.epoch == 1:
            return False
        count_L = self.vocabulary.train_count_IL.sum(0)
        spread = float(np.cov(self.vocabulary.levels, fweights=count_L))
        term, value = next(iter(losses.items()))
        if value <= _WILD * spread:
            return False
        why = f"over {_WILD:g} times that of the mean rating"
        where = {"epoch": self.state.epoch, "step": self.state.step}
        self.ending = {"diverged": {**where, "term": term, "value": value, "why": why}}
        return True

    def _watch_calibration(self, metrics: dict[str, float]) -> None:
        """Tell when probabilities drift from the counts that they should add up to."""
        expected, known = metrics.get(EXPECTED), metrics.get(KNOWN)
        if self.rank == 0 and expected is not None and known:
            share = expected / known
            if abs(share - 1.0) > _DRIFT:
                emit("calibration_drift", epoch=self.state.epoch, expected_of_known=share)

    def _is_out_of_patience(self) -> bool:
        """Tell whether the best epoch lies too far back."""
        patience = self.config.loop.patience
        if not patience or not self.history:
            return False
        return bool(self.history[-1]["epoch"] - best_entry(self.history)["epoch"] >= patience)

    def _scoring(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the state of the model that scores, from that of the one that is trained."""
        rows = self.config.model.traits.rows
        if rows == "users":
            return weights
        self.watchdog.progress("encoding items")
        codes = RowCodes(self.config, self.vocabulary, self.feed, self.device, gather_objects)
        if rows == "items":
            return codes.scoring(weights)
        noise = Noise.of(self.config.seed, self.state.epoch - 1)
        return codes.cross_fed(weights, self.engine.step_module.model, noise)

    def _validate(self, weights: dict[str, Tensor] | None) -> dict[str, float]:
        """Measure on the validation users, each on one rank; empty where there are none."""
        if weights is None or self.inputs.source.num_valid == 0:
            return {}
        model = restored(self.config.model, self.vocabulary, weights)
        scorer = Scorer(
            model, self.vocabulary, device=self.device, block_items=self.config.engine.block_items
        )
        sums = Sums({})
        size = self.config.evaluate.batch_users
        for rows, mine in self.feed.valid_parts():
            for start in range(0, len(mine), size):
                self.watchdog.touch()
                asked = example(rows, mine[start : start + size], Role.VALID_TARGET)
                sums = sums.merged(measure(scorer, asked, self.config.evaluate))
        merged = functools.reduce(Sums.merged, gather_objects(sums), Sums({}))
        return {name: summary.mean for name, summary in merged.summaries().items()}

    def _save(self, best: dict[str, Tensor] | None = None) -> None:
        """Begin to write a checkpoint; ``best``: weights of an epoch better than all before."""
        started_s = time.perf_counter()
        self.watchdog.progress("writing a checkpoint")
        ledgers = gather_objects(self.ledger.to_json())
        position = {
            "position": self.state.position(),
            "ledger": ledgers,
            "engine": self.engine.facts(),
            "history": self.history,
        }
        texts = {POSITION: json.dumps(position)} if self.rank == 0 else {}
        before = functools.partial(
            self._prepare_to_write, self.state.epoch, best, list(self.history)
        )
        self.writer.start(
            checkpoint_name(self.state.step, self.attempt),
            self.engine.pieces(),
            texts,
            before if self.rank == 0 else None,
        )
        self._saved_s = time.monotonic()
        self.state.checkpoint_s += time.perf_counter() - started_s

    def _prepare_to_write(
        self, epoch: int, best: dict[str, Tensor] | None, history: list[dict[str, Any]]
    ) -> None:
        """Make sure that the run is still ours, keep the best weights, drop what is old."""
        keep = self.config.loop.checkpoint.keep
        self._require_ours()
        if best is not None:
            facts = {**self.inputs.facts, "epoch": epoch, "valid": history[-1]["valid"]}
            place = self.folder / BEST / best_name(epoch)
            write_bundle(place, best, self.config.model, self.vocabulary, facts)
            for name in (self.folder / BEST).folders()[: -keep - 1]:
                (self.folder / BEST / name).remove()
        self.store.prune(keep, self.attempt)

    def _require_ours(self) -> None:
        """Raise when a later start of this run has taken the folder over."""
        require_ours(self.folder, self.inputs.token)


class _Watched:
    """A feed whose batches the watchdog sees arrive."""

    def __init__(self, feed: Feed, watchdog: Watchdog) -> None:
        self._feed, self._watchdog = feed, watchdog

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Read, int]]:
        for item in self._feed.batches(epoch, first_step):
            self._watchdog.progress("computing")
            yield item
