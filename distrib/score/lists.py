"""Tables of histories in, tables of recommendations out."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from distrib.batch import Batch
from distrib.data.columns import whole
from distrib.data.hashing import HashArray, hash_ids, mixed
from distrib.data.schema import Status
from distrib.errors import DataError
from distrib.score.candidates import Limits
from distrib.score.policy import Output, ScoreConfig
from distrib.score.rules import Rules
from distrib.score.scorer import Recommendations, Scorer, Unlikely
from distrib.vocabulary import IntArray, Vocabulary, on_scale

_UNKNOWN_ITEM = Status.ITEM_UNSEEN_IN_TRAINING.reason
_DUPLICATE = Status.DUPLICATE.reason
_OFF_SCALE = Status.RATING_OUTSIDE_SCALE.reason

FATES = ("used", _UNKNOWN_ITEM, _OFF_SCALE, _DUPLICATE)

NO_USER = "no user id"
NO_HISTORY = "no list of items"
UNEVEN = "items and ratings differ in number"

DIGEST = "history_digest"
"""Column by which a later run knows that a history is as it was."""


class Histories(NamedTuple):
    """Histories in the model's positions, one row for each user that can be scored."""

    user: pa.Array
    source: Batch
    """What the model may read."""

    seen: Batch
    """What is known to be seen, ratings off the scale included."""

    limits: Limits | None
    digest_B: HashArray
    fate_BF: IntArray
    """Interactions of each user by what became of them, in the order of `FATES`."""

    rejected: dict[str, int]
    """Users that cannot be scored, by reason."""

    kept_B: npt.NDArray[np.bool_]
    """Which rows of the table these users are."""

    @property
    def fates(self) -> dict[str, int]:
        """Interactions by what became of them: ``used``, or a reason."""
        return dict(zip(FATES, self.fate_BF.sum(0).tolist(), strict=True))

    def rows(self, low: int, high: int) -> "Histories":
        """Return some of the users; the accounts stay those of all."""
        limits = self.limits
        if limits is not None:
            limits = Limits(limits.cells.rows(low, high), limits.is_limited_B[low:high])
        return self._replace(
            user=self.user.slice(low, high - low),
            source=self.source.rows(low, high),
            seen=self.seen.rows(low, high),
            limits=limits,
            digest_B=self.digest_B[low:high],
        )


def recommend_table(
    scorer: Scorer,
    table: pa.Table,
    source: Vocabulary | None,
    config: ScoreConfig,
    rules: Rules | None = None,
) -> tuple[pa.Table, Histories]:
    """Recommend to the users of a table of histories.

    Args:
        scorer: The model.
        table: ``user``, ``items`` and, where there are any, ``ratings`` and ``candidates``.
        source: The vocabulary that ``items`` are positions in; None when they are original ids.
        config: What is wanted; its policy holds where no rules are given.
        rules: The policy, made ready.

    Returns:
        The recommendations, in the order of the users, and what was read.

    Raises:
        DataError: A column is absent, or the model needs ratings and there are none.
    """
    read = read_histories(scorer.vocabulary, table, source)
    rules = Rules.of(config.policy, scorer.model, scorer.vocabulary) if rules is None else rules
    parts = [lists for lists, _ in lists_of(scorer, read, config, rules)]
    return pa.concat_tables(parts), read


def lists_of(
    scorer: Scorer, read: Histories, config: ScoreConfig, rules: Rules
) -> Iterator[tuple[pa.Table, int]]:
    """Yield lists and the number of users they are of, so many at a time; see `recommend_table`."""
    size = config.batch_users
    for start in range(0, max(len(read.user), 1), size):
        part = read.rows(start, min(start + size, len(read.user)))
        yield _table(scorer, part, config, rules), len(part.user)


def read_histories(vocabulary: Vocabulary, table: pa.Table, source: Vocabulary | None) -> Histories:
    """Translate histories to the model's positions.

    Args:
        vocabulary: The model's.
        table: See `recommend_table`.
        source: See `recommend_table`.

    Returns:
        What can be scored, and what became of the rest.

    Raises:
        DataError: See `recommend_table`.
    """
    require_columns(table.column_names)
    levels, item_count = vocabulary.levels, len(vocabulary)
    is_unrated = "ratings" not in table.column_names or (source and len(source.levels) == 1)
    if is_unrated and len(levels) > 1:
        raise DataError(
            f"the histories have no ratings (column 'ratings'), which this model reads, on levels "
            f"{list(levels)}"
        )
    kept_B, rejected = _scorable(table, is_rated=not is_unrated)
    if rejected:
        table = table.filter(pa.array(kept_B))
    pointer_P, item_N = _flat(table, "items")
    value_N = np.ones(len(item_N), np.float32) if is_unrated else _ratings(table)
    position_N = _positions(vocabulary, item_N, source)
    is_known_N = position_N >= 0
    is_scaled_N = is_known_N if is_unrated else on_scale(value_N.astype(np.float64), levels)
    row_N = np.repeat(np.arange(len(table)), np.diff(pointer_P))
    is_last_N = np.ones(len(item_N), dtype=bool)
    if source is None:  # prepared histories hold an item once
        is_last_N = _last_of_each(row_N * (item_count + 1) + position_N + 1)
    whole_batch = Batch(
        torch.full((len(table),), -1),
        torch.from_numpy(pointer_P),
        torch.from_numpy(position_N),
        torch.from_numpy(np.nan_to_num(value_N.astype(np.float32))),
    )
    fate_N = np.select([~is_known_N, ~is_scaled_N, ~is_last_N], [1, 2, 3], 0)
    used_N = fate_N == 0
    is_whole = bool(used_N.all())
    fate_BF = np.bincount(row_N * len(FATES) + fate_N, minlength=len(table) * len(FATES))
    return Histories(
        whole(table["user"]),
        whole_batch if is_whole else whole_batch.keep(torch.from_numpy(used_N)),
        whole_batch if is_whole else whole_batch.keep(torch.from_numpy(is_known_N)),
        _limits(vocabulary, table) if "candidates" in table.column_names else None,
        _digests(table, pointer_P, item_N, value_N, source),
        fate_BF.reshape(-1, len(FATES)),
        rejected,
        kept_B,
    )


def require_columns(names: list[str]) -> None:
    """Refuse a table of histories that lacks a column.

    Args:
        names: The columns that it has.

    Raises:
        DataError: ``user`` or ``items`` is not among them.
    """
    absent = [name for name in ("user", "items") if name not in names]
    if absent:
        raise DataError(f"histories lack column(s) {absent}; they have {names}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"histories have column(s) {twice} more than once; leave one of each")


def _scorable(table: pa.Table, *, is_rated: bool) -> tuple[npt.NDArray[np.bool_], dict[str, int]]:
    """Tell which rows are a user with a history, and count the others by reason."""
    kind = table["user"].type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ):
        raise DataError(f"column 'user' is {table['user'].type}; ids are numbers or texts, cast it")
    for name in ("items", "ratings", "candidates"):
        if name in table.column_names:
            _require_list(name, table[name].type)
    no_user_B = pc.is_null(table["user"]).to_numpy()
    lengths_B = pc.list_value_length(table["items"])
    no_history_B = pc.is_null(lengths_B).to_numpy()
    uneven_B = np.zeros(len(table), dtype=bool)
    if is_rated:
        rated_B = pc.fill_null(pc.list_value_length(table["ratings"]), -1)
        uneven_B = pc.not_equal(pc.fill_null(lengths_B, -1), rated_B).to_numpy()
    rejected, left_B = {}, np.ones(len(table), dtype=bool)
    for reason, is_so_B in ((NO_USER, no_user_B), (NO_HISTORY, no_history_B), (UNEVEN, uneven_B)):
        count = int((left_B & is_so_B).sum())
        if count:
            rejected[reason] = count
        left_B &= ~is_so_B
    return left_B, rejected


def _require_list(name: str, kind: pa.DataType) -> None:
    if not pa.types.is_list(kind) and not pa.types.is_large_list(kind):
        raise DataError(f"column {name!r} is {kind}, not a list; give one list for each user")


def _flat(table: pa.Table, name: str) -> tuple[IntArray, pa.Array]:
    """Return row pointers and the values of a list column; values may be null, lists are empty."""
    lengths = pc.fill_null(pc.list_value_length(table[name]), 0).to_numpy()
    pointer_P = np.concatenate([[0], lengths]).cumsum().astype(np.int64)
    return pointer_P, whole(pc.list_flatten(table[name]))


def _ratings(table: pa.Table) -> npt.NDArray[Any]:
    _, values = _flat(table, "ratings")
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        if len(values):
            raise DataError(f"column 'ratings' holds {values.type}, not numbers; cast it")
        return np.zeros(0, np.float32)
    if values.null_count:
        values = pc.fill_null(values.cast(pa.float64()), np.nan)
    return np.asarray(values.to_numpy(zero_copy_only=False))


def _positions(vocabulary: Vocabulary, item_N: pa.Array, source: Vocabulary | None) -> IntArray:
    if source is None:
        is_told = not pa.types.is_null(item_N.type)  # whether they are numbers or texts
        return vocabulary.positions(item_N) if is_told else np.zeros(len(item_N), np.int64) - 1
    return np.asarray(_translation(vocabulary, source)[item_N.to_numpy()])


@lru_cache(maxsize=4)
def _translation(vocabulary: Vocabulary, source: Vocabulary) -> IntArray:
    """Return the model's position of each item of a prepared folder, -1 for none."""
    if source.fingerprint == vocabulary.fingerprint:
        return np.arange(len(source))
    return vocabulary.positions(source.ids)


@lru_cache(maxsize=4)
def _hashed(source: Vocabulary) -> HashArray:
    return hash_ids(source.ids, 1)


def _limits(vocabulary: Vocabulary, table: pa.Table) -> Limits:
    """Read each user's candidates; a null list leaves the user the whole catalogue."""
    pointer_P, item_N = _flat(table, "candidates")
    position_N = _positions(vocabulary, item_N, None)
    cells = Batch(
        torch.full((len(table),), -1),
        torch.from_numpy(pointer_P),
        torch.from_numpy(position_N),
        torch.ones(len(position_N)),
    )
    is_limited_B = ~pc.is_null(table["candidates"]).to_numpy()
    return Limits(cells.keep(cells.item_N >= 0), torch.from_numpy(is_limited_B))


def _digests(
    table: pa.Table,
    pointer_P: IntArray,
    item_N: pa.Array,
    value_N: npt.NDArray[Any],
    source: Vocabulary | None,
) -> HashArray:
    """Return a hash of each user with the history, the same from prepared data and from ids."""
    hash_N = _hashed(source)[item_N.to_numpy()] if source else _hashes(item_N, 1)
    bits_N = value_N.astype(np.float32).view(np.uint32).astype(np.uint64)
    place_N = np.arange(len(item_N)) - np.repeat(pointer_P[:-1], np.diff(pointer_P))
    with np.errstate(over="ignore"):
        cell_N = mixed(hash_N + mixed(bits_N + (place_N.astype(np.uint64) << np.uint64(32))))
        before = np.concatenate([np.zeros(1, np.uint64), np.cumsum(cell_N, dtype=np.uint64)])
        return mixed(before[pointer_P[1:]] - before[pointer_P[:-1]] + user_hashes(table["user"]))


def user_hashes(users: pa.Array | pa.ChunkedArray) -> HashArray:
    """Return a hash of each user's id."""
    return _hashes(users, 2)


def _hashes(ids: pa.Array | pa.ChunkedArray, use: int) -> HashArray:
    joined = whole(ids)
    if len(joined) == 0:
        return np.zeros(0, np.uint64)
    if joined.null_count:  # an id that no vocabulary holds; what matters is that it stays the same
        joined = pc.fill_null(joined, -1 if pa.types.is_integer(joined.type) else "")
    return hash_ids(joined, use)


def _last_of_each(key_N: IntArray) -> Any:
    """Tell which entries are the last with their key, bool."""
    is_last_N = np.zeros(len(key_N), dtype=bool)
    _, places = np.unique(key_N[::-1], return_index=True)
    is_last_N[len(key_N) - 1 - places] = True
    return is_last_N


def _table(scorer: Scorer, read: Histories, config: ScoreConfig, rules: Rules) -> pa.Table:
    """Lay out what is wanted of some users."""
    columns: dict[str, Any] = {"user": read.user, DIGEST: pa.array(read.digest_B)}
    if config.outputs and "embedding" in config.outputs:
        vector_BZ = scorer.embed(read.source)
        flat = pa.array(vector_BZ.flatten().numpy())
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, vector_BZ.shape[1])
    if config.makes_lists:
        columns |= _lists(scorer, read, config, rules)
    table = pa.table(columns)
    return _long(table) if config.form == "long" and config.makes_lists else table


def _lists(
    scorer: Scorer, read: Histories, config: ScoreConfig, rules: Rules
) -> dict[str, pa.Array]:
    seen = read.seen if config.policy.exclude_seen else None
    tells = config.outputs is None or bool({*config.outputs} - {"score", "embedding"})
    lists = scorer.recommend(
        read.source, seen, config.k, rules=rules, limits=read.limits, tells=tells
    )
    columns = _columns(scorer, lists, config.outputs, "")
    if config.serendipitous_k:
        second = scorer.serendipitous(
            read.source,
            seen,
            config.serendipitous_k,
            unlikely=Unlikely(config.unlikely_share, config.min_support),
            rules=rules,
            limits=read.limits,
        )
        columns |= _columns(scorer, second, config.outputs, "serendipitous_")
    return columns


def told_values(
    scorer: Scorer, lists: Recommendations, outputs: tuple[Output, ...] | None
) -> dict[str, torch.Tensor]:
    """Return what is told of the items of lists, by the name of its column.

    Args:
        scorer: What made the lists.
        lists: The lists.
        outputs: What is wanted; None for all but serendipity.

    Returns:
        ``[B, K]`` each, the distribution of ratings ``[B, K, L]``.

    Raises:
        DataError: The model does not tell something that is asked for.
    """
    opinion, levels = lists.opinion, scorer.vocabulary.levels
    found: dict[Output, torch.Tensor | None] = {"score": lists.score_BK}
    if opinion is not None:
        found |= {"probability": opinion.probability_BI, "rating": opinion.rating_BI}
        found |= {"deviation": lists.deviation_BK, "rating_distribution": opinion.level_BIL}
        if opinion.probability_BI is not None and len(levels) > 1:
            love_BK = (opinion.rating_BI - levels[0]) / (levels[-1] - levels[0])
            found["serendipity"] = (1.0 - opinion.probability_BI) * love_BK
    absent = [name for name in outputs or () if name != "embedding" and found.get(name) is None]
    if absent:
        told = sorted(name for name, value in found.items() if value is not None)
        raise DataError(
            f"score.outputs: {type(scorer.model).__name__} tells {', '.join(told)}, but not "
            f"{', '.join(absent)}; leave that out"
        )
    wanted = outputs or tuple(name for name in found if name != "serendipity")
    return {
        _COLUMN_OF[name]: value
        for name, value in found.items()
        if value is not None and name in wanted
    }


_COLUMN_OF: dict[str, str] = {
    "score": "scores",
    "probability": "probabilities",
    "rating": "ratings",
    "deviation": "deviations",
    "rating_distribution": "rating_distribution",
    "serendipity": "serendipity",
}


def _columns(
    scorer: Scorer, lists: Recommendations, outputs: tuple[Output, ...] | None, prefix: str
) -> dict[str, pa.Array]:
    """Lay lists out as Arrow columns, without the places that had no candidate."""
    present_BK = lists.item_BK >= 0
    pointer = np.concatenate([[0], present_BK.sum(1).cumsum(0).numpy()]).astype(np.int32)
    ids = scorer.vocabulary.ids.take(pa.array(lists.item_BK[present_BK].numpy()))
    columns = {"items": pa.ListArray.from_arrays(pointer, ids)}
    for name, value in told_values(scorer, lists, outputs).items():
        chosen = value[present_BK].contiguous()
        flat = pa.array(chosen.flatten().numpy())
        if chosen.dim() > 1:
            flat = pa.FixedSizeListArray.from_arrays(flat, chosen.shape[1])
        columns[name] = pa.ListArray.from_arrays(pointer, flat)
    return {prefix + name: value for name, value in columns.items()}


def _long(table: pa.Table) -> pa.Table:
    """Turn one row for each user into one for each recommendation, the best of a user first."""
    items = whole(table["items"])
    row_N = pc.list_parent_indices(items)
    pointer_P, _ = _flat(table, "items")
    rank_N = np.arange(pointer_P[-1]) - np.repeat(pointer_P[:-1], np.diff(pointer_P)) + 1
    columns: dict[str, Any] = {}
    for name in table.column_names:
        column = whole(table[name])
        if pa.types.is_list(column.type):
            columns[SINGULAR.get(name, name)] = column.flatten()
        else:
            columns[name] = column.take(row_N)
        if name == "items":
            columns["rank"] = pa.array(rank_N, pa.int32())
    return pa.table(columns)


SINGULAR = {"items": "item"} | {column: name for name, column in _COLUMN_OF.items()}
"""Names in the long form, and of what is told of one item, by column of the nested form."""
