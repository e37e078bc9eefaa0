"""A prepared dataset: its manifest, and the only reader of its Parquet files."""

import hashlib
import json
from functools import cached_property, partial
from typing import Annotated, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator

from distrib.config import JsonObject, PlainName, Record, read_record
from distrib.data.history_arrays import (
    HistoryArrays,
    eval_rows,
    history_arrays,
    item_training_rows,
    trained_numbers,
    training_rows,
)
from distrib.data.logs.feedback import FeedbackConfig
from distrib.data.schema import Role
from distrib.data.splits.rules import CHRONOLOGICAL
from distrib.errors import DataError
from distrib.feedback import Feedback
from distrib.ids import IdKind
from distrib.renamed import renamed
from distrib.retries import with_retries
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary

MANIFEST = "manifest.json"
FORMAT = 2
_USER_COLUMNS = ["subset", "items", "ratings", "roles"]
_ITEM_COLUMNS = ["users", "ratings", "roles", "subsets"]


class StoredFile(Protocol):
    """Any manifest entry: a file and its digest."""

    @property
    def name(self) -> str:
        """File name inside the folder."""

    @property
    def sha256(self) -> str:
        """Digest of the file content."""


class ShardEntry(Record):
    """Manifest entry of the histories of one user shard."""

    name: PlainName
    sha256: str
    bytes: int
    shard: int
    users: int
    interactions: int
    unseen_items: int
    roles: dict[str, int]
    subsets: dict[str, int]
    tied: int | None = None
    """See `RowCounts`; None in shards of earlier versions."""


class ItemShardEntry(Record):
    """Manifest entry of the histories of a range of items."""

    name: PlainName
    sha256: str
    bytes: int
    first_item: int
    items: int
    interactions: int


class VocabularyEntry(Record):
    """Manifest entry of the vocabulary."""

    name: PlainName
    sha256: str
    bytes: int
    fingerprint: str


class QuarantineEntry(Record):
    """Manifest entry of a file of damaged rows."""

    name: PlainName
    sha256: str
    bytes: int
    rows: int


class RowCounts(Record):
    """Row counts of the log: read = kept + rejected, by reason."""

    read: int
    kept: int
    rejected: dict[str, int]
    users: int
    items: int
    training_users: int
    interactions_by_role: dict[str, int]
    users_by_subset: dict[str, int]
    tied: int | None = None
    """Interactions at the time of another one of the same user, which a hash puts in order; None
    without times."""

    @property
    def tied_share(self) -> float | None:
        """Share of the kept interactions that are tied; None without times."""
        return None if self.tied is None else self.tied / max(self.kept, 1)

    def interactions(self, *roles: Role) -> int:
        """Return the number of interactions with any of the given roles."""
        return sum(self.interactions_by_role.get(role.name.lower(), 0) for role in roles)


class TimeRange(Record):
    """First and last time of the log in seconds since 1970; None without times."""

    first: int | None
    last: int | None


class Recipe(NamedTuple):
    """Everything a prepared dataset depends on: settings and log files, as JSON."""

    document: JsonObject

    @property
    def num_shards(self) -> int:
        """Number of shards, including empty ones."""
        return int(self.document["num_shards"])

    @property
    def split(self) -> str:
        """Name of the split."""
        return str(self.document["split"]["name"])

    @property
    def is_chronological(self) -> bool:
        """Whether test targets follow the validation targets, which may then be model input."""
        split = self.document["split"]
        return split["name"] in CHRONOLOGICAL or bool(split.get("chronological", False))

    @property
    def has_repeats(self) -> bool:
        """Whether a history may hold an item more than once."""
        return str(self.document["cleaning"]["duplicates"]) == "keep"

    @property
    def format(self) -> str:
        """Format of the log."""
        return str(self.document["source"]["format"])

    @property
    def feedback(self) -> Feedback | None:
        """Which ratings are likes and dislikes; None where that was not set."""
        found = self.document.get("feedback")
        return FeedbackConfig.model_validate_json(json.dumps(found)).feedback if found else None


class DatasetManifest(Record):
    """Manifest of a prepared dataset; written last."""

    format: int
    distrib: str
    recipe: Annotated[JsonObject, AfterValidator(lambda found: renamed(found, "data")[0])]
    generation: int
    """How often the dataset was extended."""

    limits: tuple[str, ...]
    """Limits of the split; see `SplitState`."""

    quarantine: tuple[QuarantineEntry, ...]
    counts: RowCounts
    levels: tuple[float, ...]
    times: TimeRange
    vocabulary: VocabularyEntry
    hash: str
    """Content hash: equal hashes mean equal training data."""

    shards: tuple[ShardEntry, ...]
    item_histories: tuple[ItemShardEntry, ...] | None = None
    extends: tuple[str, ...] = ()
    """Hashes of the dataset before each extension, since people were last removed."""

    forgets: tuple[str, ...] = ()
    """Hashes of the dataset when it still held people who have been removed."""

    @property
    def made_from(self) -> Recipe:
        """The recipe, with accessors for the settings that other jobs read."""
        return Recipe(self.recipe)

    @property
    def file_names(self) -> set[str]:
        """Names of all files beside the manifest."""
        items = {entry.name for entry in self.item_histories or ()}
        damaged = {entry.name for entry in self.quarantine}
        return {self.vocabulary.name, *(entry.name for entry in self.shards), *items, *damaged}

    @property
    def num_valid(self) -> int:
        """Number of validation targets."""
        return self.counts.interactions(Role.VALID_TARGET)

    @property
    def user_index_size(self) -> int:
        """One more than the largest user index."""
        step = self.made_from.num_shards
        last = [entry.shard + step * (entry.users - 1) for entry in self.shards]
        return max(last, default=-1) + 1


class Dataset:
    """A prepared dataset.

    User indices do not change when users are appended to shards: the first user of shard s has
    index s, the next one s + shards, and so on. Indices have gaps where shards differ in length.

    Args:
        folder: Folder of the dataset.
        manifest: Manifest of the folder.
        retry_s: Seconds for which to retry when the store does not respond.
    """

    def __init__(self, folder: Folder, manifest: DatasetManifest, retry_s: float = 0.0) -> None:
        self.folder = folder
        self.manifest = manifest
        self.retry_s = retry_s

    def __getstate__(self) -> JsonObject:
        """Do not pickle the vocabulary: tasks that need it read it themselves."""
        return {name: value for name, value in self.__dict__.items() if name != "vocabulary"}

    @classmethod
    def open(cls, url: str | Folder, retry_s: float = 0.0) -> "Dataset":
        """Read the manifest of a prepared dataset.

        Args:
            url: The folder.
            retry_s: See `Dataset`.

        Returns:
            The dataset.

        Raises:
            DataError: The manifest is missing (preparation is incomplete) or not valid.
        """
        folder = url if isinstance(url, Folder) else Folder(url)
        if not folder.exists(MANIFEST):
            raise DataError(
                f"{folder}: no {MANIFEST}, so nothing complete is prepared there; run "
                "distrib prepare"
            )
        document = folder.read_json(MANIFEST)
        found = document.get("format") if isinstance(document, dict) else None
        if found != FORMAT:
            raise DataError(
                f"{folder}: prepared in format {found}, but this version reads format {FORMAT}; "
                "run prepare again"
            )
        return cls(folder, read_record(DatasetManifest, document, folder / MANIFEST), retry_s)

    @property
    def hash(self) -> str:
        """Content hash of the manifest."""
        return self.manifest.hash

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The items."""
        found = Vocabulary.from_table(self.table(self.manifest.vocabulary))
        found.user_index_size = self.manifest.user_index_size
        return found

    @cached_property
    def user_kind(self) -> IdKind:
        """Whether the users are integers or text."""
        for entry in self.manifest.shards[:1]:
            with self.folder.open(entry.name) as stream:
                is_int = pa.types.is_integer(pq.read_schema(stream).field("user").type)
            return "int" if is_int else "string"
        return "string"

    def table(self, entry: StoredFile, columns: list[str] | None = None) -> pa.Table:
        """Read a file and verify its digest.

        Args:
            entry: Manifest entry of the file.
            columns: Columns to read; all when None.

        Returns:
            The table: `schema.histories` for a shard.

        Raises:
            DataError: The content differs from the manifest.
        """
        read = partial(read_table, self.folder, entry, columns)
        return with_retries(read, timeout_s=self.retry_s)

    def training(self, entry: ShardEntry) -> HistoryArrays:
        """Return the training histories; see `training_rows`."""
        return self.train_and_valid(entry)[0]

    def train_and_valid(self, entry: ShardEntry) -> tuple[HistoryArrays, HistoryArrays]:
        """Read a shard once, for both training and validation."""
        table = self.table(entry, _USER_COLUMNS)
        train = training_rows(self.arrays(entry, table), table["subset"].to_numpy())
        return train, self.held_out_of(entry, table, Role.VALID_TARGET)

    def held_out(self, entry: ShardEntry, role: Role) -> HistoryArrays:
        """Return the users with targets of the given role; see `eval_rows`."""
        return self.held_out_of(entry, self.table(entry, _USER_COLUMNS), role)

    def item_training(self, entry: ItemShardEntry) -> HistoryArrays:
        """Return the training histories of a range of items; see `item_training_rows`."""
        return item_training_rows(self.table(entry, _ITEM_COLUMNS), entry.first_item)

    def held_out_of(self, entry: ShardEntry, table: pa.Table, role: Role) -> HistoryArrays:
        """Return the users of a shard's table who have targets of the given role."""
        return eval_rows(self.known_users(entry, table), role)

    def known_users(self, entry: ShardEntry, table: pa.Table, first_row: int = 0) -> HistoryArrays:
        """Return all users of a table, with index -1 for users not seen in training.

        Args:
            entry: Shard of the users.
            table: Some rows of the shard.
            first_row: Position of the first row within the shard.

        Returns:
            One row per user.
        """
        rows = self.arrays(entry, table, first_row)
        return trained_numbers(rows, table["subset"].to_numpy())

    def arrays(self, entry: ShardEntry, table: pa.Table, first_row: int = 0) -> HistoryArrays:
        """Return all users of a table with their indices; see `known_users`."""
        first, step = self.numbering(entry.shard)
        return history_arrays(table, first + step * first_row, step)

    def numbering(self, shard: int) -> tuple[int, int]:
        """Return the index of a shard's first user, and the step to the next."""
        return numbering(shard, self.manifest.made_from.num_shards)


def read_table(folder: Folder, entry: StoredFile, columns: list[str] | None = None) -> pa.Table:
    """Read a file while the dataset is being prepared; see `Dataset.table`."""
    content = folder.read(entry.name)
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise DataError(
            f"{folder / entry.name}: content differs from the manifest; the file was damaged or "
            "changed, run prepare again"
        )
    return pq.read_table(pa.BufferReader(content), columns=columns, use_threads=False)


def numbering(shard: int, num_shards: int) -> tuple[int, int]:
    """Return the index of a shard's first user, and the step to the next; see `Dataset`."""
    return shard, num_shards
