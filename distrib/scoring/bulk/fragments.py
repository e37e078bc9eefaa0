"""The unit of bulk scoring: consecutive row groups of one input file, and their output file."""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from distrib.config import read_record
from distrib.data.dataset import numbering
from distrib.data.hashing import HashArray
from distrib.data.history_arrays import history_arrays, trained_numbers
from distrib.errors import DataError
from distrib.scoring.commit import SUCCESS, PartManifest, Publication, Success
from distrib.scoring.histories import (
    DIGEST,
    HISTORY_COLUMNS,
    Histories,
    chosen,
    read_histories,
    user_hashes,
    without_new_users,
)
from distrib.scoring.policy import ScoreConfig
from distrib.scoring.rules import Rules
from distrib.scoring.scorer import Scorer
from distrib.scoring.tables import lists_of
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary

_TABLE_USERS = 16_384
_ROW_GROUP_BYTES = 32 << 20
_FOOTERS_AT_ONCE = 16


class InputFile(NamedTuple):
    """A file of histories to score."""

    name: str
    sha256: str | None = None
    """Digest, if known."""

    stamp: str | None = None
    """Version stamp of the store, if the digest is not known."""

    shard: tuple[int, int] | None = None
    """Shard and number of shards, if the model was trained on this data."""


class Fragment(NamedTuple):
    """Some users of one input file, and the output file of their lists."""

    name: str
    """Name of the input file."""

    first_group: int
    last_group: int
    """Row groups ``[first, last)``."""

    first_row: int
    """Number of rows of the file before these."""

    num_rows: int
    part: str
    """Name of the output file."""

    sha256: str | None = None
    """Digest of the input file, if known."""

    stamp: str | None = None
    """Version stamp of the input file, if its digest is not known."""

    shard: tuple[int, int] | None = None
    """Shard and number of shards, if the model was trained on this data."""


def fragments_of(
    histories: Folder, files: Sequence[InputFile], fragment_users: int
) -> list[Fragment]:
    """Split files into fragments: a pure function of the files.

    Args:
        histories: Folder of the files.
        files: All input files.
        fragment_users: Approximate number of users per fragment.

    Returns:
        Fragments in the order of files and rows; a file without rows has one empty fragment.

    Raises:
        DataError: A file is not a valid Parquet file.
    """
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        lengths = list(pool.map(lambda file: _group_lengths(histories, file.name), files))
    found: list[Fragment] = []
    for file, groups in zip(files, lengths, strict=True):
        for low, high in _cut(groups, fragment_users):
            found.append(
                Fragment(
                    name=file.name,
                    first_group=low,
                    last_group=high,
                    first_row=sum(groups[:low]),
                    num_rows=sum(groups[low:high]),
                    part=f"part-{len(found):05d}.parquet",
                    sha256=file.sha256,
                    stamp=file.stamp,
                    shard=file.shard,
                )
            )
    return found


def _cut(groups: Sequence[int], fragment_users: int) -> list[tuple[int, int]]:
    """Split row groups into runs of at most ``fragment_users`` rows, or of one larger group."""
    runs, low, rows = [], 0, 0
    for group, length in enumerate(groups):
        if group > low and rows + length > fragment_users:
            runs.append((low, group))
            low, rows = group, 0
        rows += length
    return [*runs, (low, len(groups))]


def _group_lengths(histories: Folder, name: str) -> list[int]:
    with histories.open(name) as file:
        try:
            metadata = pq.ParquetFile(file).metadata
        except pa.ArrowException as error:
            raise DataError(f"{histories / name}: is not a valid Parquet file ({error})") from error
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


class PreviousRun(NamedTuple):
    """History digests from a previous run and the runs it followed; 16 bytes per user."""

    user_U: HashArray
    """Hashes of user ids, ascending."""

    digest_U: HashArray
    """Digest of the history that was scored last."""

    @classmethod
    def of(cls, folders: Sequence[Folder]) -> "PreviousRun":
        """Read the digests of scoring runs, the latest first.

        Args:
            folders: Output folders with a manifest.

        Returns:
            For each user the digest in the first folder that has one.
        """
        tables = [
            folder.read_parquet(entry.name, ["user", DIGEST])
            for folder in folders
            for entry in read_record(Success, folder.read_json(SUCCESS), folder / SUCCESS).files
        ]
        users = [user_hashes(table["user"]) for table in tables]
        digests = [table[DIGEST].to_numpy().view(np.uint64) for table in tables]
        none = np.zeros(0, np.uint64)
        user_U, place_U = np.unique(np.concatenate([none, *users]), return_index=True)
        return cls(user_U, np.concatenate([none, *digests])[place_U])

    def digests_of(self, user_B: HashArray) -> HashArray:
        """Return the digest of each user, 0 for those that were not scored."""
        if not len(self.user_U):
            return np.zeros(len(user_B), np.uint64)
        place_B = np.searchsorted(self.user_U, user_B).clip(max=len(self.user_U) - 1)
        return np.where(self.user_U[place_B] == user_B, self.digest_U[place_B], np.uint64(0))


class Part:
    """A Parquet file that is written to local disk and then uploaded atomically.

    Args:
        folder: Target folder.
        name: Name of the file.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self.size, self.digest = 0, ""
        """Size and digest of the file, once it is uploaded."""
        self._folder, self._name = folder, name
        self._local = tempfile.TemporaryDirectory()
        self._path = Path(self._local.name) / name
        self._writer: pq.ParquetWriter | None = None
        self._held: list[pa.Table] = []

    def __enter__(self) -> "Part":
        return self

    def write(self, table: pa.Table) -> None:
        """Add rows; they are buffered into row groups. The first table sets the schema."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema, compression="zstd")
        self._held.append(table)
        rows = sum(len(held) for held in self._held)
        if rows >= _TABLE_USERS or sum(held.nbytes for held in self._held) >= _ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._writer is not None and self._held:
            joined = pa.concat_tables(self._held)
            self._writer.write_table(joined, row_group_size=max(len(joined), 1))
        self._held = []

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._local:
            if kind is None:
                self._flush()
            if self._writer is not None:
                self._writer.close()
            if kind is None:
                self.size, self.digest = self._folder.upload(self._name, self._path)


class FragmentScorer:
    """Scores fragments and writes their parts.

    Args:
        scorer: The model.
        histories: Folder of the input files.
        source: The vocabulary that items are positions in; None if they are original ids.
        publication: Receives the parts and their manifests.
        config: Settings of the lists.
        previous: Digests of a previous run; users with unchanged histories are skipped.
    """

    def __init__(
        self,
        scorer: Scorer,
        histories: Folder,
        source: Vocabulary | None,
        publication: Publication,
        config: ScoreConfig,
        previous: PreviousRun | None = None,
    ) -> None:
        self.scorer = scorer
        self.histories = histories
        self.source = source
        self.publication = publication
        self.config = config
        self.previous = previous
        self.rules = Rules.of(config.policy, scorer.model, scorer.vocabulary)

    def write(self, fragment: Fragment) -> PartManifest:
        """Score a fragment and write its part, then the part manifest.

        The part is a pure function of the fragment, model and policy, so retries are idempotent.
        Memory is bounded by one batch and one row group of lists, whatever the fragment's size.

        Args:
            fragment: The fragment to score.

        Returns:
            The part manifest.

        Raises:
            DataError: The input changed or cannot be read.
        """
        counts: dict[str, Counter[str]] = {
            kind: Counter() for kind in ("users", "rejected", "interactions", "empty")
        }
        self._require_unchanged(fragment, fragment.num_rows)
        with Part(self.publication.work, fragment.part) as part:
            for table, first_row in self._tables(fragment):
                try:
                    read = self._read(table, fragment, first_row, counts)
                except DataError as error:
                    raise DataError(f"{self.histories / fragment.name}: {error}") from error
                for lists, num_users in lists_of(self.scorer, read, self.config, self.rules):
                    part.write(lists)
                    counts["empty"].update(_empty(lists, num_users))
        self._require_unchanged(fragment, counts["users"]["read"])
        manifest = PartManifest(
            name=fragment.part,
            bytes=part.size,
            sha256=part.digest,
            **{kind: dict(found) for kind, found in counts.items()},
        )
        self.publication.note(manifest)
        return manifest

    def _require_unchanged(self, fragment: Fragment, num_rows: int) -> None:
        """Refuse a file that changed since scoring was planned."""
        is_same = fragment.stamp in {None, self.histories.stamp(fragment.name)}
        if num_rows != fragment.num_rows or not is_same:
            raise DataError(
                f"{self.histories / fragment.name}: changed while it was scored; start again"
            )

    def _read(
        self,
        table: pa.Table,
        fragment: Fragment,
        first_row: int,
        counts: dict[str, Counter[str]],
    ) -> Histories:
        """Read the histories to score, and count all others."""
        read = read_histories(self.scorer.vocabulary, table, self.source)
        if fragment.shard is not None:
            numbers = _numbers(table, fragment, first_row)[read.kept_B]
            read = read._replace(source=read.source._replace(user_B=torch.from_numpy(numbers)))
        if self.config.new_users == "reject":
            read = without_new_users(read)
        num_users = len(read.user)
        counts["rejected"].update(read.rejected)
        counts["interactions"].update(read.row_status)
        if self.previous is not None:
            read = _changed(read, self.previous)
        scored = len(read.user)
        counts["users"].update(read=len(table), scored=scored, unchanged=num_users - scored)
        return read

    def _tables(self, fragment: Fragment) -> Iterator[tuple[pa.Table, int]]:
        """Yield the fragment's tables, each with the number of file rows before it."""
        columns = {*HISTORY_COLUMNS}
        if fragment.shard is not None:  # prepared, so in order already
            columns = columns - {"times"} | {"subset", "roles"}
        with self._opened(fragment) as stream:
            file = pq.ParquetFile(stream)
            held = [name for name in columns if name in file.schema_arrow.names]
            groups = range(fragment.first_group, fragment.last_group)
            first_row = fragment.first_row
            for batch in file.iter_batches(
                _TABLE_USERS, row_groups=list(groups), columns=held, use_threads=False
            ):
                yield pa.Table.from_batches([batch]), first_row
                first_row += len(batch)
            if not fragment.num_rows:
                yield file.schema_arrow.empty_table().select(held), first_row

    @contextmanager
    def _opened(self, fragment: Fragment) -> Iterator[BinaryIO | pa.BufferReader]:
        """Open the input file and verify its digest, if known."""
        if fragment.sha256 is None:
            with self.histories.open(fragment.name) as file:
                yield file
            return
        content = self.histories.read(fragment.name)
        if hashlib.sha256(content).hexdigest() != fragment.sha256:
            raise DataError(
                f"{self.histories / fragment.name}: content differs from the manifest; it was "
                "damaged or changed, run prepare again"
            )
        yield pa.BufferReader(content)


def _numbers(table: pa.Table, fragment: Fragment, first_row: int) -> Any:
    """Return the training indices of users, -1 for users that training did not see."""
    assert fragment.shard is not None
    first, step = numbering(*fragment.shard)
    rows = history_arrays(table, first + step * first_row, step)
    return trained_numbers(rows, table["subset"].to_numpy()).number_B


def _changed(read: Histories, previous: PreviousRun) -> Histories:
    """Leave out users whose history is unchanged since it was scored last."""
    is_same_B = previous.digests_of(user_hashes(read.user)) == read.digest_B
    return chosen(read, ~is_same_B) if is_same_B.any() else read


def _empty(lists: pa.Table, num_users: int) -> dict[str, int]:
    """Count the users with an empty list, by list."""
    if "rank" in lists.column_names:
        return {"items": num_users - len(pc.unique(lists[DIGEST]))}
    names = [name for name in lists.column_names if name.endswith("items")]
    lengths = {name: pc.list_value_length(lists[name]) for name in names}
    return {name: int(pc.sum(pc.equal(n, 0)).as_py() or 0) for name, n in lengths.items()}
