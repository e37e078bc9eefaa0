"""Records that training writes, and passes between processes."""

from typing import NamedTuple

from pydantic import ConfigDict

from distrib.config import Record


class EpochRecord(Record):
    """One epoch; ``history.json`` in the run folder has one entry for each."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    epoch: int
    """From 1."""

    step: int
    """Global batches so far."""

    losses: dict[str, float]
    """Loss terms per user."""

    valid: dict[str, float]
    """Metrics on the validation users; empty where there are none."""

    selection: float
    """Value by which the best epoch is chosen; higher is better."""

    users_per_s: float | None = None
    ratings_per_s: float | None = None
    """Speed of training, in the unit that the scheme counts."""

    data_share: float
    """Share of the time spent waiting for batches."""

    compute_share: float | None = None
    communication_share: float | None = None
    checkpoint_share: float | None = None
    valid_s: float | None = None
    skipped_updates: int | None = None
    seconds: float | None = None
    """Total time of a closed-form solution."""

    @property
    def rate(self) -> float:
        """Users, or ratings, per second."""
        return self.users_per_s or self.ratings_per_s or 0.0


class RunResult(Record):
    """What a finished training run returns."""

    run: str
    epochs: int
    best_epoch: int
    valid: dict[str, float]
    """Metrics of the best epoch."""

    users_per_s: float | None = None
    ratings_per_s: float | None = None
    data_share: float


class Divergence(NamedTuple):
    """Where a loss or gradient norm became too large or not finite."""

    epoch: int
    step: int
    term: str
    value: float
    why: str = "not finite"


class Outcome(NamedTuple):
    """How training ended on the workers; equal on all ranks."""

    history: list[EpochRecord]
    divergence: Divergence | None = None
    fault: str = ""
    """What failed while a checkpoint was written."""

    stopped: str = ""
    """Why training was stopped early."""


def best_record(history: list[EpochRecord]) -> EpochRecord:
    """Return the best epoch, the earliest on ties."""
    return max(history, key=lambda record: (record.selection, -record.epoch))
