"""Records that training writes, and passes between processes."""

from typing import Any, NamedTuple

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from distrib.config import JsonObject, Record, read_record


class Speed(NamedTuple):
    """How fast training was; in JSON a single field, such as ``users_per_s``."""

    counted: str
    """What the scheme counts."""

    per_s: float

    @property
    def field(self) -> str:
        """Name in JSON, and of the curve."""
        return f"{self.counted}{_PER_S}"


_PER_S = "_per_s"
_BIN = " from "


def _nested(document: Any) -> Any:
    """Collect the speed of a JSON document."""
    if not isinstance(document, dict):
        return document
    found = {key: value for key, value in document.items() if key.endswith(_PER_S)}
    speeds = [Speed(key.removesuffix(_PER_S), value) for key, value in found.items()]
    rest = {key: value for key, value in document.items() if key not in found}
    return rest | ({"speed": speeds[0]} if speeds else {})


def _flattened(self: Record, handler: SerializerFunctionWrapHandler) -> JsonObject:
    """Return the fields, the speed under a name with its unit."""
    document: JsonObject = handler(self)
    speed = document.pop("speed", None)
    return document | ({Speed(*speed).field: speed[1]} if speed else {})


class Progress(NamedTuple):
    """How far training is, for a bar."""

    done: int
    """Global batches."""

    total: int
    about: str
    """Epoch, losses and speed."""


class EpochRecord(Record):
    """One epoch; ``history.json`` in the run folder has one entry for each."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    epoch: int
    """From 1."""

    step: int
    """Global batches so far."""

    losses: dict[str, float]
    """Loss terms, means over what the scheme counts."""

    recorded: dict[str, float] = Field(default_factory=dict)
    """Means of what the objective recorded; bins of a histogram have names with " from "."""

    valid: dict[str, float]
    """Metrics on the validation users; empty where there are none."""

    popularity: dict[str, float] = Field(default_factory=dict)
    """The same metrics of popularity and item means, in the first epoch."""

    selection: float
    """Value by which the best epoch is chosen; higher is better."""

    speed: Speed | None = None
    data_share: float
    """Share of the time spent waiting for batches."""

    compute_share: float | None = None
    communication_share: float | None = None
    checkpoint_share: float | None = None
    valid_s: float | None = None
    skipped_updates: int | None = None
    seconds: float | None = None
    """Total time of a closed-form solution."""

    _read = model_validator(mode="before")(_nested)
    _write = model_serializer(mode="wrap")(_flattened)

    @property
    def curves(self) -> dict[str, float]:
        """What the objective recorded, without histograms."""
        return {name: value for name, value in self.recorded.items() if _BIN not in name}

    @property
    def histogram(self) -> dict[float, float]:
        """Share of each bin of the recorded histogram by its lower bound; empty without one."""
        found = [name.rpartition(_BIN) for name in self.recorded if _BIN in name]
        return {float(low): self.recorded[f"{name}{_BIN}{low}"] for name, _, low in found}


def history_of(content: Any, where: object) -> list[EpochRecord]:
    """Read the epochs that a run wrote; raise `DataError` where they are of another shape."""
    return list(read_record(_History, {"epochs": content}, where).epochs)


class _History(Record):
    """Epochs of a run."""

    epochs: tuple[EpochRecord, ...]


class RunResult(Record):
    """What a finished training run returns."""

    run: str
    epochs: int
    best_epoch: int
    valid: dict[str, float]
    """Metrics of the best epoch."""

    speed: Speed | None = None
    data_share: float

    _read = model_validator(mode="before")(_nested)
    _write = model_serializer(mode="wrap")(_flattened)


class Divergence(NamedTuple):
    """Where a loss or gradient norm became too large or not finite."""

    epoch: int
    step: int
    term: str
    value: float
    why: str = "not finite"
    advice: str = ""
    """What to change; by default that of the model, or a general one."""


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
