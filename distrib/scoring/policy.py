"""Settings of recommendation lists and bulk scoring.

What holds for all users (allowed, denied, least score, groups, diversity) is compiled and applied
by `distrib.scoring.rules`. What a user has already (``exclude_seen``) is passed to
`Scorer.recommend` by `distrib.scoring.tables` in bulk, by `distrib.serve.answers` online, and
struck out in `distrib.scoring.search`.
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from distrib.config import Config
from distrib.data.config import DataConfig
from distrib.scoring.table_formats import TableConfig

ItemSet = tuple[int | str, ...] | str
"""Item ids, or the URL of a Parquet, CSV or text file with them (column ``item``)."""

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
    """Which items may be recommended, and how scores become a list."""

    exclude_seen: bool = True
    """Leave out items of the user's history."""

    allow: ItemSet | None = None
    """The only items that may be recommended; all by default."""

    deny: ItemSet | None = None
    """Items that must not be recommended; takes precedence over ``allow``."""

    min_score: float | None = None
    """Items with a lower score are left out, so lists may be shorter."""

    popularity_damping: float = Field(default=0.0, ge=0.0)
    """This times log(1 + training interactions of the item) is subtracted from its score."""

    groups: str | None = None
    """URL of a Parquet or CSV file with columns ``item`` and ``group`` (strings or numbers)."""

    max_per_group: PositiveInt | None = None
    """Most items of one group in a list; items without a group are unlimited."""

    diversity: Annotated[float, _UNIT] = 0.0
    """MMR weight: 0 ranks by score alone; towards 1, dissimilarity to items above counts more."""

    diversity_pool: PositiveInt = 200
    """Top candidates per user that a diverse list is chosen from, at least its length."""

    def without_files(self) -> "PolicyConfig":
        """Return the policy with the ids that it names itself, not those of files."""
        files = [name for name in ("allow", "deny") if isinstance(getattr(self, name), str)]
        return self.model_copy(update=dict.fromkeys(files))

    @model_validator(mode="after")
    def _caps_need_groups(self) -> "PolicyConfig":
        if (self.groups is None) != (self.max_per_group is None):
            raise ValueError("groups and max_per_group belong together; set both or neither")
        return self


class ScoreConfig(Config):
    """Settings of bulk scoring."""

    histories: str | None = None
    """Users to score: a prepared folder, or Parquet with ``user``, a list ``items`` of original
    item ids, oldest first or with a list ``times``, and, if the model reads ratings, a list
    ``ratings``; a list ``candidates`` of ids restricts a user to these. By default, all users of
    the run's own prepared data, whether training saw them or not."""

    events: DataConfig | None = None
    """Instead of ``histories``: a log of raw events, described as in ``[data]``, that is prepared
    first."""

    output: str | None = None
    """Output folder; ``recommendations`` inside the run folder by default."""

    table: TableConfig | None = None
    """Table to commit the lists to, as all of its rows; their files are in the output folder, and
    those of earlier versions stay. Plain Parquet files by default."""

    incremental_from: str | None = None
    """Folder of a previous scoring run with the same model and policy; users whose history has not
    changed since are skipped."""

    k: PositiveInt = 100
    """Items per user."""

    layout: Literal["nested", "long"] = "nested"
    """``nested``: one row per user, with lists; ``long``: one row per recommendation."""

    outputs: Annotated[tuple[Output, ...], Field(min_length=1)] | None = None
    """Outputs per item, and ``embedding``, the user embedding, which alone makes no lists. By
    default, all that the model predicts except ``serendipity`` and ``embedding``."""

    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    """Which items may be recommended."""

    new_users: Literal["fold_in", "reject"] = "fold_in"
    """Users that training did not see: scored from their histories, by models with a row for each
    user after folding them in, or counted as rejected. Only a run's own prepared data say who they
    are."""

    new_items: bool = False
    """Also recommend items that training did not see, from their ratings by training users; needs
    a model that encodes items (vae_bmf) and the run's prepared folder, extended since, as
    histories."""

    serendipitous_k: NonNegativeInt = 0
    """Items of a second list: low interaction probability, high expected rating; needs a model
    that predicts both."""

    unlikely_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of the catalog, by lowest interaction probability, that the second list draws from."""

    min_support: NonNegativeInt = 20
    """Training ratings that an item of the second list must have; with fewer, its expected rating
    is unreliable."""

    max_unseen_share: Annotated[float, _UNIT] = 0.9
    """Fail when a larger share of the interactions is with items that the model does not know: the
    ids are probably written in another way."""

    precision: Precision = "fp32"
    """``bf16`` selects twice as many candidates by bfloat16 products and ranks them by float32
    scores; about 1.5 times as fast; see `Scorer`."""

    batch_users: PositiveInt = 512
    """Users per batch."""

    fragment_users: PositiveInt = 50_000
    """Approximate users of one output file: whole row groups of one input file. A restart makes
    only the missing files."""

    gpus_per_actor: Annotated[float, Field(ge=0.0)] = 0.0
    """Share of a GPU per scoring actor; 0 scores on the CPU."""

    @model_validator(mode="after")
    def _one_source(self) -> "ScoreConfig":
        if self.histories is not None and self.events is not None:
            raise ValueError("histories and events exclude each other; set one of them")
        if self.new_users == "reject" and self.events is not None:
            raise ValueError("events come from users that training did not see; set new_users")
        return self

    @model_validator(mode="after")
    def _second_lists_are_nested(self) -> "ScoreConfig":
        if self.serendipitous_k and self.layout == "long":
            raise ValueError("the long form holds one list per user; set serendipitous_k = 0")
        return self

    @property
    def makes_lists(self) -> bool:
        """Whether the outputs include lists, not only embeddings."""
        return self.outputs != ("embedding",)
