"""One start of a study: what runs where, in which order, and what is done already."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import ray

from distrib.cluster.resources import present
from distrib.config import JsonObject
from distrib.data.config import DataConfig
from distrib.data.dataset import MANIFEST, Dataset
from distrib.data.prepare.job import prepare, read_plan, recipe
from distrib.distill.job import soften
from distrib.errors import ConfigError, DistribError
from distrib.events import emit
from distrib.run_file import RunFile
from distrib.storage import Folder, last_part
from distrib.studies import plan
from distrib.studies.config import StudyFile
from distrib.studies.plan import Cell
from distrib.studies.results import (
    FAULT,
    Fault,
    Row,
    RunRecord,
    Trial,
    data_folder,
    label_of,
    run_folder,
)
from distrib.studies.run import earlier_fault, finished, is_small, measured
from distrib.terminal import Bar
from distrib.training.workers.alone import ENVIRONMENT
from distrib.tuning.space import settings_of

_RETRIES = 3
"""Times that a run continues in another process when its own is lost."""

_RUNS_A_PROCESS = 50
_POLL_S = 0.5


class Task(NamedTuple):
    """A run to do."""

    file: RunFile
    tuned: JsonObject

    @property
    def folder(self) -> Folder:
        """Of the run."""
        return Folder(self.file.run)


class Session:
    """One start of a study."""

    def __init__(self, study: StudyFile) -> None:
        self.study, self.root = study, Folder(study.runs)
        self._bar: Bar | None = None
        self._total = self._done = 0
        self._data: dict[str, Dataset] = {}
        self._faults: dict[str, str] = {}
        self._files: dict[tuple[str, int], RunFile] = {}
        self.trials: list[Trial] = []

    def begin(self, num_runs: int, bar: Bar | None) -> None:
        """Begin to count runs, and show them where there is a bar."""
        self._total, self._bar = num_runs, bar

    def prepare(self, cell: Cell) -> None:
        """Prepare the data of a cell, unless that is done."""
        config = cell.first_file.data
        key = config.model_dump_json()
        if key in self._data or key in self._faults:
            return
        try:
            config = config.model_copy(update={"prepared": str(self._place_of(config))})
            prepare(config)
            self._data[key] = Dataset.open(config.prepared)
        except DistribError as error:
            self._faults[key] = str(error)

    def finds(self, cell: Cell) -> bool:
        """Return whether the data of a cell are prepared."""
        config = cell.first_file.data
        key = config.model_dump_json()
        if key not in self._data:
            place = self._place_of(config)
            if not place.exists(MANIFEST):
                return False
            self._data[key] = Dataset.open(place)
        return True

    def _place_of(self, config: DataConfig) -> Folder:
        made_from = recipe(config, read_plan(config))
        return data_folder(self.study.runs, plan.data_address(made_from))

    def task(self, cell: Cell, seed: int, tuned: JsonObject) -> Task:
        """Return a run at its address; its data must be prepared, and its parents done."""
        file = cell.file(seed, tuned)
        dataset = self._data[file.data.model_dump_json()]
        changes: JsonObject = {**tuned, "data.prepared": str(dataset.folder)}
        if cell.labels_of is not None:
            changes["objective.label.path"] = self._labels(cell.labels_of, seed, file)
        if cell.pretrained_by:
            parents = [self._parent(parent, seed) for parent in cell.pretrained_by]
            changes["train.pretrained"] = [parent.run for parent in parents]
        file = cell.file(seed, changes)
        address = plan.run_address(file.training(), dataset.hash, self.root)
        place = str(run_folder(self.study.runs, address))
        return Task(file.model_copy(update={"run": place}), tuned)

    def _parent(self, options: Mapping[str, str], seed: int) -> RunFile:
        found = self._files.get((plan.key_of(options), seed))
        if found is None:
            raise ConfigError(f"the run of {label_of(options)}, seed {seed}, failed")
        return found

    def _labels(self, options: Mapping[str, str], seed: int, file: RunFile) -> str:
        """Make the soft labels of a run, unless that is done; return their folder."""
        base = self._parent(options, seed)
        address = plan.labels_address(last_part(base.run), file)
        place = str(self.root / "labels" / address)
        soften(base.run, base.data.prepared, file.soften.model_copy(update={"output": place}))
        return place

    def run_level(self, cells: Sequence[Cell]) -> dict[tuple[str, int], Row]:
        """Run cells whose parents are done: trials first, then what they chose with all seeds."""
        tuned, faults = self._tuned([cell for cell in cells if cell.search is not None])
        tasks: dict[tuple[str, int], Task] = {}
        rows: dict[tuple[str, int], Row] = {}
        for cell, seed in itertools.product(cells, self.study.seeds):
            try:
                self._require_data(cell)
                if cell.key in faults:
                    raise ConfigError(faults[cell.key])
                tasks[cell.key, seed] = self.task(cell, seed, tuned.get(cell.key, {}))
            except DistribError as error:
                rows[cell.key, seed] = _failed(cell, seed, str(error))
        self._done += len(rows)
        found = self._executed([*tasks.values()], is_trial=False)
        by_key = {cell.key: cell for cell in cells}
        for (key, seed), task in tasks.items():
            outcome = found[task.file.run]
            rows[key, seed] = _row(by_key[key], seed, task, outcome)
            if isinstance(outcome, RunRecord):
                self._files[key, seed] = task.file
        return rows

    def _require_data(self, cell: Cell) -> None:
        fault = self._faults.get(cell.first_file.data.model_dump_json())
        if fault:
            raise ConfigError(fault)

    def _tuned(self, cells: Sequence[Cell]) -> tuple[dict[str, JsonObject], dict[str, str]]:
        """Train all trials; return the settings of the best of each cell, and why there is none."""
        seed, chosen, faults = self.study.seeds[0], dict[str, JsonObject](), dict[str, str]()
        tasks: dict[str, list[Task]] = {}
        for cell in cells:
            assert cell.search is not None  # the caller selects
            try:
                self._require_data(cell)
                tasks[cell.key] = [
                    self.task(cell, seed, settings_of(cell.search, number))
                    for number in range(cell.search.num_trials)
                ]
            except DistribError as error:
                faults[cell.key] = str(error)
        everything = [task for of_cell in tasks.values() for task in of_cell]
        self._total += len(everything)
        found = self._executed(everything, is_trial=True)
        by_key = {cell.key: cell for cell in cells}
        for key, of_cell in tasks.items():
            self.trials += [_trial(by_key[key], task, found[task.file.run]) for task in of_cell]
            outcomes = [(found[task.file.run], task.tuned) for task in of_cell]
            scores = [(r.selection, tuned) for r, tuned in outcomes if isinstance(r, RunRecord)]
            if scores:
                chosen[key] = max(scores, key=lambda pair: pair[0])[1]
            else:
                faults[key] = f"all trials failed, the first: {outcomes[0][0]}"
        return chosen, faults

    def _executed(self, tasks: Sequence[Task], *, is_trial: bool) -> dict[str, RunRecord | str]:
        """Do each different run once; return records or faults by folder."""
        found: dict[str, RunRecord | str] = {}
        waiting: dict[str, Task] = {}
        for task in tasks:
            record = finished(task.file, is_trial=is_trial)
            fault = "" if record is not None else earlier_fault(task.folder)
            if record is not None or (fault and not self.study.retry_failed):
                found[task.file.run] = record if record is not None else fault
            else:
                waiting[task.file.run] = task
        self._progress(len(tasks) - len(waiting))
        for task, outcome in self._in_parallel([*waiting.values()], is_trial=is_trial):
            found[task.file.run] = outcome
            self._progress(1)
            about = {"fault": outcome} if isinstance(outcome, str) else {}
            emit("run", done=self._done, of=self._total, run=last_part(task.file.run), **about)
        return found

    def _in_parallel(
        self, tasks: Sequence[Task], *, is_trial: bool
    ) -> Iterator[tuple[Task, RunRecord | str]]:
        """Run tasks, as many at a time as there are cores for."""
        budget = self.study.max_cpus or int(present().get("CPU", 1))
        waiting, running, used = list(tasks), dict[ray.ObjectRef, Task](), 0
        while waiting or running:
            while waiting and (not running or used + _cores(waiting[0].file) <= budget):
                task = waiting.pop(0)
                used += _cores(task.file)
                running[_started(task, is_trial=is_trial)] = task
            # With a time limit, as signals only reach Python between calls.
            done, _ = ray.wait([*running], num_returns=1, timeout=_POLL_S)
            for ref in done:
                task = running.pop(ref)
                used -= _cores(task.file)
                yield task, _outcome(ref, task)

    def _progress(self, number: int) -> None:
        self._done += number
        if self._bar is not None:
            self._bar(self._done, self._total, "")


def _cores(file: RunFile) -> int:
    return file.train.max_workers * file.train.cpus_per_worker


def _started(task: Task, *, is_trial: bool) -> ray.ObjectRef:
    """Start a run: a small one trains in the task, others start workers of their own."""
    is_here = is_small(task.file)
    options: JsonObject = {"num_cpus": task.file.train.cpus_per_worker if is_here else 0}
    if is_here:
        options["runtime_env"] = {"env_vars": ENVIRONMENT}
    run = ray.remote(max_retries=_RETRIES, max_calls=_RUNS_A_PROCESS)(measured)
    return run.options(**options).remote(task.file, is_trial=is_trial)


def _outcome(ref: ray.ObjectRef, task: Task) -> RunRecord | str:
    """Return what a task returned, or how its process was lost."""
    try:
        found: RunRecord | str = ray.get(ref)
    except ray.exceptions.RayError as error:
        found = f"its process was lost: {str(error).strip().splitlines()[0]}"
        task.folder.write_json(FAULT, Fault(reason=found).to_json())
    return found


def _row(cell: Cell, seed: int, task: Task, outcome: RunRecord | str) -> Row:
    record = outcome if isinstance(outcome, RunRecord) else None
    return Row(
        options=dict(cell.options),
        seed=seed,
        address=last_part(task.file.run),
        measure=plan.measure_address(task.file),
        tuned=task.tuned,
        run=record,
        fault=outcome if isinstance(outcome, str) else "",
    )


def _trial(cell: Cell, task: Task, outcome: RunRecord | str) -> Trial:
    return Trial(
        options=dict(cell.options),
        settings=task.tuned,
        address=last_part(task.file.run),
        selection=outcome.selection if isinstance(outcome, RunRecord) else None,
        fault=outcome if isinstance(outcome, str) else "",
    )


def _failed(cell: Cell, seed: int, fault: str) -> Row:
    return Row(
        options=dict(cell.options),
        seed=seed,
        address="",
        measure="",
        tuned={},
        run=None,
        fault=fault,
    )
