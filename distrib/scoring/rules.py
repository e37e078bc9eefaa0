"""A policy compiled for one model: item filters, score adjustment and re-ranking.

It holds for all users; what differs by user, seen items and candidates, is in `search`.
"""

import io
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from distrib.data.arrow import whole
from distrib.errors import ConfigError, DataError, excerpt, listed
from distrib.ids import IdKind, id_column
from distrib.models.base import Model
from distrib.models.capabilities import item_vectors
from distrib.scoring.policy import ItemSet, PolicyConfig
from distrib.storage import Folder
from distrib.topk import UNWANTED, scores_of
from distrib.vocabulary import IntArray, Vocabulary


class Rules(NamedTuple):
    """Rules for every user of a batch; tensors on the scorer's device."""

    allowed_I: Tensor | None = None
    """bool; None if every item may be recommended."""

    damping_I: Tensor | None = None
    """float32; subtracted from the score of each item."""

    min_score: float | None = None
    """Items with a lower score are left out."""

    group_I: Tensor | None = None
    """int64 group of each item, -1 for none."""

    at_most: int = 0
    """Most items of one group in a list."""

    diversity: float = 0.0
    """0..1; MMR weight of dissimilarity to items higher in the list."""

    pool: int = 0
    """Candidates per user, by score, that re-ranking chooses from."""

    vector_IZ: Tensor | None = None
    """float32; normalized item embeddings, whose products are cosine similarities."""

    @classmethod
    def of(cls, policy: PolicyConfig, model: Model, vocabulary: Vocabulary) -> "Rules":
        """Compile a policy, on the device of the model.

        Args:
            policy: Its files are read here.
            model: The model.
            vocabulary: The model's items.

        Returns:
            The rules.

        Raises:
            ConfigError: The model has no item embeddings, which diversity needs.
            DataError: A file is absent, lacks a column, or names no item of the model.
        """
        device = next(iter(model.item_tables())).device
        allowed_I = _allowed(policy, vocabulary)
        group_I = None if policy.groups is None else _group_of(policy.groups, vocabulary)
        fixed = cls(
            allowed_I=None if allowed_I is None else allowed_I.to(device),
            group_I=None if group_I is None else group_I.to(device),
        )
        return fixed.with_numbers(policy, model, vocabulary)

    def with_numbers(self, policy: PolicyConfig, model: Model, vocabulary: Vocabulary) -> "Rules":
        """Return the rules with the numbers of another policy; files are not read again.

        Args:
            policy: Its ``allow``, ``deny`` and ``groups`` are ignored.
            model: The model.
            vocabulary: The model's items.

        Returns:
            The rules.

        Raises:
            ConfigError: The model has no item embeddings, which diversity needs.
        """
        damping_I = None
        if policy.popularity_damping:
            support_I = torch.from_numpy(vocabulary.train_count_IL.sum(1)).float()
            damping_I = policy.popularity_damping * torch.log1p(support_I)
            damping_I = damping_I.to(next(iter(model.item_tables())).device)
        return self._replace(
            damping_I=damping_I,
            min_score=policy.min_score,
            at_most=policy.max_per_group or 0,
            diversity=policy.diversity,
            pool=policy.diversity_pool,
            vector_IZ=_unit_vectors(model) if policy.diversity else None,
        )

    def apply(self, score_BI: Tensor, low: int) -> Tensor:
        """Adjust the scores of a chunk of items that begins at ``low``; ``-inf`` if excluded."""
        high = low + score_BI.shape[1]
        if self.damping_I is not None:
            score_BI = score_BI - self.damping_I[low:high]
        if self.allowed_I is not None:
            score_BI = score_BI.masked_fill(~self.allowed_I[low:high], -torch.inf)
        if self.min_score is not None:
            score_BI = score_BI.masked_fill(score_BI < self.min_score, -torch.inf)
        return score_BI

    def pool_for(self, k: int) -> int:
        """Return the number of candidates that a list of ``k`` is chosen from."""
        if self.group_I is None and not self.diversity:
            return k
        return max(k, self.pool)


def chosen(rules: Rules, key_BP: Tensor, item_BP: Tensor, k: int) -> Tensor:
    """Choose each user's list from the best candidates.

    Groups: a candidate is left out if better ones have filled its group. Diversity: maximal
    marginal relevance; the next item has the largest ``(1 - w) * relevance - w * similarity``,
    where relevance is the score min-max scaled to 0..1 over the user's candidates, and similarity
    the largest cosine (at least 0) with an item chosen before.

    Source: Carbonell, Goldstein, "The Use of MMR, Diversity-Based Reranking", SIGIR 1998.

    Args:
        rules: With groups, diversity, or both.
        key_BP: Rank keys, best first.
        item_BP: Their items, -1 for none.
        k: Length of the list.

    Returns:
        int64 ``[B, k]`` candidate columns in list order, -1 for none.
    """
    if rules.diversity:
        return _diverse(rules, key_BP, item_BP, k)
    return _capped(rules, item_BP, k)


def _capped(rules: Rules, item_BP: Tensor, k: int) -> Tensor:
    """Keep the best items of each group."""
    group_BP = _groups(rules, item_BP)
    order_BP = torch.sort(group_BP, dim=1, stable=True).indices
    sorted_BP = group_BP.gather(1, order_BP)
    place_P = torch.arange(item_BP.shape[1], device=item_BP.device)
    is_first_BP = F.pad(sorted_BP[:, 1:] != sorted_BP[:, :-1], (1, 0), value=True)
    start_BP = torch.where(is_first_BP, place_P, 0).cummax(dim=1).values
    rank_BP = torch.empty_like(order_BP).scatter_(1, order_BP, place_P - start_BP)
    is_in_BP = (item_BP >= 0) & ((group_BP < 0) | (rank_BP < rules.at_most))
    key_BP = torch.where(is_in_BP, -place_P, UNWANTED)
    found_BK = torch.topk(key_BP, min(k, key_BP.shape[1]), dim=1).values
    return torch.where(found_BK == UNWANTED, -1, -found_BK)


def _diverse(rules: Rules, key_BP: Tensor, item_BP: Tensor, k: int) -> Tensor:
    assert rules.vector_IZ is not None
    vector_BPZ = rules.vector_IZ[item_BP.clamp(min=0)]
    relevance_BP = _relevance(key_BP)
    group_BP = _groups(rules, item_BP) if rules.group_I is not None else None
    is_open_BP = item_BP >= 0
    likeness_BP = torch.zeros_like(relevance_BP)
    columns = []
    for _ in range(min(k, item_BP.shape[1])):
        worth_BP = (1.0 - rules.diversity) * relevance_BP - rules.diversity * likeness_BP
        worth_BP = worth_BP.masked_fill(~is_open_BP, -torch.inf)
        best_B, column_B = worth_BP.max(dim=1)
        column_B1 = column_B[:, None]
        columns.append(torch.where(best_B == -torch.inf, -1, column_B))
        is_open_BP = is_open_BP.scatter(1, column_B1, value=False)
        last_BZ1 = vector_BPZ.gather(1, column_B1[..., None].expand(-1, 1, vector_BPZ.shape[2]))
        likeness_BP = torch.maximum(likeness_BP, (vector_BPZ * last_BZ1).sum(-1))
        if group_BP is not None:
            is_open_BP &= ~_full(group_BP, torch.stack(columns, dim=1), rules.at_most)
    return torch.stack(columns, dim=1)


def _full(group_BP: Tensor, column_BK: Tensor, at_most: int) -> Tensor:
    """Return the mask of candidates whose group is full."""
    last_B1 = group_BP.gather(1, column_BK[:, -1:].clamp(min=0))
    taken_BK = group_BP.gather(1, column_BK.clamp(min=0)).masked_fill(column_BK < 0, -1)
    is_full_B1 = ((taken_BK == last_B1).sum(1, keepdim=True) >= at_most) & (last_B1 >= 0)
    return is_full_B1 & (group_BP == last_B1)


def _groups(rules: Rules, item_BP: Tensor) -> Tensor:
    assert rules.group_I is not None
    return rules.group_I[item_BP.clamp(min=0)].masked_fill(item_BP < 0, -1)


def _relevance(key_BP: Tensor) -> Tensor:
    """Return the scores, min-max scaled to 0..1 over each user's candidates."""
    score_BP = scores_of(key_BP)
    is_none_BP = key_BP == UNWANTED
    low_B1 = score_BP.masked_fill(is_none_BP, torch.inf).amin(1, keepdim=True)
    span_B1 = (score_BP[:, :1] - low_B1).clamp(min=1e-12)
    return ((score_BP - low_B1) / span_B1).masked_fill(is_none_BP, 0.0)


def positions_of(ids: pa.Array, vocabulary: Vocabulary, what: str) -> IntArray:
    """Return the positions of the items that a policy names; unknown ids are left out.

    Args:
        ids: Original ids.
        vocabulary: The model's items.
        what: Setting that names them, for the message.

    Returns:
        int64, unique.

    Raises:
        DataError: The ids have another type than the model's.
    """
    if pa.types.is_null(ids.type):  # an empty file
        return np.zeros(0, np.int64)
    try:
        position = vocabulary.positions(ids)
    except DataError as error:
        raise DataError(f"{what}: {error}") from error
    return np.unique(position[position >= 0])


def item_table(url: str, columns: tuple[str, ...], kind: IdKind) -> pa.Table:
    """Read a small table of items.

    Args:
        url: Parquet, CSV with a header, or a text file with one id per line.
        columns: Columns to read, ``item`` first.
        kind: What ids written as text are; leading zeros of text stay.

    Returns:
        The columns.

    Raises:
        DataError: The file is absent, of another format, or lacks a column.
    """
    content = Folder(url).read()
    try:
        if url.endswith(".txt"):
            lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
            table = pa.table({"item": pa.array([text for text in lines if text], pa.string())})
        elif url.endswith(".csv"):
            options = pyarrow.csv.ConvertOptions(column_types={"item": pa.string()})
            table = pyarrow.csv.read_csv(io.BytesIO(content), convert_options=options)
        else:
            table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"{url}: cannot be read ({error}); give Parquet, .csv with a header, or .txt"
        ) from error
    absent = [name for name in columns if name not in table.column_names]
    if absent:
        raise DataError(
            f"{url}: lacks column(s) {absent}; it has {listed(table.column_names)}; rename one"
        )
    twice = [name for name in columns if table.column_names.count(name) > 1]
    if twice:
        raise DataError(f"{url}: has column(s) {twice} more than once; keep one of each")
    table = table.select(list(columns))
    if not url.endswith((".txt", ".csv")):
        return table
    found = id_column(table["item"], kind)
    if found.ids.null_count:
        wrong = table["item"][pc.index(found.ids.is_null(), pa.scalar(value=True)).as_py()].as_py()
        raise DataError(
            f"{url}: {excerpt(str(wrong))!r} is not an integer, as the model's ids are; correct it"
        )
    return table.set_column(0, "item", found.ids)


def unknown_items(policy: PolicyConfig, vocabulary: Vocabulary) -> list[str]:
    """Say which settings of a policy name ids that are not in the catalog, and so do nothing.

    Args:
        policy: Its ``allow`` and ``deny``.
        vocabulary: The model's items.

    Returns:
        A sentence for each setting with such ids.
    """
    found = []
    for name, items in (("allow", policy.allow), ("deny", policy.deny)):
        ids = None if items is None else _ids(items, vocabulary, f"policy.{name}")
        if ids is None or not len(ids):
            continue
        ids = ids.drop_null()
        is_unknown = vocabulary.positions(ids) < 0
        if is_unknown.any():
            first = ids[int(is_unknown.argmax())].as_py()
            count = int(is_unknown.sum())
            found.append(
                f"{name}: {count} of {len(ids)} ids are not in the catalog, such as {first!r}"
            )
    return found


def _allowed(policy: PolicyConfig, vocabulary: Vocabulary) -> Tensor | None:
    if policy.allow is None and policy.deny is None:
        return None
    allowed_I = torch.ones(len(vocabulary), dtype=torch.bool)
    if policy.allow is not None:
        position = _positions(policy.allow, vocabulary, "policy.allow")
        if not len(position):
            raise DataError("policy.allow: none of its ids is an item of the model; check the ids")
        allowed_I[:] = False
        allowed_I[position] = True
    if policy.deny is not None:
        allowed_I[_positions(policy.deny, vocabulary, "policy.deny")] = False
    return allowed_I


def _positions(items: ItemSet, vocabulary: Vocabulary, what: str) -> IntArray:
    return positions_of(_ids(items, vocabulary, what), vocabulary, what)


def _ids(items: ItemSet, vocabulary: Vocabulary, what: str) -> pa.Array:
    if isinstance(items, str):
        try:
            return whole(item_table(items, ("item",), vocabulary.id_kind)["item"])
        except DataError as error:
            raise DataError(f"score.{what}: {error}") from error
    try:
        return pa.array(items) if items else pa.array([], vocabulary.ids.type)
    except pa.ArrowException as error:
        raise DataError(f"{what} mixes id types ({error}); give integers or strings") from error


def _group_of(url: str, vocabulary: Vocabulary) -> Tensor:
    table = item_table(url, ("item", "group"), vocabulary.id_kind)
    kind = table["group"].type
    if not (pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise DataError(f"{url}: column 'group' holds {kind}, not text or numbers; cast it")
    position_N = vocabulary.positions(whole(table["item"]))
    if not (position_N >= 0).any():
        raise DataError(f"{url}: none of its ids is an item of the model; check the ids")
    group_N = pc.rank(whole(table["group"]), tiebreaker="dense").to_numpy()
    group_I = torch.full((len(vocabulary),), -1)
    known_N = position_N >= 0
    group_I[position_N[known_N]] = torch.from_numpy(group_N[known_N].astype(np.int64))
    return group_I


@lru_cache(maxsize=2)
def _unit_vectors(model: Model) -> Tensor:
    """Return the normalized embeddings of all items, cached per model."""
    vectors = item_vectors(model)
    if vectors is None:
        raise ConfigError(
            f"policy.diversity needs item embeddings, but {type(model).__name__} has none; set it "
            "to 0, or use policy.max_per_group"
        )
    return F.normalize(vectors.vector_IZ.detach().float(), dim=-1)
