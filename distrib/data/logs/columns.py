"""Which columns of a log hold what."""

from typing import Literal

from pydantic import model_validator

from distrib.config import Config

IdKind = Literal["int", "string"]
TimeUnit = Literal["s", "ms", "us", "ns", "iso8601"]


class Columns(Config):
    """Which columns of a log hold what."""

    user: str
    """Column of the user id."""

    item: str
    """Column of the item id."""

    rating: str | None = None
    """Column of the rating or count; without it every interaction counts as 1."""

    time: str | None = None
    """Column of the time; a row without one counts as of 1970, and without the column interactions
    stand in the order of the log."""

    @model_validator(mode="after")
    def _one_column_one_meaning(self) -> "Columns":
        if len(set(self.names())) != len(self.names()):
            raise ValueError(f"one column has two meanings: {self.names()}; map each but once")
        return self

    def names(self) -> list[str]:
        """Return the columns that are read."""
        return [name for name in (self.user, self.item, self.rating, self.time) if name is not None]
