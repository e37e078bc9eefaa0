"""The study file: which runs are compared, on what, and by which metrics."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from distrib.config import Config, JsonObject
from distrib.tuning.space import Drawn

Name = Annotated[str, Field(min_length=1)]
Export = Literal["recbole", "lenskit", "csv"]


class Option(Config):
    """One value of an axis, and what it changes in the run file."""

    base: str | JsonObject | None = None
    """Run file to start from: its path, or its content as a table. Bases are merged first, those of
    later axes over those of earlier ones, then the settings of ``common`` and of the axes."""

    settings: JsonObject = Field(default_factory=dict)
    """Part of a run file. A table with another ``name``, ``format`` or ``kind`` replaces the table
    it is merged into."""

    space: dict[str, Drawn] = Field(default_factory=dict)
    """Fields to tune on validation, as in ``search.space``; every option has the same number of
    trials."""

    labels_of: str | None = None
    """Option of the same axis whose runs make the soft labels (section ``soften``) of this one's
    ``objective.label``."""

    pretrained_by: tuple[str, ...] = ()
    """Options of the same axis whose runs this one starts from; see ``train.pretrained``."""


class Override(Config):
    """What differs for some combinations of options."""

    where: dict[str, tuple[str, ...]]
    """Options by axis; the other axes do not matter."""

    settings: JsonObject = Field(default_factory=dict)
    """Merged after those of the options."""

    is_left_out: bool = False
    """Whether these combinations are not run."""


class Small(Config):
    """How a study is made small, to see within minutes that it works."""

    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    num_trials: PositiveInt = 2
    only: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Options to keep, by axis; all of the others."""

    settings: JsonObject = Field(default_factory=dict)
    """Merged last into every run file, e.g. fewer epochs."""


class Lines(Config):
    """Metrics by a numeric axis, a line for each option compared."""

    kind: Literal["lines"] = "lines"
    x: Name
    """Axis whose options are numbers."""

    metrics: tuple[str, ...] = ()
    """All of the study by default."""

    log_x: bool = False

    @property
    def measured(self) -> tuple[str, ...]:
        """Test metrics that it shows."""
        return self.metrics


class Curves(Config):
    """Validation metrics by epoch, a line for each option compared."""

    kind: Literal["curves"] = "curves"
    metrics: tuple[str, ...] = ()

    @property
    def measured(self) -> tuple[str, ...]:
        """Test metrics that it shows: none, as curves are of validation."""
        return ()


class Surface(Config):
    """A metric by two numeric axes."""

    kind: Literal["surface"] = "surface"
    x: Name
    y: Name
    metric: Name

    @property
    def measured(self) -> tuple[str, ...]:
        """Test metrics that it shows."""
        return (self.metric,)


class Scatter(Config):
    """One metric against another, a point for each run."""

    kind: Literal["scatter"] = "scatter"
    x: Name
    y: Name

    @property
    def measured(self) -> tuple[str, ...]:
        """Test metrics that it shows."""
        return (self.x, self.y)


class Reliability(Config):
    """How often predicted rating levels are the true ones, by probability; the first seed."""

    kind: Literal["reliability"] = "reliability"

    @property
    def measured(self) -> tuple[str, ...]:
        """Test metrics that it shows: none, as it is drawn from tables."""
        return ()


class LikelyAndLiked(Config):
    """Probability and expected rating of all items, for some users; the first seed."""

    kind: Literal["likely_and_liked"] = "likely_and_liked"
    option: Name
    """Which of the options compared."""

    @property
    def measured(self) -> tuple[str, ...]:
        """Test metrics that it shows: none."""
        return ()


Figure = Annotated[
    Lines | Curves | Surface | Scatter | Reliability | LikelyAndLiked, Field(discriminator="kind")
]


class StudyFile(Config):
    """A study: every combination of the axes' options, each with every seed."""

    title: Name
    question: str = ""
    """What the study answers, for the page."""

    source: str = ""
    """The paper and table that it follows."""

    output: str
    """Folder for the page, its tables and pictures."""

    runs: str = "runs/studies"
    """Folder of runs and prepared data, which studies share."""

    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    metrics: Annotated[tuple[str, ...], Field(min_length=1)]
    """Test metrics to show; the first one is also shown by length of history."""

    axes: Annotated[dict[str, dict[str, Option]], Field(min_length=1)]
    """Options by axis. Each combination of options is a run file."""

    compared: str | None = None
    """Axis whose options are compared; the last by default. The combinations of the others are
    what they are compared on."""

    baseline: str | None = None
    """Option that the others are tested against; the best one of each comparison by default."""

    published: dict[str, dict[str, dict[str, float]]] = Field(default_factory=dict)
    """Published values, by what options are compared on (options joined by ", "), option and
    metric."""

    common: Option = Field(default_factory=Option)
    """What every run starts from."""

    overrides: tuple[Override, ...] = ()
    num_trials: PositiveInt = 10
    """Trials of each option with a ``space``, with the first seed."""

    trial_seed: int = 0
    """Seed of the drawn settings."""

    user_groups: str | None = None
    """Parquet file with the columns ``user`` and ``group``, e.g. countries: the first metric is
    also shown for each group."""

    max_cpus: NonNegativeInt = 0
    """Cores that runs take at a time; all of the cluster by default."""

    retry_failed: bool = True
    """Whether runs that failed before are tried again."""

    figures: tuple[Figure, ...] = ()
    """Pictures beside the table."""

    run_pages: bool = False
    """Also writes a page for each run, 5 MB each, in the folder of what was measured of it."""

    export: Export | None = None
    """Writes splits and lists for other tools, too."""

    size: Literal["full", "small"] = "full"
    """``small``: as ``small`` says, into a folder of its own beside the output."""

    small: Small = Field(default_factory=Small)

    @model_validator(mode="after")
    def _names_are_known(self) -> "StudyFile":
        faults = [f"axes.{axis} has no options" for axis, found in self.axes.items() if not found]
        if len(set(self.metrics)) < len(self.metrics):
            faults.append(f"metrics = {list(self.metrics)} names one twice")
        if self.compared is not None and self.compared not in self.axes:
            faults.append(f"compared = {self.compared!r} is no axis; there are {[*self.axes]}")
        elif self.baseline is not None and self.baseline not in self.axes[self.compared_axis]:
            faults.append(f"baseline = {self.baseline!r} is no option of {self.compared_axis!r}")
        for number, override in enumerate(self.overrides):
            faults += self._unknown(f"overrides[{number}].where", override.where)
        faults += self._unknown("small.only", self.small.only)
        faults += [
            f for axis, options in self.axes.items() for f in _unknown_parents(axis, options)
        ]
        faults += self._figure_faults()
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _unknown(self, where: str, options: dict[str, tuple[str, ...]]) -> list[str]:
        """Return which options of a setting there are not."""
        return [
            f"{where}.{axis}: there is no {name!r}"
            for axis, names in options.items()
            for name in names or ("",)
            if name not in self.axes.get(axis, {})
        ]

    def sized(self) -> "StudyFile":
        """Return the study as it is run: small where that is set."""
        if self.size == "full":
            return self
        small = self.small
        axes = {
            axis: {name: one for name, one in found.items() if name in small.only.get(axis, found)}
            for axis, found in self.axes.items()
        }
        update: JsonObject = {"seeds": small.seeds, "num_trials": small.num_trials, "axes": axes}
        last = Override(where={}, settings=small.settings)
        update["output"] = f"{self.output.rstrip('/')}-small"
        return self.model_copy(update={**update, "overrides": (*self.overrides, last)})

    def _figure_faults(self) -> list[str]:
        wanted = [
            (number, axis)
            for number, figure in enumerate(self.figures)
            for axis in _axes_of(figure)
        ]
        unknown = [
            f"figures[{number}]: {figure.option!r} is no option of {self.compared_axis!r}"
            for number, figure in enumerate(self.figures)
            if isinstance(figure, LikelyAndLiked)
            and figure.option not in self.axes.get(self.compared_axis, {})
        ]
        return unknown + [
            f"figures[{number}]: {axis!r} is no axis whose options are numbers"
            for number, axis in wanted
            if not all(map(is_number, self.axes.get(axis, [""])))
        ]

    @property
    def compared_axis(self) -> str:
        """Name of the axis whose options are compared."""
        return self.compared or [*self.axes][-1]


def is_number(text: str) -> bool:
    """Return whether the name of an option is a number, so that it has a place on an axis."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _axes_of(figure: Figure) -> tuple[str, ...]:
    if isinstance(figure, Lines):
        return (figure.x,)
    return (figure.x, figure.y) if isinstance(figure, Surface) else ()


def _unknown_parents(axis: str, options: dict[str, Option]) -> list[str]:
    """Return what is wrong with options that need runs of others."""
    faults = []
    for name, option in options.items():
        parents = (*option.pretrained_by, *([option.labels_of] if option.labels_of else ()))
        for parent in parents:
            if parent not in options:
                faults.append(f"axes.{axis}.{name}: {parent!r} is no option of this axis")
            elif options[parent].labels_of or options[parent].pretrained_by:
                faults.append(f"axes.{axis}.{name}: {parent!r} itself needs another run")
    return faults
