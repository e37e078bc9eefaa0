"""Forget people: remove them from everything that a run file names, and say what is left to do."""

import time
import uuid
from collections.abc import Sequence

from distrib.checkpoint.bundle import BUNDLE, BundleFacts
from distrib.checkpoint.manifest import MANIFEST, read_manifest
from distrib.config import Record, read_record
from distrib.data.dataset import Dataset
from distrib.data.export import RESULT as CONVERTED
from distrib.data.prepare.forget import forget as forget_prepared
from distrib.data.prepare.forget import user_ids
from distrib.data.prepare.job import read_plan
from distrib.errors import ConfigError, DataError, DistribError
from distrib.evaluation.job import BY_USER
from distrib.events import emit
from distrib.run_file import RunFile
from distrib.scoring.commit import SUCCESS, previous_runs
from distrib.scoring.forget import (
    ForgottenLists,
    forget_lists,
    forget_tables,
    require_forgettable,
)
from distrib.storage import Folder

RECEIPTS = "forgotten"
"""Folder of the receipts, in the run folder."""


_COPIES = {"checkpoints", "best"}
"""Folders of a run that hold states of its own training."""


class Place(Record):
    """What was removed from one folder."""

    folder: str
    holds: str
    users: int
    rows: int
    """Interactions of prepared data, rows of lists."""

    files: int
    """Files that were written again or removed."""

    quarantined: int = 0
    """Damaged rows whose text was removed."""


class Receipt(Record):
    """What a forget job did; it names no person."""

    time: str
    """UTC."""

    users_requested: int
    users_found: int
    """Of these, users of ``data.prepared``."""

    removed: tuple[Place, ...]
    """All folders that were searched."""

    retrain: tuple[str, ...]
    """Runs whose models were trained while the prepared data still held removed people."""

    remake: tuple[str, ...]
    """Folders whose content was derived from them: of soft labels, and of converted files."""


def preflight(file: RunFile) -> list[str]:
    """Check the list of people, the prepared data and the published lists.

    Args:
        file: The run file.

    Returns:
        The ids.

    Raises:
        ConfigError: ``forget.users`` is not set, or names no one.
        DataError: The file is missing, an id is of another kind than the users', nothing is
            prepared, or something must be finished first; see `require_forgettable`.
    """
    ids = _ids(file.forget.users)
    absent = [url for url in file.forget.lists if not Folder(url).exists(SUCCESS)]
    if absent:
        raise DataError(f"forget.lists: {absent[0]} holds no published lists; correct it")
    for prepared in _prepared(file):
        user_ids(Dataset.open(prepared), ids)
    for url in (*_lists(file), *(_labels(file, run) for run in _runs(file))):
        require_forgettable(Folder(url))
    return ids


def _ids(url: str | None) -> list[str]:
    """Read one id per line, as it stands; blank lines are none."""
    if url is None:
        raise ConfigError("forget.users is not set; set it to a text file with one id per line")
    if Folder(url).is_folder():
        raise ConfigError(f"forget.users = {url!r}: is a folder; name a text file")
    try:
        lines = Folder(url).read().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{url}: is not UTF-8; give a text file with one id per line") from error
    ids = list(dict.fromkeys(text for line in lines if (text := line.removesuffix("\r")).strip()))
    if not ids:
        raise ConfigError(f"{url}: names no one; give one user id per line")
    return ids


def forget(file: RunFile) -> Receipt:
    """Remove people from prepared data, quarantine, lists, vectors, soft labels and evaluations.

    Stop other jobs of the run first: what they write meanwhile is not searched. A removal that was
    stopped is finished by the same command, whose receipt counts what it removed itself. The raw
    log is not changed.

    Args:
        file: The run file.

    Returns:
        The receipt; also written to the run folder.
    """
    ids, places = preflight(file), list[Place]()
    for url in _prepared(file):
        stamps = _stamps(file) if url == file.data.prepared else {}
        gone = forget_prepared(Folder(url), ids, stamps)
        about = {"quarantined": gone.quarantined, "files": gone.files}
        places.append(
            Place(folder=url, holds="histories", users=gone.users, rows=gone.interactions, **about)
        )
    places += [_searched(url, "lists", forget_lists(Folder(url), ids)) for url in _lists(file)]
    runs = _runs(file)
    for run in runs:
        labels, measured = Folder(_labels(file, run)), Folder(run) / BY_USER
        if labels.exists():
            places.append(_searched(labels.url, "soft labels", forget_lists(labels, ids)))
        if measured.exists():
            places.append(_searched(measured.url, "evaluation", forget_tables(measured, ids)))
    receipt = Receipt(
        time=time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()),
        users_requested=len(ids),
        users_found=places[0].users,
        removed=tuple(places),
        retrain=tuple(_to_retrain(file, runs)),
        remake=tuple(_to_remake(file, runs)),
    )
    name = f"{RECEIPTS}/{receipt.time.replace(':', '')}-{uuid.uuid4().hex[:4]}.json"
    Folder(file.run).write_json(name, receipt.to_json())
    emit("forgotten", receipt=str(Folder(file.run) / name), users=places[0].users)
    if not any(place.users for place in places):
        emit("no_one_found", check="forget.users: are the ids written as in the log?")
    return receipt


def _stamps(file: RunFile) -> dict[str, str]:
    """Return the stamps of the log's files as they are now; none if it cannot be read."""
    try:
        return {one.label: one.stamp for one in read_plan(file.data).layout.files}
    except DistribError as error:
        emit("log_not_read", fault=str(error))
        return {}


def _searched(url: str, holds: str, gone: ForgottenLists) -> Place:
    return Place(folder=url, holds=holds, **gone._asdict())


def _prepared(file: RunFile) -> list[str]:
    """Return the prepared folders: of training, and of scored events and of a server, if any."""
    events = file.score.events
    others = [None if events is None else events.prepared, file.serve.users]
    there = [url for url in others if url is not None and Folder(url).exists()]
    return list(dict.fromkeys([file.data.prepared, *there]))


def _runs(file: RunFile) -> list[str]:
    """Return the folders with a model: the run's, those below it, and those that are served."""
    run, end = Folder(file.run), f"{BUNDLE}/{MANIFEST}"
    if not run.exists():
        return []
    found = [name.removesuffix(end) for name in run.data_files() if name.endswith(end)]
    own = [(run / name).url for name in found if not {*name.split("/")} & _COPIES]
    served = [Folder(url).url for url in file.serve.models.values()]
    return list(dict.fromkeys([*own, *(url for url in served if Folder(url).exists(end))]))


def _lists(file: RunFile) -> list[str]:
    """Return the folders of lists and vectors, and the earlier ones that they build on."""
    run = Folder(file.run)
    output = file.score.output or str(run / "recommendations")
    vectors = Folder(file.export.output or str(run / "vectors")) / "users"
    wanted = [output, vectors.url, *file.forget.lists]
    if file.score.incremental_from:
        wanted.append(file.score.incremental_from)
    found = [folder for url in wanted for folder in previous_runs(Folder(url))]
    return list(dict.fromkeys(folder.url for folder in found))


def _labels(file: RunFile, run: str) -> str:
    is_first = Folder(run).url == Folder(file.run).url
    return (is_first and file.soften.output) or str(Folder(run) / "soft_labels")


def _to_retrain(file: RunFile, runs: Sequence[str]) -> list[str]:
    """Return the runs whose model saw removed people."""
    forgets = Dataset.open(file.data.prepared).manifest.forgets
    found = []
    for run in runs:
        bundle = Folder(run) / BUNDLE
        facts = read_record(BundleFacts, read_manifest(bundle).facts, bundle)
        if facts.data in forgets:
            found.append(run)
    return found


def _to_remake(file: RunFile, runs: Sequence[str]) -> list[str]:
    labels = [_labels(file, run) for run in runs]
    found = [url for url in labels if Folder(url).exists(SUCCESS)]
    if file.convert.output and Folder(file.convert.output).exists(CONVERTED):
        found.append(file.convert.output)
    return found
