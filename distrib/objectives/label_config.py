"""Where the soft labels of an objective come from."""

from typing import TYPE_CHECKING, Annotated, Literal, Protocol, runtime_checkable

from pydantic import AfterValidator, Field
from torch import Tensor

from distrib.config import Config
from distrib.storage import absolute

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
    """Labels of each user that `distrib soften` wrote."""

    kind: Literal["stored"] = "stored"

    path: Annotated[str, AfterValidator(absolute)]
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


class SoftenedConfig(Config):
    """Settings that objectives share which add stored soft labels to another objective."""

    label: StoredLabel
    """Labels that `distrib soften` wrote."""

    label_share: Share = 0.3
    """Lambda 1: share of the soft label; see the objective ``soft_target``."""

    target_weight: Share = 0.5
    """Lambda 2: weight of observed pairs; others have the rest."""

    @property
    def weights(self) -> tuple[float, float]:
        """Weights of observed pairs and of others, 1 where the base is."""
        return 2.0 * self.target_weight, 2.0 * (1.0 - self.target_weight)

    def shares(self, length_N: Tensor, weight_N: Tensor) -> Tensor:
        """Return min(1, l1 n z) of pairs with weight z in the label of users with n targets."""
        return (self.label_share * length_N * weight_N).clamp(max=1.0)


def stored_path(objective: "ObjectiveConfig | None") -> str | None:
    """Return the folder of the stored labels that an objective learns from, if it does."""
    label = objective.label if isinstance(objective, ReadsLabels) else None
    return label.path if isinstance(label, StoredLabel) else None
