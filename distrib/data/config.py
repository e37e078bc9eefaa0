"""The ``data`` and ``convert`` sections of a run file."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from distrib.config import Config
from distrib.data.logs.config import Source, SyntheticLog
from distrib.data.logs.feedback import FeedbackConfig
from distrib.data.logs.rating_scale import RatingsConfig
from distrib.data.splits.rules import EntrywiseSplit, Split

LogFormat = Literal["inter", "csv", "parquet"]


class CleaningConfig(Config):
    """Filters on interactions, applied in this order: duplicates, thresholds, k-core."""

    duplicates: Literal["last", "first", "max", "mean", "sum", "keep"] = "last"
    """How several interactions of a user with an item are reduced to one. At equal times the
    higher rating counts as later; without times the later line does. ``keep`` keeps all, for models
    of sequences in which people consume an item again."""

    keep_above: float | None = None
    """Keep only ratings above this; Mult-VAE's protocol uses 3.5."""

    keep_below: float | None = None
    """Keep only ratings below this."""

    min_user_items: NonNegativeInt = 1
    """Drop users with fewer interactions."""

    min_item_users: NonNegativeInt = 1
    """Drop items with fewer interactions."""

    iterate_kcore: bool = True
    """Whether both minima are applied repeatedly until both hold (a k-core); otherwise items are
    dropped once, then users."""


class DataConfig(Config):
    """Input, settings and output of prepare."""

    prepared: str
    """Path or URL of the prepared dataset: prepare writes it, all other jobs read it."""

    source: Source = Field(default_factory=SyntheticLog)
    """The rating log."""

    ratings: RatingsConfig = Field(default_factory=RatingsConfig)
    """How its ratings are interpreted."""

    feedback: FeedbackConfig | None = None
    """What is a like and what is a dislike, for objectives and metrics of two signs."""

    cleaning: CleaningConfig = Field(default_factory=CleaningConfig)
    """Which interactions are kept."""

    split: Split = Field(default_factory=EntrywiseSplit)
    """Which interactions are held out."""

    num_shards: PositiveInt = 8
    """Number of history files, by a hash of the user; each is one unit of work."""

    item_histories: bool = False
    """Whether to write item histories as well, for models that read both sides."""

    extend: bool = False
    """Whether to add new files of the source to an existing prepared dataset."""

    max_damaged_share: float = Field(default=0.1, ge=0.0, le=1.0)
    """Fail when a larger share of the log is damaged: the layout or scale is probably wrong."""

    @property
    def num_item_files(self) -> int | None:
        """The most files of item histories; None if none are written."""
        return self.num_shards if self.item_histories else None


class ConvertConfig(Config):
    """Input, format and output of convert."""

    output: str | None = None
    """Path or URL of a new folder; required by the convert job."""

    format: LogFormat = "inter"
    """``inter`` is RecBole's atomic file format; columns: user_id, item_id, rating, timestamp."""

    of: Literal["source", "prepared"] = "prepared"
    """``source``: the raw rows of data.source without damaged ones, one file per piece.
    ``prepared``: the cleaned rows of data.prepared, one file per shard."""
