"""Where the soft labels of an objective come from."""

from typing import TYPE_CHECKING, Annotated, Literal, Protocol, runtime_checkable

from pydantic import Field

from distrib.config import Config

if TYPE_CHECKING:
    from distrib.objectives import ObjectiveConfig

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class UniformLabel(Config):
    """Label smoothing: every item alike."""

    kind: Literal["uniform"] = "uniform"


class PopularityLabel(Config):
    """Items in proportion to a power of their training interactions."""

    kind: Literal["popularity"] = "popularity"

    power: Annotated[float, Field(gt=0.0)] = 1.0
    """1 for the share of interactions."""


class StoredLabel(Config):
    """Labels of each user that `jobs/soften.py` wrote."""

    kind: Literal["stored"] = "stored"

    path: str
    """Path or URL of their folder."""


Label = Annotated[UniformLabel | PopularityLabel | StoredLabel, Field(discriminator="kind")]


@runtime_checkable
class ReadsLabels(Protocol):
    """Settings of an objective that learns from soft labels."""

    @property
    def label(self) -> UniformLabel | PopularityLabel | StoredLabel:
        """Where they come from."""

    def without_files(self) -> "ObjectiveConfig":
        """Return settings of about the same cost that read no labels, which may not exist yet."""


def stored_path(objective: "ObjectiveConfig | None") -> str | None:
    """Return the folder of the stored labels that an objective learns from, if it does."""
    label = objective.label if isinstance(objective, ReadsLabels) else None
    return label.path if isinstance(label, StoredLabel) else None
