"""What is recommended and what is not, and how bulk scoring goes about it."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from distrib.config import Config
from distrib.data.config import DataConfig

ItemSet = tuple[int | str, ...] | str
"""Item ids, or the URL of a Parquet, CSV or text file that holds them (column ``item``)."""

Output = Literal[
    "score",
    "probability",
    "rating",
    "deviation",
    "rating_distribution",
    "serendipity",
    "embedding",
]

Precision = Literal["fp32", "bf16"]

_UNIT = Field(ge=0.0, le=1.0)


class PolicyConfig(Config):
    """Which items may come up, and how scores become a list."""

    exclude_seen: bool = True
    """Leave out what is in the user's history."""

    allow: ItemSet | None = None
    """The only items that may come up; all when not given."""

    deny: ItemSet | None = None
    """Items that must not come up; they win over ``allow``."""

    min_score: float | None = None
    """Scores below it do not come up; lists may be shorter then."""

    popularity_damping: float = Field(default=0.0, ge=0.0)
    """Taken off a score for each factor of e in the item's training interactions."""

    groups: str | None = None
    """URL of a Parquet or CSV file with columns ``item`` and ``group`` (text or numbers)."""

    max_per_group: PositiveInt | None = None
    """Items of one group in a list; items that ``groups`` does not name are not counted."""

    diversity: Annotated[float, _UNIT] = 0.0
    """0 ranks by score alone; towards 1 it counts more that an item is unlike those above it."""

    diversity_pool: PositiveInt = 200
    """Best candidates of each user that a diverse list is chosen from, at least its length."""

    @model_validator(mode="after")
    def _caps_need_groups(self) -> "PolicyConfig":
        if (self.groups is None) != (self.max_per_group is None):
            raise ValueError("groups and max_per_group belong together; set both or none")
        return self


class ScoreConfig(Config):
    """Settings of bulk scoring."""

    histories: str | None = None
    """Whose recommendations: a prepared folder, or Parquet with ``user``, a list ``items`` of
    original item ids and, where the model reads ratings, a list ``ratings``; a list ``candidates``
    of ids limits a user to these. Without it, all users of the run's own prepared data, known to
    training or not."""

    events: DataConfig | None = None
    """In place of ``histories``: a log of raw events, described as in ``[data]``, that is prepared
    first."""

    output: str | None = None
    """Folder for the recommendations; ``recommendations`` inside the run folder by default."""

    since: str | None = None
    """Folder of a former scoring with the same model and policy: users are passed over whose
    history it scored as it is now."""

    k: PositiveInt = 100
    """Items for each user."""

    form: Literal["nested", "long"] = "nested"
    """``nested``: one row for each user, with lists; ``long``: one row for each recommendation."""

    outputs: Annotated[tuple[Output, ...], Field(min_length=1)] | None = None
    """What is told of each item, and ``embedding``, the vector of each user, which alone makes no
    lists; without it, all that the model tells but ``serendipity`` and ``embedding``."""

    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    """What may come up."""

    new_items: bool = False
    """Whether to recommend items, too, that training did not see, from their ratings by users that
    it saw; needs a model that encodes items (vae_bmf), and as histories the prepared folder of the
    run, extended since."""

    serendipitous_k: NonNegativeInt = 0
    """Items of a second list: unlikely to be met, likely to be loved; needs a model with both."""

    unlikely_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """An item is unlikely to be met when it is in this share of the catalogue by probability."""

    min_support: NonNegativeInt = 20
    """Training ratings that an item of the second list must have; below it, its expected rating
    says little."""

    precision: Precision = "fp32"
    """``bf16`` finds twice as many candidates as are wanted by products in bfloat16, about half as
    fast again, and ranks them by their float32 scores; see `Scorer`."""

    batch_users: PositiveInt = 512
    """Users scored at a time."""

    fragment_users: PositiveInt = 50_000
    """Users of one output file, about: whole row groups of one input file. A restart begins with
    the files that are not there."""

    gpus_per_actor: Annotated[float, Field(ge=0.0)] = 0.0
    """Share of a GPU that each scoring actor takes; 0 scores on the CPU."""

    @model_validator(mode="after")
    def _one_source(self) -> "ScoreConfig":
        if self.histories is not None and self.events is not None:
            raise ValueError("histories and events are two sources; set one of them")
        return self

    @model_validator(mode="after")
    def _second_lists_are_nested(self) -> "ScoreConfig":
        if self.serendipitous_k and self.form == "long":
            raise ValueError("a row of the long form is of one list; set serendipitous_k = 0")
        return self

    @property
    def makes_lists(self) -> bool:
        """Whether lists are wanted, and not embeddings alone."""
        return self.outputs != ("embedding",)
