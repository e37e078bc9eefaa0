"""The sections of a run file that say what is prepared or converted, and how."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from distrib.config import Config
from distrib.data.logs.config import Source, SyntheticLog
from distrib.data.logs.rating_scale import RatingsConfig
from distrib.data.splits.rules import EntrywiseSplit, Split

LogFormat = Literal["inter", "csv", "parquet"]


class CleaningConfig(Config):
    """Which interactions stay, applied in this order: duplicates, thresholds, cores."""

    duplicates: Literal["last", "first", "max", "mean", "sum"] = "last"
    """What remains of several interactions of a user with an item. Of equal times the higher
    rating counts as later; without times the line further down does."""

    keep_above: float | None = None
    """Keep ratings above this only; Mult-VAE's protocol says 3.5."""

    keep_below: float | None = None
    """Keep ratings below this only."""

    min_user_items: NonNegativeInt = 1
    """Drop users with fewer interactions."""

    min_item_users: NonNegativeInt = 1
    """Drop items with fewer interactions."""

    is_iterated: bool = True
    """Whether both minima are applied again until they hold at once (a k-core); otherwise items
    are dropped once, then users."""


class DataConfig(Config):
    """What is prepared, how, and where to."""

    prepared: str
    """Path or URL of the folder that prepare writes and all other jobs read."""

    source: Source = Field(default_factory=SyntheticLog)
    """The rating log."""

    ratings: RatingsConfig = Field(default_factory=RatingsConfig)
    """What its ratings mean."""

    cleaning: CleaningConfig = Field(default_factory=CleaningConfig)
    """Which of it stays."""

    split: Split = Field(default_factory=EntrywiseSplit)
    """What is held out."""

    num_shards: PositiveInt = 8
    """Files that the histories are cut into, by a hash of the user; one is one unit of work."""

    item_histories: bool = False
    """Whether the histories of items are written as well, for models that read both sides."""

    extend: bool = False
    """Whether files of the source that a prepared folder does not hold yet are added to it."""

    max_damaged_share: float = Field(default=0.1, ge=0.0, le=1.0)
    """Stop when a larger share of the log is damaged: then the layout or the scale is wrong."""


class ConvertConfig(Config):
    """What is written, and where to."""

    output: str | None = None
    """Path or URL of a new folder; the convert job needs it."""

    format: LogFormat = "inter"
    """``inter`` is RecBole's atomic file; columns are user_id, item_id, rating, timestamp."""

    of: Literal["source", "prepared"] = "prepared"
    """The rows of data.source as they are, damaged ones left out; or data.prepared, cleaned. One
    file comes of each piece of the one, or shard of the other."""
