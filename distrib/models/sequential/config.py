"""Settings that all models of sequences have."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from distrib.config import Config

Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class SequenceConfig(Config):
    """What a model of sequences reads and predicts."""

    max_length: PositiveInt = 50
    """Interactions that it reads at most, the last ones of a history."""

    targets: Literal["every", "last"] = "every"
    """``every``: each interaction of a training history is predicted from those before; ``last``:
    only a history's last one. Of the last ``max_length`` in either case."""

    latent_width: PositiveInt = 64
    """Dimensions of items and users."""

    tied: bool = True
    """Whether items are read and decoded by the same table."""

    @property
    def every(self) -> bool:
        """Whether each interaction is a target; see `with_targets`."""
        return self.targets == "every"


def targets_of(config: Config) -> str:
    """Return what soft labels of a model are of: a user's ``last`` target, or the ``history``."""
    return "last" if isinstance(config, SequenceConfig) else "history"
