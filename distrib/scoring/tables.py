"""Recommendations for tables of histories, as Arrow tables."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from distrib.data.arrow import whole
from distrib.errors import DataError
from distrib.scoring.histories import DIGEST, Histories, flat_column, read_histories
from distrib.scoring.policy import Output, ScoreConfig
from distrib.scoring.results import NoveltyFilter, Recommendations
from distrib.scoring.rules import Rules
from distrib.scoring.scorer import Scorer
from distrib.vocabulary import Vocabulary


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
        table: ``user``, ``items`` and optionally ``ratings``, ``times`` and ``candidates``.
        source: The vocabulary that ``items`` are positions in; None if they are original ids.
        config: Settings of the lists; its policy applies if no rules are given.
        rules: The compiled policy.

    Returns:
        The recommendations, in the order of the users, and the parsed histories.

    Raises:
        DataError: A column is missing, or the model needs ratings and there are none.
    """
    read = read_histories(scorer.vocabulary, table, source)
    rules = Rules.of(config.policy, scorer.model, scorer.vocabulary) if rules is None else rules
    parts = [lists for lists, _ in lists_of(scorer, read, config, rules)]
    return pa.concat_tables(parts), read


def lists_of(
    scorer: Scorer, read: Histories, config: ScoreConfig, rules: Rules
) -> Iterator[tuple[pa.Table, int]]:
    """Yield the lists and number of users of each batch; see `recommend_table`."""
    size = config.batch_users
    for start in range(0, max(len(read.user), 1), size):
        part = read.slice(start, min(start + size, len(read.user)))
        yield _table(scorer, part, config, rules), len(part.user)


def _table(scorer: Scorer, read: Histories, config: ScoreConfig, rules: Rules) -> pa.Table:
    """Build the output table of one batch of users."""
    kind = np.uint64 if config.table is None else np.int64  # tables have no unsigned numbers
    columns: dict[str, Any] = {"user": read.user, DIGEST: pa.array(read.digest_B.view(kind))}
    if config.outputs and "embedding" in config.outputs:
        vector_BZ = scorer.embed(read.source)
        flat = pa.array(vector_BZ.flatten().numpy())
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, vector_BZ.shape[1])
    if config.makes_lists:
        columns |= _lists(scorer, read, config, rules)
    table = pa.table(columns)
    return _long(table) if config.layout == "long" and config.makes_lists else table


def _lists(
    scorer: Scorer, read: Histories, config: ScoreConfig, rules: Rules
) -> dict[str, pa.Array]:
    seen = read.seen if config.policy.exclude_seen else None
    with_predictions = config.outputs is None or bool({*config.outputs} - {"score", "embedding"})
    lists = scorer.recommend(
        read.source,
        seen,
        config.k,
        rules=rules,
        limits=read.limits,
        with_predictions=with_predictions,
    )
    columns = _columns(scorer, lists, config.outputs, "")
    if config.serendipitous_k:
        second = scorer.serendipitous(
            read.source,
            seen,
            config.serendipitous_k,
            novel=NoveltyFilter(config.unlikely_share, config.min_support),
            rules=rules,
            limits=read.limits,
        )
        columns |= _columns(scorer, second, config.outputs, "serendipitous_")
    return columns


def output_columns(
    scorer: Scorer, lists: Recommendations, outputs: tuple[Output, ...] | None
) -> dict[str, torch.Tensor]:
    """Return the outputs for the items of lists, by column name.

    Args:
        scorer: The scorer that made the lists.
        lists: The lists.
        outputs: Requested outputs; None for all but serendipity.

    Returns:
        ``[B, K]`` each, the rating distribution ``[B, K, L]``.

    Raises:
        DataError: The model does not predict a requested output.
    """
    prediction, levels = lists.prediction, scorer.vocabulary.levels
    found: dict[Output, torch.Tensor | None] = {"score": lists.score_BK}
    if prediction is not None:
        found |= {"probability": prediction.probability_BI, "rating": prediction.rating_BI}
        found |= {"deviation": lists.deviation_BK, "rating_distribution": prediction.level_BIL}
        if prediction.probability_BI is not None and len(levels) > 1:
            love_BK = (prediction.rating_BI - levels[0]) / (levels[-1] - levels[0])
            found["serendipity"] = (1.0 - prediction.probability_BI) * love_BK
    absent = [name for name in outputs or () if name != "embedding" and found.get(name) is None]
    if absent:
        available = sorted(name for name, value in found.items() if value is not None)
        raise DataError(
            f"score.outputs: {type(scorer.model).__name__} predicts {', '.join(available)}, but "
            f"not {', '.join(absent)}; remove it"
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
    """Convert lists to Arrow columns, without empty places."""
    present_BK = lists.item_BK >= 0
    pointer = np.concatenate([[0], present_BK.sum(1).cumsum(0).numpy()]).astype(np.int32)
    ids = scorer.vocabulary.ids.take(pa.array(lists.item_BK[present_BK].numpy()))
    columns = {"items": pa.ListArray.from_arrays(pointer, ids)}
    for name, value in output_columns(scorer, lists, outputs).items():
        chosen = value[present_BK].contiguous()
        flat = pa.array(chosen.flatten().numpy())
        if chosen.dim() > 1:
            flat = pa.FixedSizeListArray.from_arrays(flat, chosen.shape[1])
        columns[name] = pa.ListArray.from_arrays(pointer, flat)
    return {prefix + name: value for name, value in columns.items()}


def _long(table: pa.Table) -> pa.Table:
    """Convert one row per user into one row per recommendation, best first."""
    items = whole(table["items"])
    row_N = pc.list_parent_indices(items)
    pointer_P, _ = flat_column(table, "items")
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
"""Column names of the long form, and of the outputs of one item, by column of the nested form."""
