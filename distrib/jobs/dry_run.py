"""What each job reads, writes and needs, for ``--dry-run``."""

from collections.abc import Callable, Mapping
from typing import Any

from distrib.checkpoint.bundle import BUNDLE
from distrib.cli import Plan
from distrib.config import JsonObject
from distrib.data.config import DataConfig
from distrib.errors import DistribError
from distrib.objectives.label_config import stored_path
from distrib.run_file import RunFile
from distrib.studies.job import Given, planned
from distrib.submit.request import sizes_of
from distrib.training.preflight.estimate import estimate


def _log(data: DataConfig) -> list[str]:
    path = getattr(data.source, "path", None)
    if path is None:
        return [f"a log that is drawn ({data.source.format})"]
    return [path] if isinstance(path, str) else list(path)


def _prepare(file: RunFile) -> Plan:
    return Plan(_log(file.data), [file.data.prepared], {"tasks": "one for each core"})


def _train(file: RunFile) -> Plan:
    train, labels = file.train, stored_path(file.objective)
    more = [path for path in (train.warm_start, labels, *train.pretrained) if path]
    workers = (
        list(train.worker_range) if train.min_workers < train.max_workers else train.max_workers
    )
    needs: JsonObject = {"workers": workers, "cores for each": train.cpus_per_worker}
    needs["GPUs for each"] = int(train.use_gpu)
    return Plan([file.data.prepared, *more], [file.run], needs | _estimated(file))


def _estimated(file: RunFile) -> JsonObject:
    try:
        sizes = sizes_of(file)
        return {} if sizes is None else {**estimate(file.training(), sizes).lines()}
    except DistribError:  # no steps, or no sizes yet
        return {}


def _evaluate(file: RunFile) -> Plan:
    return Plan([f"{file.run}/{BUNDLE}", file.data.prepared], [file.run], {})


def _score(file: RunFile) -> Plan:
    score = file.score
    users = [score.histories] if score.histories else [file.data.prepared]
    users = _log(score.events) if score.events is not None else users
    before = [score.incremental_from] if score.incremental_from else []
    needs = {"actors": "one for each core", "GPUs for each": score.gpus_per_actor}
    output = score.output or f"{file.run}/recommendations"
    return Plan([f"{file.run}/{BUNDLE}", *users, *before], [output], needs)


def _pipeline(file: RunFile) -> Plan:
    return _joined(_prepare(file), _train(file), _evaluate(file), _score(file))


def _nightly(file: RunFile) -> Plan:
    found = _joined(_prepare(file), _train(file), _score(file))
    return found._replace(writes=[file.data.prepared, file.run])


def _search(file: RunFile) -> Plan:
    search = file.search
    needs = {"trials": search.num_trials, "at a time": search.max_concurrent}
    return _joined(_train(file), Plan([], [f"{file.run}/trials"], needs))


def _soften(file: RunFile) -> Plan:
    output = file.soften.output or f"{file.run}/soft_labels"
    return Plan([f"{file.run}/{BUNDLE}", file.data.prepared], [output], {})


def _export(file: RunFile) -> Plan:
    output = file.export.output or f"{file.run}/vectors"
    reads = [f"{file.run}/{BUNDLE}", *([file.data.prepared] if file.export.users else [])]
    return Plan(reads, [output], {})


def _convert(file: RunFile) -> Plan:
    is_log = file.convert.of == "source"
    output = [file.convert.output] if file.convert.output else []
    return Plan(_log(file.data) if is_log else [file.data.prepared], output, {})


def _forget(file: RunFile) -> Plan:
    people = [file.forget.users] if file.forget.users else []
    return Plan(people, [file.data.prepared, file.run], {})


def _serve(file: RunFile) -> Plan:
    serve = file.serve
    needs = {"replicas": serve.replicas, "HTTP workers": serve.http_workers, "port": serve.port}
    return Plan([f"{file.run}/{BUNDLE}", file.data.prepared], [], needs)


def _doctor(file: RunFile) -> Plan:
    return Plan([file.data.prepared], [], {"a task": "on every node"} | _estimated(file))


def _study(given: Given) -> Plan:
    """Return the logs, the folders, and what is left to run."""
    logs = dict.fromkeys(path for cell in given.cells for path in _log(cell.first_file.data))
    found = planned(given)
    needs: JsonObject = {"runs": found.runs, "trials": found.trials, "known to be done": found.done}
    hours = "unknown before the first run" if found.hours is None else f"about {found.hours:.2g}"
    needs["hours of one process"] = hours
    return Plan([*logs], [given.file.output, given.file.runs], needs)


def _joined(*plans: Plan) -> Plan:
    """Return several plans as one; what one writes, the next does not read from outside."""
    reads = dict.fromkeys(path for plan in plans for path in plan.reads)
    writes = list(dict.fromkeys(path for plan in plans for path in plan.writes))
    outside = [path for path in reads if not path.startswith(tuple(writes))]
    return Plan(outside, writes, {k: v for plan in plans for k, v in plan.needs.items()})


PLANS: Mapping[str, Callable[[Any], Plan]] = {
    "prepare": _prepare,
    "train": _train,
    "evaluate": _evaluate,
    "score": _score,
    "serve": _serve,
    "pipeline": _pipeline,
    "nightly": _nightly,
    "search": _search,
    "soften": _soften,
    "study": _study,
    "export": _export,
    "convert": _convert,
    "forget": _forget,
    "doctor": _doctor,
}
