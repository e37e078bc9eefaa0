"""What is recommended and what is not."""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from distrib.config import Config


class ScoreConfig(Config):
    """Settings of bulk scoring."""

    histories: str | None = None
    """Whose recommendations: a prepared folder, or Parquet with ``user``, a list ``items`` of
    original item ids and, where the model reads ratings, a list ``ratings``. Without it, all users
    of the run's own prepared data, known to training or not."""

    output: str | None = None
    """Folder for the recommendations; ``recommendations`` inside the run folder by default."""

    k: PositiveInt = 100
    """Items for each user."""

    new_items: bool = False
    """Whether to recommend items, too, that training did not see, from their ratings by users that
    it saw; needs a model that encodes items (vae_bmf), and as histories the prepared folder of the
    run, extended since."""

    exclude_seen: bool = True
    """Leave out what is in the user's history."""

    serendipitous_k: NonNegativeInt = 0
    """Items of a second list: unlikely to be met, likely to be loved; needs a model with both."""

    unlikely_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """An item is unlikely to be met when it is in this share of the catalogue by probability."""

    min_support: NonNegativeInt = 20
    """Training ratings that an item of the second list must have; below it, its expected rating
    says little."""

    batch_users: PositiveInt = 512
    """Users scored at a time."""

    gpus_per_actor: Annotated[float, Field(ge=0.0)] = 0.0
    """Share of a GPU that each scoring actor takes; 0 scores on the CPU."""
