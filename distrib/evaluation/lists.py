"""Metrics of lists: which targets they hold, and what they show whether or not it is a target."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from distrib.batch import Batch
from distrib.data.feeds.collate import Example
from distrib.data.groups import read_groups
from distrib.errors import DataError
from distrib.evaluation.config import EvaluateConfig
from distrib.evaluation.measured import SHOWN
from distrib.feedback import Feedback
from distrib.metrics import (
    FloatArray,
    average_precision,
    hit_rate,
    hits,
    mrr,
    ndcg,
    precision,
    recall,
    weighted_recall,
)
from distrib.scoring.scorer import Encoded, Scorer
from distrib.vocabulary import Vocabulary

RANKING = {
    "recall": recall,
    "ndcg": ndcg,
    "hit_rate": hit_rate,
    "mrr": mrr,
    "precision": precision,
    "map": average_precision,
}
_HEAD_SHARE = 0.5
_MOST_GROUPS = 100


def list_metrics(
    scorer: Scorer, users: Encoded, asked: Example, config: EvaluateConfig
) -> tuple[dict[str, Tensor], dict[str, FloatArray]]:
    """Measure lists from the whole catalog.

    Args:
        scorer: The model.
        users: Encoded histories.
        asked: Targets, and items that must not be recommended.
        config: Which metrics.

    Returns:
        Values by user, and tables that are summed over users: see `SHOWN`.
    """
    cutoffs = config.ranking_metrics
    longest = max(n for at in (*cutoffs.values(), config.catalog_at) for n in at)
    seen = asked.seen if config.exclude_seen else None
    item_BK = scorer.recommend(users, seen, longest, with_predictions=False).item_BK
    wanted = _likes(asked.target, scorer.vocabulary.facts.feedback)
    hit_BK = hits(item_BK, wanted, len(scorer.vocabulary))
    length_B = wanted.length_B
    by_user = {
        f"{name}@{n}": RANKING[name](hit_BK, length_B, n)
        for name, at in cutoffs.items()
        for n in at
    }
    groups = _groups(config.item_groups, scorer.vocabulary) if config.item_groups else None
    for name, weight_I in _weights(scorer.vocabulary, config, groups):
        for n in config.recall_at:
            found_B = weighted_recall(hit_BK, item_BK, wanted, weight_I, n)
            by_user[name.format(f"recall@{n}")] = found_B
    tables = {}
    for n in config.catalog_at:
        shown_BN = item_BK[:, :n]
        by_user |= _of_shown(shown_BN, scorer.vocabulary, n)
        if groups is not None:
            by_user[f"diversity@{n}"] = _diversity(shown_BN, groups.number_I)
        places_N = shown_BN[shown_BN >= 0].numpy()
        tables[f"{SHOWN}{n}"] = np.bincount(places_N, minlength=len(scorer.vocabulary)).astype(
            np.float64
        )
    return by_user, tables


def _likes(target: Batch, feedback: Feedback | None) -> Batch:
    """Return the targets that a list should contain; all of them in a log without dislikes."""
    return target if feedback is None else target.keep(feedback.sign(target.value_N) > 0)


class _Groups(NamedTuple):
    """Groups of items."""

    names: list[str]
    number_I: Tensor
    """Number of each item's group, -1 where the file has none."""


def _weights(
    vocabulary: Vocabulary, config: EvaluateConfig, groups: _Groups | None
) -> Iterator[tuple[str, Tensor]]:
    """Yield weights of targets, and the name of the metric around that of Recall."""
    if config.by_popularity:
        count_I = _counts(vocabulary)
        order_I = np.argsort(-count_I, kind="stable")
        before_I = np.empty_like(count_I)
        before_I[order_I] = np.cumsum(count_I[order_I]) - count_I[order_I]
        is_head_I = before_I < _HEAD_SHARE * count_I.sum()
        yield "head_{}", torch.from_numpy(is_head_I.astype(np.float64))
        yield "tail_{}", torch.from_numpy((~is_head_I).astype(np.float64))
    if config.propensity_power:
        weight_I = np.maximum(_counts(vocabulary), 1.0) ** -config.propensity_power
        yield "ips_{}", torch.from_numpy(weight_I)
    if groups is None:
        return
    for number, name in enumerate(groups.names):
        escaped = name.replace("{", "{{").replace("}", "}}")
        yield f"{{}} of {escaped}", (groups.number_I == number).double()


def _counts(vocabulary: Vocabulary) -> FloatArray:
    """Return the training interactions of each item."""
    return np.asarray(vocabulary.train_count_IL.sum(1), dtype=np.float64)


def _of_shown(item_BN: Tensor, vocabulary: Vocabulary, cutoff: int) -> dict[str, Tensor]:
    """Return popularity and novelty of what each user is shown; NaN for an empty list."""
    num_users, count_I = max(vocabulary.num_users, 1), _counts(vocabulary)
    rarity_I = np.log2(num_users / np.clip(count_I, 1.0, num_users))
    is_there_BN = item_BN >= 0
    number_B = is_there_BN.sum(1).to(torch.float64)
    found = {}
    for name, value_I in (("popularity", count_I), ("novelty", rarity_I)):
        value_BN = torch.from_numpy(value_I)[item_BN.clamp(min=0)] * is_there_BN
        found[f"{name}@{cutoff}"] = value_BN.sum(1) / number_B
    return found


def _diversity(item_BN: Tensor, group_I: Tensor) -> Tensor:
    """Return the share of pairs of a list whose groups differ; NaN for fewer than two items."""
    group_BN = torch.where(item_BN >= 0, group_I[item_BN.clamp(min=0)], -1)
    is_there_BN = group_BN >= 0
    is_pair_BNN = is_there_BN[:, :, None] & is_there_BN[:, None, :]
    is_pair_BNN = is_pair_BNN.triu(diagonal=1)
    differs_BNN = (group_BN[:, :, None] != group_BN[:, None, :]) & is_pair_BNN
    return differs_BNN.sum((1, 2)).to(torch.float64) / is_pair_BNN.sum((1, 2))


@functools.lru_cache(maxsize=4)
def _groups(path: str, vocabulary: Vocabulary) -> _Groups:
    """Read the groups of a vocabulary's items."""
    items, groups = read_groups(path, "item", "evaluate.item_groups")
    positions, encoded = vocabulary.positions(items), groups.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    if len(names) > _MOST_GROUPS:
        raise DataError(
            f"evaluate.item_groups = {path!r}: {len(names)} groups, at most {_MOST_GROUPS}; join "
            "small ones"
        )
    number_I = np.full(len(vocabulary), -1)
    is_known = positions >= 0
    number_I[positions[is_known]] = pc.fill_null(encoded.indices, -1).to_numpy()[is_known]
    return _Groups(names, torch.from_numpy(number_I))
