"""What a run file may name as a rating log."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from distrib.config import Config
from distrib.data.logs.synthetic import SyntheticSource

IdKind = Literal["int", "string"]
TimeUnit = Literal["s", "ms", "us", "ns", "iso8601"]


def _ascending(levels: tuple[float, ...]) -> tuple[float, ...]:
    if not levels or list(levels) != sorted(set(levels)):
        raise ValueError("levels must be one or more different numbers in ascending order")
    return levels


Levels = Annotated[tuple[float, ...], AfterValidator(_ascending)]


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


class MovieLensSource(Config):
    """A MovieLens release: ``u.data``, ``ratings.dat`` or ``ratings.csv``, or the ``.zip``."""

    format: Literal["movielens"] = "movielens"

    path: str
    """Path or URL of the file; the layout is told from its first line."""


class AmazonSource(Config):
    """Amazon reviews: ratings CSV or JSON lines of 2014, 2018 and 2023."""

    format: Literal["amazon"] = "amazon"

    path: str
    """Path or URL of a file or folder; the layout is told from its first lines."""

    order: Literal["auto", "user_first", "item_first"] = "auto"
    """Order of the two ids in a CSV without header; told from what they look like unless set."""


class HetRecSource(Config):
    """A HetRec 2011 table: Last.fm ``user_artists.dat`` (counts), ``user_ratedmovies*.dat``."""

    format: Literal["hetrec"] = "hetrec"

    path: str
    """Path or URL of the file; the layout is told from its header."""


class RecBoleSource(Config):
    """RecBole atomic files ``*.inter``: tab-separated with a typed header."""

    format: Literal["recbole"] = "recbole"

    path: str
    """Path or URL of a file or folder."""

    columns: Columns = Field(default=Columns(user="user_id", item="item_id"))
    """Which fields hold what, named without their types; ``rating`` and ``timestamp`` are used
    where present, unless this says otherwise."""

    ids: IdKind = "string"
    """Kind of the user and item ids; a RecBole token is text."""


class SessionsSource(Config):
    """One sequence of items per line; the line, counted from 0, is the user."""

    format: Literal["sessions"] = "sessions"

    path: str
    """Path or URL of a file; of a folder users are called ``file:line``."""

    separator: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """Character between items."""

    padding: str = "0"
    """An entry that stands for no item."""

    ids: IdKind = "int"
    """Kind of the item ids; text makes the users text as well."""


class MatrixSource(Config):
    """A dense text matrix of ratings: rows are users, columns items, both counted from 0."""

    format: Literal["matrix"] = "matrix"

    path: str
    """Path or URL of the file."""

    unobserved: float = 0.0
    """The value of cells without a rating."""


class CsvSource(Config):
    """Delimited text with any columns."""

    format: Literal["csv"] = "csv"

    path: str
    """Path or URL of a file, plain or compressed, or of a folder whose files are all read."""

    columns: Columns
    """Which columns hold what."""

    separator: Annotated[str, Field(min_length=1)] = ","
    """One or more characters between fields."""

    header: tuple[str, ...] | None = None
    """Column names of a file that has no header line."""

    is_quoted: bool = True
    """Whether a field in double quotes may hold the separator; never a line break."""

    ids: IdKind = "string"
    """Kind of the user and item ids."""

    time_unit: TimeUnit = "s"
    """Unit of the time column, since 1970; or dates as text."""


class JsonLinesSource(Config):
    """One JSON object per line."""

    format: Literal["jsonl"] = "jsonl"

    path: str
    """Path or URL of a file, plain or compressed, or of a folder whose files are all read."""

    columns: Columns
    """Which fields hold what."""

    ids: IdKind = "string"
    """Kind of the user and item ids; a number is taken as text unless this says ``int``."""

    time_unit: TimeUnit = "s"
    """Unit of the time field, since 1970; or dates as text."""


class ParquetSource(Config):
    """Parquet with any columns."""

    format: Literal["parquet"] = "parquet"

    path: str
    """Path or URL of a file, or of a folder whose files are all read."""

    columns: Columns
    """Which columns hold what."""

    ids: IdKind | None = None
    """Kind of the user and item ids; integers where both columns hold them, text otherwise."""

    time_unit: TimeUnit = "s"
    """Unit of a time column of numbers, since 1970; timestamps and dates know theirs."""


class SyntheticLog(SyntheticSource):
    """A log drawn from a known process."""


FileSource = (
    MovieLensSource
    | AmazonSource
    | HetRecSource
    | RecBoleSource
    | SessionsSource
    | MatrixSource
    | CsvSource
    | JsonLinesSource
    | ParquetSource
)


class ExpandedLog(Config):
    """A real log grown to any size by a randomised Kronecker product; see `data.expansion`."""

    format: Literal["expanded"] = "expanded"

    base: Annotated[FileSource, Field(discriminator="format")]
    """The real log; it must fit into one process. Ids of the result are integers."""

    user_copies: PositiveInt = 23
    """Users of the result for each user of the log."""

    item_copies: PositiveInt = 7
    """Items of the result for each item of the log."""

    growth: PositiveFloat = 20.0
    """Interactions of the result for each of the log, in expectation."""

    seed: int = 0
    """Another seed, another draw."""

    @model_validator(mode="after")
    def _there_is_room(self) -> "ExpandedLog":
        if self.growth > self.user_copies * self.item_copies:
            raise ValueError(
                f"growth = {self.growth} is over user_copies x item_copies = "
                f"{self.user_copies * self.item_copies}; raise the copies"
            )
        return self


Source = Annotated[FileSource | SyntheticLog | ExpandedLog, Field(discriminator="format")]
