"""A prepared folder: what its manifest says, and the only reader of its Parquet files."""

import hashlib
from functools import cached_property, partial
from typing import NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from distrib.config import JsonObject, Record
from distrib.data.history_arrays import (
    HistoryArrays,
    eval_rows,
    history_arrays,
    item_training_rows,
    trained_numbers,
    training_rows,
)
from distrib.data.schema import Role
from distrib.errors import DataError
from distrib.storage import Folder, with_retries
from distrib.vocabulary import Vocabulary

MANIFEST = "manifest.json"
FORMAT = 2
_USER_COLUMNS = ["subset", "items", "ratings", "roles"]
_ITEM_COLUMNS = ["users", "ratings", "roles", "subsets"]


class StoredFile(Protocol):
    """Whatever entry of a manifest: a file with its digest."""

    @property
    def name(self) -> str:
        """Inside the folder."""

    @property
    def sha256(self) -> str:
        """Of its content."""


class ShardEntry(Record):
    """What the manifest says of the histories of one shard of users."""

    name: str
    sha256: str
    bytes: int
    shard: int
    users: int
    interactions: int
    unseen_items: int
    roles: dict[str, int]
    subsets: dict[str, int]


class ItemShardEntry(Record):
    """What the manifest says of the histories of a range of items."""

    name: str
    sha256: str
    bytes: int
    first_item: int
    items: int
    interactions: int


class VocabularyEntry(Record):
    """What the manifest says of the items."""

    name: str
    sha256: str
    bytes: int
    fingerprint: str


class QuarantineEntry(Record):
    """What the manifest says of a file of damaged rows."""

    name: str
    sha256: str
    bytes: int
    rows: int


class RowCounts(Record):
    """What became of the rows of the log: read = kept + rejected, by reason."""

    read: int
    kept: int
    rejected: dict[str, int]
    users: int
    items: int
    training_users: int
    interactions_by_role: dict[str, int]
    users_by_subset: dict[str, int]

    def interactions(self, *roles: Role) -> int:
        """Return the interactions with any of some roles."""
        return sum(self.interactions_by_role.get(role.name.lower(), 0) for role in roles)


class TimeRange(Record):
    """First and last time of the log, seconds since 1970; None without times."""

    first: int | None
    last: int | None


class Recipe(NamedTuple):
    """What a prepared folder depends on: the settings and the log, as JSON."""

    document: JsonObject

    @property
    def num_shards(self) -> int:
        """Shards there are, empty ones included."""
        return int(self.document["num_shards"])

    @property
    def split(self) -> str:
        """Name of the rule that holds out."""
        return str(self.document["split"]["name"])

    @property
    def format(self) -> str:
        """Format of the log."""
        return str(self.document["source"]["format"])


class DatasetManifest(Record):
    """What lies in a prepared folder; written last."""

    format: int
    distrib: str
    recipe: JsonObject
    generation: int
    """How often the folder was extended."""

    limits: tuple[str, ...]
    """Where the split cuts; see `SplitState`."""

    quarantine: tuple[QuarantineEntry, ...]
    counts: RowCounts
    levels: tuple[float, ...]
    times: TimeRange
    vocabulary: VocabularyEntry
    hash: str
    """Of the content: equal when training on it is."""

    shards: tuple[ShardEntry, ...]
    item_histories: tuple[ItemShardEntry, ...] | None = None
    extends: tuple[str, ...] = ()
    """Hashes of what the folder held before it was extended."""

    @property
    def made_from(self) -> Recipe:
        """The recipe, with names for what other jobs read of it."""
        return Recipe(self.recipe)

    @property
    def num_valid(self) -> int:
        """Interactions to validate on."""
        return self.counts.interactions(Role.VALID_TARGET)

    @property
    def user_index_size(self) -> int:
        """One more than the largest number of a user."""
        step = self.made_from.num_shards
        last = [entry.shard + step * (entry.users - 1) for entry in self.shards]
        return max(last, default=-1) + 1


class Dataset:
    """A prepared folder.

    Users are numbered so that numbers stay when users are appended to shards: the first user of
    shard s has number s, the next one s + shards, and so on. Numbers have gaps where shards differ
    in length.

    Args:
        folder: Where it is.
        manifest: What lies there.
        retry_s: Seconds for which a store that does not answer is tried again.
    """

    def __init__(self, folder: Folder, manifest: DatasetManifest, retry_s: float = 0.0) -> None:
        self.folder = folder
        self.manifest = manifest
        self.retry_s = retry_s

    def __getstate__(self) -> JsonObject:
        """Leave the vocabulary behind: tasks that need it read it themselves."""
        return {name: value for name, value in self.__dict__.items() if name != "vocabulary"}

    @classmethod
    def open(cls, url: str | Folder, retry_s: float = 0.0) -> "Dataset":
        """Read the manifest of a prepared folder.

        Args:
            url: The folder.
            retry_s: See `Dataset`.

        Returns:
            The data set.

        Raises:
            DataError: There is no manifest, so the folder is not (completely) prepared.
        """
        folder = url if isinstance(url, Folder) else Folder(url)
        if not folder.exists(MANIFEST):
            raise DataError(
                f"{folder}: no {MANIFEST}, so nothing complete is prepared there; run "
                "jobs/prepare.py"
            )
        document = folder.read_json(MANIFEST)
        found = document.get("format") if isinstance(document, dict) else None
        if found != FORMAT:
            raise DataError(
                f"{folder}: prepared in format {found}, this version reads {FORMAT}; prepare it "
                "again"
            )
        try:
            return cls(folder, DatasetManifest.model_validate(document), retry_s)
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"]))
            raise DataError(
                f"{folder / MANIFEST}: {place}: {fault['msg']}; it was damaged or changed, prepare "
                "the data again"
            ) from error

    @property
    def hash(self) -> str:
        """What the content is known by."""
        return self.manifest.hash

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The items."""
        found = Vocabulary.from_table(self.table(self.manifest.vocabulary))
        found.user_index_size = self.manifest.user_index_size
        return found

    def table(self, entry: StoredFile, columns: list[str] | None = None) -> pa.Table:
        """Read a file, checked against the manifest.

        Args:
            entry: The manifest's.
            columns: Those wanted; all when None.

        Returns:
            The table: `schema.histories` for a shard.

        Raises:
            DataError: The file is not what prepare wrote.
        """
        read = partial(read_table, self.folder, entry, columns)
        return with_retries(read, timeout_s=self.retry_s)

    def training(self, entry: ShardEntry) -> HistoryArrays:
        """Return what a model may be trained on; see `training_rows`."""
        return self.train_and_valid(entry)[0]

    def train_and_valid(self, entry: ShardEntry) -> tuple[HistoryArrays, HistoryArrays]:
        """Read a shard once, for training and for validation."""
        table = self.table(entry, _USER_COLUMNS)
        train = training_rows(self.arrays(entry, table), table["subset"].to_numpy())
        return train, self.held_out_of(entry, table, Role.VALID_TARGET)

    def held_out(self, entry: ShardEntry, role: Role) -> HistoryArrays:
        """Return the users with targets of a role; see `eval_rows`."""
        return self.held_out_of(entry, self.table(entry, _USER_COLUMNS), role)

    def item_training(self, entry: ItemShardEntry) -> HistoryArrays:
        """Return the training histories of a range of items; see `item_training_rows`."""
        return item_training_rows(self.table(entry, _ITEM_COLUMNS), entry.first_item)

    def held_out_of(self, entry: ShardEntry, table: pa.Table, role: Role) -> HistoryArrays:
        """Return the users of a table with targets of a role, with the numbers of a shard's."""
        return eval_rows(self.known_users(entry, table), role)

    def known_users(self, entry: ShardEntry, table: pa.Table, first_row: int = 0) -> HistoryArrays:
        """Return all users of a table, with the number -1 for those that training does not see.

        Args:
            entry: Their shard.
            table: Some of its rows.
            first_row: Of the table within the shard.

        Returns:
            One row each.
        """
        rows = self.arrays(entry, table, first_row)
        return trained_numbers(rows, table["subset"].to_numpy())

    def arrays(self, entry: ShardEntry, table: pa.Table, first_row: int = 0) -> HistoryArrays:
        """Return all users of a table, with their numbers; see `known_users`."""
        first, step = self.numbering(entry.shard)
        return history_arrays(table, first + step * first_row, step)

    def numbering(self, shard: int) -> tuple[int, int]:
        """Return the number of a shard's first user, and the step to the next."""
        return numbering(shard, self.manifest.made_from.num_shards)


def read_table(folder: Folder, entry: StoredFile, columns: list[str] | None = None) -> pa.Table:
    """Read a file of a folder that is being prepared; see `Dataset.table`."""
    content = folder.read(entry.name)
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise DataError(
            f"{folder / entry.name}: content differs from the manifest; it was damaged or changed, "
            "prepare the data again"
        )
    return pq.read_table(pa.BufferReader(content), columns=columns, use_threads=False)


def numbering(shard: int, num_shards: int) -> tuple[int, int]:
    """Return the number of a shard's first user, and the step to the next; see `Dataset`."""
    return shard, num_shards
