"""What a study runs: combinations of options as run files, and the addresses of runs."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from distrib.config import JsonObject, checked, load
from distrib.errors import ConfigError
from distrib.objectives.label_config import stored_path
from distrib.run_file import RunFile
from distrib.storage import Folder
from distrib.studies.config import Option, StudyFile
from distrib.training.config import TrainingRun
from distrib.training.run_folder import identity
from distrib.tuning.space import SEARCHED, SearchConfig, settings_of, with_settings

_KINDS = ("name", "format", "kind")
_NOWHERE = "nowhere"
_LENGTH = ("num_epochs", "patience", "valid_users")
"""Settings of `TrainConfig` that decide a result, and may change between two starts of a run."""


class Cell(NamedTuple):
    """One combination of options."""

    options: Mapping[str, str]
    """Option by axis."""

    document: JsonObject
    """Its run file, without the places of run and data."""

    search: SearchConfig | None
    labels_of: "Mapping[str, str] | None"
    """Options of the cell whose runs make its labels."""

    pretrained_by: "tuple[Mapping[str, str], ...]"
    """Options of the cells that it starts from."""

    @property
    def key(self) -> str:
        """The options as text, equal for equal ones."""
        return key_of(self.options)

    @property
    def parents(self) -> "tuple[Mapping[str, str], ...]":
        """Options of all cells that must be trained before."""
        return (*self.pretrained_by, *([self.labels_of] if self.labels_of is not None else ()))

    @property
    def first_file(self) -> RunFile:
        """The run file of the first trial; of every run but for the seed where nothing is tuned."""
        return self.file(0, {} if self.search is None else settings_of(self.search, 0))

    def file(self, seed: int, changes: Mapping[str, Any]) -> RunFile:
        """Return the run file with a seed and other changes by dotted name."""
        document = with_settings(self.document, {**changes, "seed": seed})
        return checked(RunFile, document, where=self.key)


def key_of(options: Mapping[str, str]) -> str:
    """Return options as text."""
    return json.dumps(dict(options), ensure_ascii=False)


def cells(study: StudyFile, environment: Mapping[str, str]) -> list[Cell]:
    """Return all combinations of a study, each with a valid run file.

    Args:
        study: The study.
        environment: Variables that base run files may name.

    Returns:
        The combinations, in the order of the axes.

    Raises:
        ConfigError: A run file is not valid; lists all faults.
    """
    found, faults = [], []
    bases: dict[str, JsonObject] = {}
    for names in itertools.product(*study.axes.values()):
        options = dict(zip(study.axes, names, strict=True))
        overrides = [
            override
            for override in study.overrides
            if all(options[axis] in wanted for axis, wanted in override.where.items())
        ]
        if any(override.is_left_out for override in overrides):
            continue
        chosen = [study.common, *(study.axes[axis][name] for axis, name in options.items())]
        try:
            document = _document(chosen, bases, environment)
            for override in overrides:
                document = merged(document, override.settings)
            cell = _cell(study, options, chosen, document)
            _ = cell.first_file  # raises where it is not valid
            found.append(cell)
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))
    return found


def _document(
    chosen: list[Option], bases: dict[str, JsonObject], environment: Mapping[str, str]
) -> JsonObject:
    """Merge the bases of the options, then their settings."""
    document: JsonObject = {"run": _NOWHERE, "data": {"prepared": _NOWHERE}}
    for base in [option.base for option in chosen if option.base is not None]:
        key = base if isinstance(base, str) else json.dumps(base)
        if key not in bases:
            bases[key] = without_places(_read(base, environment))
        document = merged(document, bases[key])
    for option in chosen:
        document = merged(document, option.settings)
    return document


def _read(base: str | JsonObject, environment: Mapping[str, str]) -> RunFile:
    if isinstance(base, str):
        return load(RunFile, base, environment=environment)
    return checked(RunFile, base, where="base")


def without_places(file: RunFile) -> JsonObject:
    """Return what is set in a run file, without places and what has no part in a study."""
    left_out = {"run", "serve", "score", "export", "convert", "forget", "search"}
    found: JsonObject = file.model_dump(mode="json", exclude_unset=True, exclude=left_out)
    found["data"].pop("prepared")
    return found


def _cell(
    study: StudyFile, options: dict[str, str], chosen: list[Option], document: JsonObject
) -> Cell:
    space = {name: drawn for option in chosen for name, drawn in option.space.items()}
    search = None
    strange = [name for name in space if name.partition(".")[0] not in SEARCHED]
    if strange:
        raise ConfigError(
            f"{key_of(options)}: space names {strange}, which do not affect training; use fields "
            f"of {', '.join(SEARCHED)}"
        )
    if space:
        search = SearchConfig(space=space, num_trials=study.num_trials, seed=study.trial_seed)
    labels_of, pretrained_by = None, list[Mapping[str, str]]()
    for axis, option in zip(study.axes, chosen[1:], strict=True):
        if option.labels_of is not None:
            labels_of = {**options, axis: option.labels_of}
            objective = document.get("objective") or {}
            label = {"kind": "stored", "path": _NOWHERE, **(objective.get("label") or {})}
            document = merged(document, {"objective": {"label": label}})
        pretrained_by += [{**options, axis: parent} for parent in option.pretrained_by]
    return Cell(options, document, search, labels_of, tuple(pretrained_by))


def merged(one: Any, other: Any) -> Any:
    """Merge nested documents; a table of another kind replaces the earlier one.

    Args:
        one: The document.
        other: What to change in it.

    Returns:
        A new document.
    """
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return other
    if any(key in other and key in one and one[key] != other[key] for key in _KINDS):
        return dict(other)
    result = dict(one)
    for key, value in other.items():
        result[key] = merged(one[key], value) if key in one else value
    return result


def levels(found: Sequence[Cell]) -> list[list[Cell]]:
    """Return the cells that need no other, then those that do."""
    first = [cell for cell in found if not cell.parents]
    second = [cell for cell in found if cell.parents]
    known = {cell.key for cell in first}
    faults = [
        f"{cell.key} needs runs of {key_of(parent)}, which is left out"
        for cell in second
        for parent in cell.parents
        if key_of(parent) not in known
    ]
    if faults:
        raise ConfigError("\n".join(faults))
    return [level for level in (first, second) if level]


def run_address(run: TrainingRun, data: str, root: Folder) -> str:
    """Return the name of a run: a hash of all that decides what is trained, data included.

    Args:
        run: The run; its own folder does not count.
        data: Hash of the prepared data.
        root: Folder of runs, which may be moved.

    Returns:
        16 hexadecimal digits.
    """
    document = identity(run, data)
    del document["evaluate"]  # of which training depends on these alone
    validation = {name: getattr(run.evaluate, name) for name in ("exclude_seen", "lists")}
    document["validation"] = {**validation, "selection": run.selection}
    document["length"] = {name: getattr(run.train, name) for name in _LENGTH}
    if run.train.validate_every_epochs > 1:
        document["length"]["validate_every_epochs"] = run.train.validate_every_epochs
    document.pop("labels", None)  # their folder has an address of its own
    return _hash(json.dumps(document, sort_keys=True).replace(str(root), ""))


def measure_address(file: RunFile) -> str:
    """Return the name of what is measured of a run, inside its folder."""
    return _hash(file.evaluate.model_dump_json())


def labels_address(base: str, file: RunFile) -> str:
    """Return the name of the soft labels that a run makes.

    Args:
        base: Address of the run.
        file: Its run file.

    Returns:
        16 hexadecimal digits.
    """
    settings = file.soften.model_dump(mode="json", exclude={"output", "nightly", "batch_users"})
    return _hash(json.dumps([base, settings], sort_keys=True))


def data_address(made_from: JsonObject) -> str:
    """Return the name of prepared data.

    Args:
        made_from: See `distrib.data.prepare.job.recipe`.

    Returns:
        16 hexadecimal digits.
    """
    return _hash(json.dumps(made_from, sort_keys=True, default=str))


def needs_labels(file: RunFile) -> bool:
    """Return whether a run learns from stored soft labels."""
    return stored_path(file.objective) is not None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
