"""Which columns of a log hold what, and which rows count."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, model_validator

from distrib.config import Config
from distrib.ids import IdKind

__all__ = ["Columns", "IdKind", "TimeFormat", "TimeUnit", "Where", "wanted_values"]

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


Values = tuple[bool | int | float | str, ...]


def _some(where: dict[str, Values]) -> dict[str, Values]:
    empty = sorted(name for name, values in where.items() if not values)
    if empty:
        raise ValueError(f"no values for column(s) {empty}, so no row would count; list some")
    return where


Where = Annotated[dict[str, Values], AfterValidator(_some)]
"""Values by column; only rows with one of the values in each of the columns count."""


def _known_letters(form: str) -> str:
    try:
        written = datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC).strftime(form)
        is_date = datetime.strptime(written, form).year == 2001
    except ValueError as error:
        raise ValueError(f"{form!r}: {error}; write it in strptime's letters") from error
    if not is_date:
        raise ValueError(f"{form!r}: no year; write it in strptime's letters, such as %Y-%m-%d")
    return form


TimeFormat = Annotated[str, AfterValidator(_known_letters)]
"""How dates are written, in the letters of Python's strptime."""


def wanted_values(where: Where) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return values as text by column, for `Layout.where`."""
    return tuple(
        (name, tuple(str(v).lower() if isinstance(v, bool) else str(v) for v in values))
        for name, values in where.items()
    )
