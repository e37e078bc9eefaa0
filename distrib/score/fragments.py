"""The unit of bulk scoring: a run of row groups of one input file, and its one output file."""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from distrib.data.collate import rows_of, trained_numbers
from distrib.data.hashing import HashArray
from distrib.data.prepared import user_number
from distrib.errors import DataError
from distrib.score.lists import DIGEST, Histories, lists_of, read_histories
from distrib.score.policy import ScoreConfig
from distrib.score.rules import Rules
from distrib.score.scorer import Scorer
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary

RECEIPTS = "_receipts"
"""Folder of what is known of each finished part; a part counts once its receipt is there."""

_TABLE_USERS = 16_384
_FOOTERS_AT_ONCE = 16


class Fragment(NamedTuple):
    """Some users of one input file, and where their lists go."""

    name: str
    """Of the input file."""

    first_group: int
    last_group: int
    """Row groups ``[first, last)``."""

    first_row: int
    """Rows of the file before these."""

    num_rows: int
    part: str
    """Of the output file."""

    sha256: str | None = None
    """Of the input file, where it is known."""

    shard: tuple[int, int] | None = None
    """Shard and number of shards, where users have numbers that the model knows."""

    @property
    def receipt(self) -> str:
        """Name of the receipt."""
        return f"{RECEIPTS}/{self.part.removesuffix('.parquet')}.json"


def fragments_of(
    histories: Folder, files: Sequence[Mapping[str, Any]], fragment_users: int
) -> list[Fragment]:
    """Cut files into fragments: a pure function of the files.

    Args:
        histories: Their folder.
        files: ``name`` and, where they are known, ``sha256``, ``shard`` and ``num_shards``.
        fragment_users: Users of a fragment, about.

    Returns:
        Fragments in the order of files and rows; a file without rows has one of none.

    Raises:
        DataError: A file is no Parquet file.
    """
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        lengths = list(pool.map(lambda file: _group_lengths(histories, file["name"]), files))
    found: list[Fragment] = []
    for file, groups in zip(files, lengths, strict=True):
        shard = (file["shard"], file["num_shards"]) if "shard" in file else None
        low, first_row = 0, 0
        while low < len(groups) or (low == 0 and not groups):
            high, num_rows = low, 0
            while high < len(groups) and (
                num_rows == 0 or num_rows + groups[high] <= fragment_users
            ):
                num_rows += groups[high]
                high += 1
            part = f"part-{len(found):05d}.parquet"
            found.append(
                Fragment(
                    file["name"], low, high, first_row, num_rows, part, file.get("sha256"), shard
                )
            )
            low, first_row = high, first_row + num_rows
            if not groups:
                break
    return found


def _group_lengths(histories: Folder, name: str) -> list[int]:
    with histories.open(name) as file:
        try:
            metadata = pq.ParquetFile(file).metadata
        except pa.ArrowException as error:
            raise DataError(f"{histories / name}: is no Parquet file ({error})") from error
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


class Part:
    """A Parquet file that grows on the local disk and appears in its folder whole, or not at all.

    Args:
        folder: Where to.
        name: Of the file.
    """

    entry: dict[str, Any]
    """``bytes`` and ``sha256``, once it is there."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name = folder, name
        self._local = tempfile.TemporaryDirectory()
        self._path = Path(self._local.name) / name
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "Part":
        return self

    def write(self, table: pa.Table) -> None:
        """Add rows; the first table gives the columns."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema, compression="zstd")
        self._writer.write_table(table, row_group_size=_TABLE_USERS)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._local:
            if self._writer is not None:
                self._writer.close()
            if kind is None:
                self.entry = self._folder.upload(self._name, self._path)


class FragmentScorer:
    """A model and what it scores, ready to write one fragment after another.

    Args:
        scorer: The model.
        histories: Folder of the input files.
        source: The vocabulary that items are positions in; None when they are original ids.
        output: Folder of the output files.
        config: What is wanted.
        unchanged: Ascending digests of histories to pass over.
    """

    def __init__(
        self,
        scorer: Scorer,
        histories: Folder,
        source: Vocabulary | None,
        output: Folder,
        config: ScoreConfig,
        unchanged: HashArray | None = None,
    ) -> None:
        self.scorer = scorer
        self.histories = histories
        self.source = source
        self.output = output
        self.config = config
        self.unchanged = unchanged
        self.rules = Rules.of(config.policy, scorer.model, scorer.vocabulary)

    def write(self, fragment: Fragment, recipe: str) -> dict[str, Any]:
        """Score a fragment and write its part whole, then its receipt.

        The part is a pure function of the fragment, model and policy, so that writing it again
        changes nothing; memory is that of a few thousand users, whatever the fragment's size.

        Args:
            fragment: What is to be scored.
            recipe: Digest of all that the lists depend on.

        Returns:
            The receipt: counts of users and interactions, size and digest of the part.

        Raises:
            DataError: The input is not what it was, or cannot be read.
        """
        counts: dict[str, Counter[str]] = {
            kind: Counter() for kind in ("users", "rejected", "interactions", "empty")
        }
        with Part(self.output, fragment.part) as part:
            for table, first_row in self._tables(fragment):
                part.write(self._scored(table, fragment, first_row, counts))
        read = counts["users"]["read"]
        if read != fragment.num_rows:
            raise DataError(
                f"{self.histories / fragment.name}: {read} users read where {fragment.num_rows} "
                "were; the file was changed meanwhile, start again"
            )
        receipt = {"name": fragment.part, "recipe": recipe, **part.entry, **counts}
        self.output.write_json(fragment.receipt, receipt)
        return receipt

    def _scored(
        self,
        table: pa.Table,
        fragment: Fragment,
        first_row: int,
        counts: dict[str, Counter[str]],
    ) -> pa.Table:
        read = read_histories(self.scorer.vocabulary, table, self.source)
        if fragment.shard is not None:
            numbers = _numbers(table, fragment, first_row)[read.kept_B]
            read = read._replace(source=read.source._replace(user_B=torch.from_numpy(numbers)))
        num_users = len(read.user)
        if self.unchanged is not None:
            read = _changed(read, self.unchanged)
        lists = lists_of(self.scorer, read, self.config, self.rules)
        counts["users"].update(
            read=len(table), scored=len(read.user), unchanged=num_users - len(read.user)
        )
        counts["rejected"].update(read.rejected)
        counts["interactions"].update(read.fates)
        counts["empty"].update(_empty(lists, len(read.user)))
        return lists

    def _tables(self, fragment: Fragment) -> Iterator[tuple[pa.Table, int]]:
        """Yield the fragment piece by piece, with the number of the file's rows before each."""
        columns = ["user", "items", "ratings", "candidates"]
        if fragment.shard is not None:
            columns += ["subset", "roles"]
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
        """Open the input file, checked against its digest where there is one."""
        if fragment.sha256 is None:
            with self.histories.open(fragment.name) as file:
                yield file
            return
        content = self.histories.read(fragment.name)
        if hashlib.sha256(content).hexdigest() != fragment.sha256:
            raise DataError(
                f"{self.histories / fragment.name}: content differs from the manifest; it was "
                "damaged or changed, prepare the data anew"
            )
        yield pa.BufferReader(content)


def _numbers(table: pa.Table, fragment: Fragment, first_row: int) -> Any:
    """Return the numbers of users as training knew them, -1 for those that it did not see."""
    assert fragment.shard is not None
    first, step = user_number(*fragment.shard)
    rows = rows_of(table, first + step * first_row, step)
    return trained_numbers(rows, table["subset"].to_numpy()).number_B


def _changed(read: Histories, unchanged: HashArray) -> Histories:
    """Leave out the users whose history is as it was."""
    place_B = np.searchsorted(unchanged, read.digest_B)
    is_same_B = np.append(unchanged, np.uint64(0))[place_B] == read.digest_B
    is_same_B &= place_B < len(unchanged)
    if not is_same_B.any():
        return read
    wanted = torch.from_numpy(np.flatnonzero(~is_same_B))
    limits = read.limits
    return read._replace(
        user=read.user.filter(pa.array(~is_same_B)),
        source=read.source.chosen(wanted),
        seen=read.seen.chosen(wanted),
        limits=limits
        and limits._replace(
            cells=limits.cells.chosen(wanted), is_limited_B=limits.is_limited_B[wanted]
        ),
        digest_B=read.digest_B[~is_same_B],
    )


def _empty(lists: pa.Table, num_users: int) -> dict[str, int]:
    """Count the users whose list has no item, by list."""
    if "rank" in lists.column_names:
        return {"items": num_users - len(pc.unique(lists[DIGEST]))}
    names = [name for name in lists.column_names if name.endswith("items")]
    lengths = {name: pc.list_value_length(lists[name]) for name in names}
    return {name: int(pc.sum(pc.equal(n, 0)).as_py() or 0) for name, n in lengths.items()}
