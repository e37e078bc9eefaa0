"""Which columns of a log hold what."""

from typing import Literal

from pydantic import model_validator

from distrib.config import Config

IdKind = Literal["int", "string"]
TimeUnit = Literal["s", "ms", "us", "ns", "iso8601"]


class Columns(Config):
    """Mapping of log columns."""

    user: str
    """Column of the user id."""

    item: str
    """Column of the item id."""

    rating: str | None = None
    """Column of the rating or count; without it every interaction counts as 1."""

    time: str | None = None
    """Column of the time. A row without a time gets 1970; without the column, interactions keep the
    order of the log."""

    @model_validator(mode="after")
    def _one_column_one_meaning(self) -> "Columns":
        if len(set(self.names())) != len(self.names()):
            raise ValueError(f"a column has two meanings: {self.names()}; map each column once")
        return self

    def names(self) -> list[str]:
        """Return the mapped columns."""
        return [name for name in (self.user, self.item, self.rating, self.time) if name is not None]
