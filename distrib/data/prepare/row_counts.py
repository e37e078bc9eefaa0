"""Row counts of prepare: rows read = rows kept + rows rejected, by reason."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from distrib.cluster.prometheus import keep
from distrib.config import JsonObject
from distrib.data.config import DataConfig
from distrib.data.dataset import ItemShardEntry, RowCounts, ShardEntry, TimeRange, VocabularyEntry
from distrib.data.logs.layout import Layout
from distrib.data.prepare import write
from distrib.data.prepare.stages import Survey
from distrib.data.schema import DAMAGED, Status
from distrib.errors import DataError, excerpt
from distrib.events import emit
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary

_LATE_S = 4_102_444_800  # the year 2100
_EARLY_S = 10**8  # 1973; an earlier time is more likely in days or hours


_REMEDIES = {
    Status.MALFORMED: "check data.source.separator, quoted and multiline",
    Status.NOT_UTF8: 'set data.source.encoding, such as "latin-1"',
    Status.MISSING_ID: "check data.source.columns and null_values",
    Status.ID_NOT_AN_INTEGER: 'set data.source.ids = "string"',
    Status.RATING_NOT_A_NUMBER: "check data.source.decimal, data.ratings.values and unrated",
    Status.RATING_OUTSIDE_SCALE: "check data.ratings.levels, or name what means 'not rated' in "
    "data.ratings.unrated",
    Status.TIME_NOT_A_TIME: "these are no dates of ISO 8601, or no numbers; set "
    "data.source.time_format in strptime's letters, such as '%m/%d/%Y %H:%M', or time_unit",
}
_FILES_LOOKED_AT = 8


class Contents(NamedTuple):
    """Manifest fields that describe the files of a prepared dataset and their content."""

    counts: RowCounts
    levels: tuple[float, ...]
    times: TimeRange
    vocabulary: VocabularyEntry
    hash: str
    shards: tuple[ShardEntry, ...]
    item_histories: tuple[ItemShardEntry, ...] | None

    def set_fields(self) -> JsonObject:
        """Return the fields of a manifest; item histories only if there are any."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def contents(
    folder: Folder,
    survey: Survey,
    shards: list[ShardEntry],
    vocabulary: Vocabulary,
    num_item_files: int | None,
    generation: int = 0,
) -> Contents:
    """Write everything derived from the shards, and describe the dataset.

    Args:
        folder: Folder of the dataset.
        survey: Survey of the rows read.
        shards: Entries of the shards.
        vocabulary: Items.
        num_item_files: At most as many files of item histories are written; none when None.
        generation: Generation of the file names.

    Returns:
        The manifest fields.

    Raises:
        DataError: The counts do not add up.
    """
    name = f"items-g{generation}.parquet" if generation else "items.parquet"
    content = folder.write_parquet(name, vocabulary.to_table())
    digest = hashlib.sha256("".join(shard.sha256 for shard in shards).encode())
    digest.update(vocabulary.fingerprint.encode())
    items = VocabularyEntry(
        name=name,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        fingerprint=vocabulary.fingerprint,
    )
    of_items = None
    if num_item_files is not None:
        of_items = write.write_item_histories(
            shards, num_item_files, vocabulary, folder, generation
        )
    return Contents(
        _accounted(survey, shards, vocabulary),
        vocabulary.levels,
        TimeRange(first=survey.first_s, last=survey.last_s),
        items,
        digest.hexdigest(),
        tuple(shards),
        None if of_items is None else tuple(of_items),
    )


def rows_by_status(counts: RowCounts) -> Counter[int]:
    """Return the rows of a manifest by `Status`; those that shards count themselves are kept."""
    by_reason = {status.reason: int(status) for status in Status}
    found = Counter({by_reason[reason]: n for reason, n in counts.rejected.items()})
    found.pop(int(Status.ITEM_UNSEEN_IN_TRAINING), None)  # counted by shard
    found[int(Status.KEPT)] = counts.read - sum(found.values())
    return found


def check_counts(counts: Counter[int], config: DataConfig, *, may_be_empty: bool = False) -> None:
    """Reject a log with too many damaged rows, or without any kept row.

    Args:
        counts: Rows by `Status`.
        config: Settings with the limit on damaged rows.
        may_be_empty: Whether no kept row is valid, as for a day without events.

    Raises:
        DataError: Lists all counts.
    """
    total, damaged = sum(counts.values()), sum(counts[status] for status in DAMAGED)
    keep("prepare_rows", "Rows read from the log.", total)
    keep("prepare_damaged_rows", "Damaged rows of the log.", damaged)
    reasons = _rejected(counts)
    where = f"; the rows are in {config.prepared}/quarantine" if damaged else ""
    if damaged > config.max_damaged_share * total:
        raise DataError(
            f"{damaged} of {total} rows are damaged, more than data.max_damaged_share = "
            f"{config.max_damaged_share}: {reasons}{where}; {_advice(counts, config.prepared)}; or "
            "raise the share"
        )
    if counts[Status.KEPT] == 0 and not may_be_empty:
        advice = _advice(counts, config.prepared) or "check layout, levels and filters"
        raise DataError(f"no rows left of {total}: {reasons}{where}; {advice}")


def _advice(counts: Counter[int], prepared: str) -> str:
    """Return what to set, with a row of the log for each of the commonest kinds of damage."""
    damage = [(status, counts[status]) for status in DAMAGED if counts[status]]
    commonest = [status for status, _ in sorted(damage, key=lambda each: -each[1])[:2]]
    folder, examples = Folder(prepared) / "quarantine", dict[str, str]()
    for name in folder.files(".parquet")[:_FILES_LOOKED_AT]:
        for row in folder.read_parquet(name).slice(0, 1000).to_pylist():
            examples.setdefault(row["reason"], row["text"] or "")
    advice = []
    for status in commonest:
        text = examples.get(status.reason)
        shown = f" such as {excerpt(text)!r}" if text else ""
        advice.append(f"{status.reason}{shown}: {_REMEDIES[status]}")
    return "; ".join(advice)


def warn_of_signs(vocabulary: Vocabulary) -> None:
    """Warn when no training interaction is a like, or none a dislike, as after a typing error."""
    none = [name for name in ("likes", "dislikes") if vocabulary.sign_counts.get(name) == 0]
    if none:
        emit(
            "no_feedback_of_a_kind",
            none=none,
            training_feedback=vocabulary.sign_counts,
            check="data.feedback: do its values occur in the rating column as they are written?",
        )


def warn_of_times(survey: Survey, layout: Layout) -> None:
    """Warn when times look as if they had another unit."""
    if not layout.has_time or survey.last_s is None:
        return
    guess = None
    if survey.last_s > _LATE_S:
        units = {"ms": 10**3, "us": 10**6, "ns": 10**9}
        guess = next((u for u, size in units.items() if survey.last_s // size < _LATE_S), "ns")
    elif 0 < survey.last_s < _EARLY_S:
        guess = "hours or days; convert them to seconds"
    if guess:
        emit("suspect_time_unit", last_s=survey.last_s, declared=layout.time_unit, likely=guess)


def _rejected(counts: Counter[int]) -> dict[str, int]:
    return {Status(key).reason: counts[key] for key in sorted(counts) if key != Status.KEPT}


def _accounted(survey: Survey, shards: list[ShardEntry], vocabulary: Vocabulary) -> RowCounts:
    counts = survey.counts
    read, rejected = sum(counts.values()), _rejected(counts)
    unseen = sum(shard.unseen_items for shard in shards)
    ties = [shard.tied for shard in shards if shard.tied is not None]
    has_ties = survey.first_s is not None and len(ties) == len(shards)
    if unseen:
        rejected[Status.ITEM_UNSEEN_IN_TRAINING.reason] = unseen
    kept = sum(shard.interactions for shard in shards)
    if read != kept + sum(rejected.values()):
        raise DataError(
            f"{read} rows read, but {kept} kept and {rejected} rejected; report this as a bug"
        )
    return RowCounts(
        read=read,
        kept=kept,
        rejected=rejected,
        users=sum(shard.users for shard in shards),
        items=len(vocabulary),
        training_users=vocabulary.num_users,
        interactions_by_role=_added_up(shard.roles for shard in shards),
        users_by_subset=_added_up(shard.subsets for shard in shards),
        tied=sum(ties) if has_ties else None,
    )


def _added_up(parts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Add up counts by name; zero counts are dropped."""
    return dict(sum(map(Counter, parts), Counter()))
