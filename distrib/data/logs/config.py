"""What a run file may name as a rating log: the union of the formats."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from distrib.config import Config
from distrib.data.logs.columns import Columns
from distrib.data.logs.formats.amazon import AmazonSource
from distrib.data.logs.formats.delimited import CsvSource
from distrib.data.logs.formats.hetrec import HetRecSource
from distrib.data.logs.formats.jsonl import JsonLinesSource
from distrib.data.logs.formats.matrix import MatrixSource
from distrib.data.logs.formats.movielens import MovieLensSource
from distrib.data.logs.formats.parquet import ParquetSource
from distrib.data.logs.formats.recbole import RecBoleSource
from distrib.data.logs.formats.sessions import SessionsSource
from distrib.data.logs.synthetic import SyntheticSource

__all__ = [
    "AmazonSource", "Columns", "CsvSource", "ExpandedLog", "FileSource", "HetRecSource",
    "JsonLinesSource", "MatrixSource", "MovieLensSource", "ParquetSource", "RecBoleSource",
    "SessionsSource", "Source", "SyntheticLog",
]  # fmt: skip


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
