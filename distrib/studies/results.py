"""What studies write: one record a run, one a study."""

from collections.abc import Mapping

from pydantic import Field

from distrib.config import JsonObject, Record
from distrib.evaluation.protocol import DISTANCE
from distrib.evaluation.truth import TruthDistance
from distrib.metrics import Summary
from distrib.storage import Folder

RUN_RESULT = "study_run.json"
"""In a run's folder, once it is trained, and in a folder of `MEASURED`, once it is measured."""

MEASURED = "measured"
"""Folder of a run with a folder for each way to measure it."""

FAULT = "fault.json"
"""In a run's folder, where it failed."""

RESULT = "study.json"
"""In the folder of a study."""


class Cost(Record):
    """What a run took."""

    train_s: float = 0.0
    evaluate_s: float = 0.0
    memory_gb: float | None = None
    """Peak memory of the process, GiB; None where several processes trained."""

    speed: dict[str, float] = Field(default_factory=dict)
    """Users or pairs trained a second."""


class RunRecord(Record):
    """A finished run."""

    address: str
    """Name of its folder."""

    settings: JsonObject
    """Its run file, without places."""

    data: str
    """Hash of the prepared data."""

    prepared: str
    """Name of the folder of the data."""

    seed: int
    epochs: int
    best_epoch: int
    selection: float
    """Value by which the best epoch was chosen; higher is better."""

    valid: dict[str, float]
    """Metrics on validation, at the best epoch."""

    metrics: dict[str, dict[str, Summary]] | None = None
    """Test metrics by model (``model``, ``popularity``) and name; None for a trial."""

    users: int = 0
    """Test users."""

    distance_to_truth: TruthDistance | None = None
    cost: Cost
    environment: dict[str, str]
    finished: str
    """Date and time, UTC."""

    def mean(self, metric: str) -> float | None:
        """Return a test metric of the model.

        Args:
            metric: Its name; or `DISTANCE` and a kind of distance to the truth of a synthetic log.

        Returns:
            The value; None where it was not measured.
        """
        if metric.startswith(DISTANCE):
            truth = self.distance_to_truth
            return None if truth is None else truth.model.get(metric.removeprefix(DISTANCE))
        found = (self.metrics or {}).get("model", {}).get(metric)
        return None if found is None else found.mean


class Fault(Record):
    """Why a run failed."""

    reason: str


def label_of(options: Mapping[str, str]) -> str:
    """Return options as people read them."""
    return ", ".join(options.values())


class Row(Record):
    """One combination of options with one seed."""

    options: dict[str, str]
    seed: int
    address: str
    """Empty where the run could not begin."""

    measure: str
    """Name of the folder of what was measured."""

    tuned: JsonObject
    """Settings that the trials chose."""

    run: RunRecord | None
    fault: str
    """Why there is no run."""


class Trial(Record):
    """One trial of a combination."""

    options: dict[str, str]
    settings: JsonObject
    address: str
    selection: float | None
    """Score on validation, higher is better; None where it failed."""

    fault: str


class StudyResult(Record):
    """A study; ``study.json`` in its folder."""

    title: str
    question: str
    source: str
    study: str
    """Hash of the study file."""

    runs: str
    """Folder of the runs."""

    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    axes: dict[str, tuple[str, ...]]
    compared: str
    baseline: str | None
    published: dict[str, dict[str, dict[str, float]]]
    user_groups: str | None = None
    rows: tuple[Row, ...]
    trials: tuple[Trial, ...]
    """Runs that chose settings."""

    environment: dict[str, str]
    finished: str
    command: str


def run_folder(runs: str, address: str) -> Folder:
    """Return the folder of a run.

    Args:
        runs: Folder of the runs of a study.
        address: Of the run.

    Returns:
        The folder.
    """
    return Folder(runs) / "runs" / address


def data_folder(runs: str, name: str) -> Folder:
    """Return the folder of prepared data.

    Args:
        runs: Folder of the runs of a study.
        name: See `distrib.studies.plan.data_address`.

    Returns:
        The folder.
    """
    return Folder(runs) / "data" / name


def measured_folder(runs: str, row: Row) -> Folder:
    """Return the folder of what was measured of a run.

    Args:
        runs: Folder of the runs of a study.
        row: The run.

    Returns:
        The folder.
    """
    return run_folder(runs, row.address) / MEASURED / row.measure
