"""What a run file may name as a rating log: the union of the formats."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from distrib.config import Config
from distrib.data.logs.columns import Columns
from distrib.data.logs.formats.amazon import AmazonSource
from distrib.data.logs.formats.delimited import CsvSource
from distrib.data.logs.formats.delta import DeltaSource
from distrib.data.logs.formats.hetrec import HetRecSource
from distrib.data.logs.formats.iceberg import IcebergSource
from distrib.data.logs.formats.jsonl import JsonLinesSource
from distrib.data.logs.formats.matrix import MatrixSource
from distrib.data.logs.formats.movielens import MovieLensSource
from distrib.data.logs.formats.netflix import NetflixSource
from distrib.data.logs.formats.parquet import ParquetSource
from distrib.data.logs.formats.recbole import RecBoleSource
from distrib.data.logs.formats.sessions import SessionsSource
from distrib.data.logs.synthetic import SyntheticSource

__all__ = [
    "AmazonSource", "Columns", "CsvSource", "DeltaSource", "ExpandedLog", "FileSource",
    "HetRecSource", "IcebergSource", "JsonLinesSource", "MatrixSource", "MovieLensSource",
    "NetflixSource", "ParquetSource", "RecBoleSource", "SessionsSource", "Source",
    "SyntheticLog",
]  # fmt: skip


class SyntheticLog(SyntheticSource):
    """A log sampled from a synthetic model."""


FileSource = (
    MovieLensSource
    | AmazonSource
    | HetRecSource
    | RecBoleSource
    | SessionsSource
    | MatrixSource
    | NetflixSource
    | CsvSource
    | JsonLinesSource
    | ParquetSource
    | DeltaSource
    | IcebergSource
)


class ExpandedLog(Config):
    """A real log expanded by a randomized Kronecker product; see `data.logs.kronecker`."""

    format: Literal["expanded"] = "expanded"

    base: Annotated[FileSource, Field(discriminator="format")]
    """The real log; must fit in one process. Ids of the result are integers."""

    user_copies: PositiveInt = 23
    """Users in the result per user of the log."""

    item_copies: PositiveInt = 7
    """Items in the result per item of the log."""

    growth: PositiveFloat = 20.0
    """Expected interactions in the result per interaction of the log."""

    seed: int = 0
    """Random seed of the expansion."""

    @model_validator(mode="after")
    def _there_is_room(self) -> "ExpandedLog":
        if self.growth > self.user_copies * self.item_copies:
            raise ValueError(
                f"growth = {self.growth} exceeds user_copies x item_copies = "
                f"{self.user_copies * self.item_copies}; increase user_copies or item_copies"
            )
        return self


Source = Annotated[FileSource | SyntheticLog | ExpandedLog, Field(discriminator="format")]
