"""Tables of histories in, tables of recommendations out."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from distrib.batch import Batch
from distrib.data.columns import flat_list, whole
from distrib.data.schema import Status
from distrib.errors import DataError
from distrib.score.policy import ScoreConfig
from distrib.score.scorer import Recommendations, Scorer
from distrib.vocabulary import IntArray, Vocabulary, on_scale

_UNKNOWN_ITEM = Status.ITEM_UNSEEN_IN_TRAINING.reason
_DUPLICATE = Status.DUPLICATE.reason
_OFF_SCALE = Status.RATING_OUTSIDE_SCALE.reason


def recommend_table(
    scorer: Scorer,
    table: pa.Table,
    source: Vocabulary | None,
    config: ScoreConfig,
    number_B: IntArray | None = None,
) -> tuple[pa.Table, dict[str, int]]:
    """Recommend to the users of a table of histories.

    Args:
        scorer: The model.
        table: ``user``, ``items`` and, where there are any, ``ratings``.
        source: The vocabulary that ``items`` are positions in; None when they are original ids.
        config: The policy.
        number_B: Numbers of the users in the data that the model was trained on; None where these
            are other data.

    Returns:
        The recommendations, in the order of the users, and the number of interactions by what
        became of them (``used``, or a reason).

    Raises:
        DataError: A column is absent, or the model needs ratings and there are none.
    """
    read, known, fates = translated(scorer.vocabulary, table, source)
    if number_B is not None:
        read = read._replace(user_B=torch.from_numpy(number_B))
    parts = []
    for start in range(0, max(len(table), 1), config.batch_users):
        stop = min(start + config.batch_users, len(table))
        lists = _lists(scorer, read.rows(start, stop), known.rows(start, stop), config)
        parts.append(pa.table({"user": whole(table["user"].slice(start, stop - start)), **lists}))
    return pa.concat_tables(parts), fates


def translated(
    vocabulary: Vocabulary, table: pa.Table, source: Vocabulary | None
) -> tuple[Batch, Batch, dict[str, int]]:
    """Translate histories to the model's positions.

    Args:
        vocabulary: The model's.
        table: See `recommend_table`.
        source: See `recommend_table`.

    Returns:
        What the model may read; what is known to be seen, ratings off the scale included; and the
        number of interactions by what became of them.

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
    pointer_P, item_N = flat_list(table, "items")
    value_N = flat_list(table, "ratings")[1] if not is_unrated else np.ones(len(item_N))
    if len(value_N) != len(item_N):
        raise DataError(
            f"histories have {len(item_N)} items but {len(value_N)} ratings; "
            "make the lists equally long"
        )
    position_N = _positions(vocabulary, item_N, source)
    is_known_N = position_N >= 0
    is_scaled_N = on_scale(value_N.astype(np.float64), levels)
    row_N = np.repeat(np.arange(len(table)), np.diff(pointer_P))
    is_last_N = _last_of_each(row_N * (item_count + 1) + position_N + 1)
    whole_batch = Batch(
        torch.full((len(table),), -1),
        torch.from_numpy(pointer_P),
        torch.from_numpy(position_N),
        torch.from_numpy(value_N.astype(np.float32)),
    )
    used_N = is_known_N & is_scaled_N & is_last_N
    fates = {
        "used": int(used_N.sum()),
        _UNKNOWN_ITEM: int((~is_known_N).sum()),
        _OFF_SCALE: int((is_known_N & ~is_scaled_N).sum()),
        _DUPLICATE: int((is_known_N & is_scaled_N & ~is_last_N).sum()),
    }
    read, known = (whole_batch.keep(torch.from_numpy(kept)) for kept in (used_N, is_known_N))
    return read, known, fates


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


def _lists(scorer: Scorer, read: Batch, known: Batch, config: ScoreConfig) -> dict[str, pa.Array]:
    seen = known if config.exclude_seen else None
    columns = _columns(scorer, scorer.recommend(read, seen, config.k), "")
    if config.serendipitous_k:
        second = scorer.serendipitous(
            read,
            seen,
            config.serendipitous_k,
            unlikely_share=config.unlikely_share,
            min_support=config.min_support,
        )
        columns |= _columns(scorer, second, "serendipitous_")
    return columns


def _positions(vocabulary: Vocabulary, item_N: Any, source: Vocabulary | None) -> IntArray:
    if source is None:
        return vocabulary.positions(pa.array(item_N))
    if source.fingerprint == vocabulary.fingerprint:
        return np.asarray(item_N, dtype=np.int64)
    return vocabulary.positions(source.ids.take(pa.array(item_N)))


def _last_of_each(key_N: IntArray) -> Any:
    """Tell which entries are the last with their key, bool."""
    is_last_N = np.zeros(len(key_N), dtype=bool)
    _, places = np.unique(key_N[::-1], return_index=True)
    is_last_N[len(key_N) - 1 - places] = True
    return is_last_N


def _columns(scorer: Scorer, lists: Recommendations, prefix: str) -> dict[str, pa.Array]:
    """Lay lists out as Arrow columns, without the places that had no candidate."""
    present_BK = lists.item_BK >= 0
    pointer = np.concatenate([[0], present_BK.sum(1).cumsum(0).numpy()]).astype(np.int32)

    def column(value: torch.Tensor) -> pa.Array:
        return pa.ListArray.from_arrays(pointer, pa.array(value[present_BK].numpy()))

    ids = scorer.vocabulary.ids.take(pa.array(lists.item_BK[present_BK].numpy()))
    columns = {"items": pa.ListArray.from_arrays(pointer, ids), "scores": column(lists.score_BK)}
    opinion = lists.opinion
    if opinion is not None and opinion.probability_BI is not None:
        columns["probabilities"] = column(opinion.probability_BI)
    if opinion is not None:
        columns["ratings"] = column(opinion.rating_BI)
    if lists.deviation_BK is not None:
        columns["deviations"] = column(lists.deviation_BK)
    if opinion is not None and opinion.level_BIL is not None:
        level_ML = opinion.level_BIL[present_BK].contiguous()
        levels = pa.FixedSizeListArray.from_arrays(
            pa.array(level_ML.flatten().numpy()), level_ML.shape[1]
        )
        columns["rating_distribution"] = pa.ListArray.from_arrays(pointer, levels)
    return {prefix + name: value for name, value in columns.items()}
