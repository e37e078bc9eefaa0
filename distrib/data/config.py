"""The sections of a run file that say what is prepared or converted, and how."""

from typing import Literal

from pydantic import Field, PositiveInt

from distrib.config import Config
from distrib.data.cleaning import CleaningConfig, RatingsConfig
from distrib.data.sources import Source, SyntheticLog
from distrib.data.splits import EntrywiseSplit, Split

LogFormat = Literal["inter", "csv", "parquet"]


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
