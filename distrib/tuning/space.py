"""The search space: fields of the run file, and how their values are drawn."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from distrib.config import Config, JsonObject
from distrib.errors import ConfigError

Value = bool | int | float | str


class Choice(Config):
    """One of several values. As many trials as there are values try each of them once."""

    values: Annotated[tuple[Value, ...], Field(min_length=1)]

    def draw(self, seed: int, trial: int, name: str) -> Value:
        """Draw the value of a trial."""
        turn, place = divmod(trial, len(self.values))
        return self.values[int(_generator(seed, turn, name).permutation(len(self.values))[place])]


class Range(Config):
    """A number between two bounds."""

    low: int | float
    high: int | float

    scale: Literal["linear", "log"] = "linear"
    """``log``: uniform in the logarithm; for rates and penalties."""

    @model_validator(mode="after")
    def _low_is_below_high(self) -> "Range":
        if not self.low < self.high or (self.scale == "log" and self.low <= 0):
            raise ValueError(
                f"low = {self.low}, high = {self.high}, scale = {self.scale!r}: low must be below "
                "high, and above 0 for log"
            )
        return self

    def draw(self, seed: int, trial: int, name: str) -> Value:
        """Draw the value of a trial; an integer if both bounds are."""
        rng = _generator(seed, trial, name)
        is_whole = isinstance(self.low, int) and isinstance(self.high, int)
        high = self.high + 1 if is_whole else self.high
        if self.scale == "log":
            value = math.exp(rng.uniform(math.log(self.low), math.log(high)))
        else:
            value = rng.uniform(self.low, high)
        return min(math.floor(value), int(self.high)) if is_whole else float(f"{value:.4g}")


def _generator(seed: int, number: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, number, *name.encode()])


def _kind(entry: Any) -> str:
    values = entry.get("values") if isinstance(entry, Mapping) else getattr(entry, "values", None)
    return "range" if values is None else "choice"


Drawn = Annotated[
    Annotated[Choice, Tag("choice")] | Annotated[Range, Tag("range")], Discriminator(_kind)
]

SEARCHED = ("seed", "model", "objective", "optimizer", "engine", "train")
"""Sections of the run file whose fields affect training."""


class SearchConfig(Config):
    """Settings of a study."""

    space: dict[str, Drawn] = Field(default_factory=dict)
    """By field of the run file, e.g. ``"optimizer.learning_rate"``: ``values``, or ``low``,
    ``high`` and ``scale``. Fields of seed, model, objective, optimizer, engine and train only."""

    num_trials: PositiveInt = 20
    """Number of trials; raise it to extend a finished study."""

    seed: int = 0
    """Seed of the draws."""

    scheduler: Literal["halving", "none"] = "halving"
    """``halving`` ends trials early that are worse than others after the same number of epochs."""

    grace_epochs: PositiveInt = 2
    """Epochs that every trial gets."""

    reduction: Annotated[int, Field(ge=2)] = 3
    """One in this many trials at a rung continues; rungs are this factor apart."""

    max_concurrent: PositiveInt = 1
    """Trials at a time, each with the workers that ``train`` sets."""


def settings_of(config: SearchConfig, trial: int) -> dict[str, Value]:
    """Draw the settings of a trial, a pure function of (seed, trial) and of each field's name.

    So a study that is extended, or searches one more field, draws the same values again.

    Args:
        config: The study.
        trial: Number of the trial, from 0.

    Returns:
        Values by field.
    """
    return {
        name: kind.draw(config.seed, trial, name) for name, kind in sorted(config.space.items())
    }


def with_settings(document: Mapping[str, Any], settings: Mapping[str, Any]) -> JsonObject:
    """Return a copy of a nested document with some of its fields set.

    Args:
        document: A run file as JSON.
        settings: Values by dotted name.

    Returns:
        The copy; missing sections are created.

    Raises:
        ConfigError: A name needs a section where there is a value.
    """
    result = dict(document)
    for name, value in settings.items():
        head, _, rest = name.partition(".")
        below = result.get(head)
        if rest and not isinstance(below, Mapping | None):
            raise ConfigError(
                f"search.space names {name!r}, but {head!r} is {below!r}, not a section"
            )
        result[head] = with_settings(below or {}, {rest: value}) if rest else value
    return result
