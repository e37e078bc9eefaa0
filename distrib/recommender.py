"""A trained model in one process: ids in, ids out, without Ray."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from distrib.batch import Batch
from distrib.checkpoint.bundle import BUNDLE, Bundle, load_bundle
from distrib.checkpoint.manifest import MANIFEST
from distrib.config import checked
from distrib.errors import DataError
from distrib.frames import (
    AnyHistories,
    Given,
    History,
    Id,
    from_arrow,
    listed,
    pairs_of,
    read_given,
    to_arrow,
)
from distrib.scoring.histories import DIGEST, Histories, read_histories
from distrib.scoring.policy import Output, Precision, ScoreConfig
from distrib.scoring.rules import unknown_items
from distrib.scoring.scorer import Scorer, pair_scores
from distrib.scoring.tables import recommend_table
from distrib.scoring.vectors import similarities, vector_table
from distrib.storage import Folder
from distrib.topk import best_keys, items_of, scores_of
from distrib.vocabulary import Vocabulary

_BATCH_USERS = 512
_NAMES: Mapping[str, str] = {}


class Policy(TypedDict, total=False):
    """Which items may be recommended: the fields of ``score.policy``."""

    exclude_seen: bool
    allow: Sequence[Id] | str | None
    deny: Sequence[Id] | str | None
    min_score: float | None
    popularity_damping: float
    groups: str | None
    max_per_group: int | None
    diversity: float
    diversity_pool: int


class Recommender:
    """A trained model that recommends to anyone, from their history alone.

    Ids are those of the log. Histories may be given in three ways, and the answer has the same:

    - a pandas, Polars or Arrow table, with a row for each interaction (``user``, ``item``, and
      where the model needs them ``rating`` and ``time``) or for each user (``user``, a list
      ``items``, ...): a table of the same library;
    - a dictionary of histories by user: a dictionary of rows by user;
    - the history of one user, a list of ids or a rating for each id: a list of rows.

    ``columns`` gives your names of these columns, such as ``{"user": "account", "item": "sku"}``.

    Args:
        bundle: The model.
        device: Where to compute, such as ``cuda``.
        precision: See `Scorer`.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
    ) -> None:
        self.bundle = bundle
        self.scorer = Scorer(bundle.model, bundle.vocabulary, device=device, precision=precision)

    @classmethod
    def load(
        cls, url: str, *, device: torch.device | str = "cpu", precision: Precision = "fp32"
    ) -> "Recommender":
        """Load a trained model.

        Args:
            url: Path or URL of a run folder, or of a bundle.
            device: Where to compute, such as ``cuda``.
            precision: See `Scorer`.

        Returns:
            The model, ready to answer.

        Raises:
            CheckpointError: There is no bundle, or it is damaged.
        """
        folder = Folder(str(url))
        inside = folder / BUNDLE
        bundle = load_bundle(folder if folder.exists(MANIFEST) else inside)
        return cls(bundle, device=device, precision=precision)

    @property
    def items(self) -> list[Id]:
        """Ids of all items that can be recommended."""
        found: list[Id] = self._vocabulary.ids.to_pylist()
        return found

    def recommend(
        self,
        histories: AnyHistories,
        k: int = 10,
        *,
        outputs: Sequence[Output] | None = None,
        columns: Mapping[str, str] = _NAMES,
        **policy: Unpack[Policy],
    ) -> Any:
        """Return each user's best items, best first.

        Args:
            histories: See the class; ``candidates`` restricts a user to some items.
            k: Length of the lists.
            outputs: What to return of each item, as ``score.outputs``; by default all that the
                model predicts.
            columns: Names of columns.
            **policy: Which items may be recommended, as ``score.policy``.

        Returns:
            ``user``, ``item``, ``rank`` from 1, ``score`` and what else the model predicts.

        Raises:
            ConfigError: An argument is invalid.
            DataError: The histories are not valid, or the model knows none of their items.
        """
        given = self._given(histories, columns)
        rules = {name: _one_or_more(value, self._vocabulary) for name, value in policy.items()}
        settings: dict[str, object] = {"k": k, "policy": rules}
        if outputs is not None:
            settings["outputs"] = list(outputs)
        config = checked(ScoreConfig, settings, where="recommend")
        config = config.model_copy(update={"layout": "long"})
        table, read = recommend_table(self.scorer, given.table, None, config)
        for sentence in unknown_items(config.policy.without_files(), self._vocabulary):
            warnings.warn(sentence, stacklevel=2)
        self._require_known(read)
        return given.answer(table.drop_columns([DIGEST]))

    def predict(
        self,
        histories: AnyHistories,
        targets: AnyHistories,
        *,
        columns: Mapping[str, str] = _NAMES,
    ) -> Any:
        """Return what the model predicts for given items of given users.

        Args:
            histories: See the class.
            targets: A table of pairs (``user``, ``item``), a dictionary of items by user, or the
                items to predict for every user.
            columns: Names of columns, of both.

        Returns:
            ``user``, ``item``, ``score`` and, by models of ratings, ``rating`` and ``deviation``;
            in the order of the targets, as a table where these are one. Pairs of an item that the
            model does not know, or of a user without a history, are null; a warning counts them.

        Raises:
            DataError: The histories or targets are not valid.
        """
        given = self._given(histories, columns)
        read = read_histories(self._vocabulary, given.table, None)
        self._require_known(read)
        pairs = pairs_of(read.user, targets, columns)
        found = pairs
        for name, values in self._predicted(read, pairs).items():
            found = found.append_column(name, values)
        if found["score"].null_count:
            some = found.filter(found["score"].is_null()).select(["user", "item"])[:3].to_pylist()
            warnings.warn(
                f"{found['score'].null_count} pair(s), such as {some}, have no prediction: the "
                "user has no history here, or the model does not know the item",
                stacklevel=2,
            )
        return given.answer(found) if to_arrow(targets) is None else from_arrow(found, targets)

    @torch.inference_mode()
    def similar_items(self, items: Id | Sequence[Id], k: int = 10) -> Any:
        """Return the items most similar to given ones.

        By the cosine of item embeddings; for a model without embeddings, the list of a user who met
        this item only.

        Args:
            items: One id, or several.
            k: Length of the lists.

        Returns:
            Rows of ``item`` and ``score``, best first; for several ids, a dictionary of them.

        Raises:
            DataError: The model does not know an item.
        """
        is_one = isinstance(items, int | str | np.integer)
        queries: list[Any] = [items] if is_one else list(items)  # type: ignore[arg-type]
        position_Q = self._vocabulary.positions(pa.array(queries))
        unknown = [item for item, at in zip(queries, position_Q, strict=True) if at < 0]
        if unknown:
            raise DataError(
                f"the model does not know item(s) {unknown[:20]}; see Recommender.items"
            )
        score_QI = similarities(self.scorer, torch.from_numpy(position_Q))
        score_QI[torch.arange(len(queries)), torch.from_numpy(position_Q)] = -torch.inf
        key_QK = best_keys(score_QI, 0, min(k, score_QI.shape[1]))
        found = {}
        for item, keys in zip(queries, key_QK, strict=True):
            known = keys[items_of(keys) >= 0]
            ids = self._vocabulary.ids.take(pa.array(items_of(known).numpy())).to_pylist()
            rows = zip(ids, scores_of(known).tolist(), strict=True)
            found[item] = [{"item": other, "score": score} for other, score in rows]
        return found[queries[0]] if is_one else found

    def explain(
        self, history: History, k: int = 10, *, max_reasons: int = 5, **policy: Unpack[Policy]
    ) -> list[dict[str, Any]]:
        """Return one user's list, with the interactions that had the largest influence on it.

        Args:
            history: Of one user.
            k: Length of the list.
            max_reasons: Interactions listed for each item.
            **policy: As in `recommend`.

        Returns:
            The rows of `recommend`, each with ``reasons``: rows of ``item`` and ``influence``, the
            score with the whole history minus the score without the interaction.

        Raises:
            DataError: The history is not valid.
        """
        table = self._given(history, _NAMES).table
        is_frame = to_arrow(history) is not None
        rows: Any = None if is_frame else self.recommend(history, k, **policy)
        if not isinstance(rows, list):
            raise DataError(
                "explain takes the history of one user: a list of ids, or a rating each"
            )
        read = read_histories(self._vocabulary, table, None)
        ids = pa.array([row["item"] for row in rows], self._vocabulary.ids.type)
        influence_NK = self.scorer.explain(
            read.source, torch.from_numpy(self._vocabulary.positions(ids))
        )
        met = self._vocabulary.ids.take(pa.array(read.source.item_N.numpy())).to_pylist()
        for row, influence_N in zip(rows, influence_NK.T, strict=True):
            places = influence_N.abs().topk(min(max_reasons, len(met))).indices.tolist()
            row["reasons"] = [{"item": met[n], "influence": float(influence_N[n])} for n in places]
        return list(rows)

    def embed(self, histories: AnyHistories, *, columns: Mapping[str, str] = _NAMES) -> Any:
        """Return user embeddings.

        Args:
            histories: See the class.
            columns: Names of columns.

        Returns:
            An array for one history, a dictionary of arrays by user, or a table with ``user`` and
            ``embedding``. The score of an item is the product of the embedding, with a 1 appended,
            and its vector of `item_vectors`.

        Raises:
            DataError: The model has no user embeddings.
        """
        given = self._given(histories, columns)
        config = ScoreConfig(outputs=("embedding",))
        table, read = recommend_table(self.scorer, given.table, None, config)
        self._require_known(read)
        found = given.answer(table.drop_columns([DIGEST]))
        if isinstance(found, list):
            return np.array(found[0]["embedding"], np.float32)
        if isinstance(found, dict):
            return {
                user: np.array(rows[0]["embedding"], np.float32) for user, rows in found.items()
            }
        return found

    def item_vectors(self) -> pa.Table:
        """Return the vectors of all items.

        Returns:
            ``item`` and ``vector``; the last element of a vector is the item's offset.

        Raises:
            DataError: The model has no item embeddings.
        """
        return vector_table(self.bundle)

    @property
    def _vocabulary(self) -> Vocabulary:
        return self.scorer.vocabulary

    def __repr__(self) -> str:
        """Return the model, its items, and the epoch of its weights."""
        about = f"{self.bundle.config.name}, {len(self._vocabulary)} items"
        epoch = self.bundle.facts.epoch
        return f"Recommender({about}{'' if epoch is None else f', epoch {epoch}'})"

    def _given(self, histories: AnyHistories, columns: Mapping[str, str]) -> Given:
        """Read histories; a model of interactions reads no ratings, whatever their scale."""
        given = read_given(histories, columns)
        if len(self._vocabulary.levels) == 1 and "ratings" in given.table.column_names:
            return given._replace(table=given.table.drop_columns(["ratings"]))
        return given

    def _require_known(self, read: Histories) -> None:
        """Refuse histories of which nothing is known; warn of users with such histories."""
        counts = {status: count for status, count in read.row_status.items() if count}
        total = int(read.status_BF.sum())
        if total and "used" not in counts:
            ids, levels = self._vocabulary.ids[:3].to_pylist(), self._vocabulary.levels
            scale = f", rated {levels[0]:g} to {levels[-1]:g}" if len(levels) > 1 else ""
            raise DataError(
                f"none of the {total} interactions can be used ({counts}); write ids as in the log "
                f"that the model was trained on, such as {ids}{scale}"
            )
        is_unknown_B = (read.status_BF[:, 0] == 0) & (read.status_BF.sum(1) > 0)
        if is_unknown_B.any():
            some = read.user.filter(pa.array(is_unknown_B))[:5].to_pylist()
            warnings.warn(
                f"{int(is_unknown_B.sum())} user(s), such as {some}, have no item that the model "
                "knows; their lists are those of an empty history",
                stacklevel=3,
            )
        if read.unknown_candidates:
            warnings.warn(
                f"the model does not know {read.unknown_candidates} candidate(s); they are in no "
                "list",
                stacklevel=3,
            )

    def _predicted(self, read: Histories, pairs: pa.Table) -> dict[str, pa.Array]:
        """Return the columns of predictions for pairs."""
        row_N = pc.fill_null(pc.index_in(pairs["user"], value_set=read.user), -1).to_numpy()
        item_N = self._vocabulary.positions(pairs["item"].combine_chunks())
        place_M = np.flatnonzero((row_N >= 0) & (item_N >= 0))
        place_M = place_M[np.argsort(row_N[place_M], kind="stable")]
        pointer_P = np.searchsorted(row_N[place_M], np.arange(len(read.user) + 1))
        target = Batch(
            torch.full((len(read.user),), -1),
            torch.from_numpy(pointer_P),
            torch.from_numpy(item_N[place_M]),
            torch.ones(len(place_M)),
        )
        columns: dict[str, list[torch.Tensor]] = {}
        for low in range(0, max(len(read.user), 1), _BATCH_USERS):
            high = min(low + _BATCH_USERS, len(read.user))
            users = self.scorer.encode(read.source.slice(low, high))
            part = target.slice(low, high)
            columns.setdefault("score", []).append(pair_scores(self.scorer, users, part))
            rated = self.scorer.predict(users, part)
            if rated is not None:
                columns.setdefault("rating", []).append(rated.rating_N)
            if rated is not None and rated.deviation_N is not None:
                columns.setdefault("deviation", []).append(rated.deviation_N)
        return {
            name: _scattered(torch.cat(parts).numpy(), place_M, len(pairs))
            for name, parts in columns.items()
        }


def _one_or_more(value: object, vocabulary: Vocabulary) -> object:
    """Return ids as a list, a single one, too; other text is the URL of a file of ids."""
    if isinstance(value, str) and vocabulary.positions(pa.array([value]))[0] >= 0:
        return [value]
    return listed(value)


def _scattered(
    value_M: npt.NDArray[np.float32], place_M: npt.NDArray[np.int64], length: int
) -> pa.Array:
    """Return a column with values at some places, and null at the others."""
    value_N, is_absent_N = np.zeros(length, np.float32), np.ones(length, dtype=bool)
    value_N[place_M], is_absent_N[place_M] = value_M, False
    return pa.array(value_N, mask=is_absent_N)
