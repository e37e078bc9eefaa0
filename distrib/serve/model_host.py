"""One model that answers: many requests to one batch, and each its own answer."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from distrib.batch import Batch
from distrib.checkpoint.bundle import BUNDLE, Bundle, load_bundle
from distrib.checkpoint.manifest import MANIFEST, read_manifest
from distrib.data.dataset import MANIFEST as PREPARED
from distrib.data.dataset import Dataset
from distrib.errors import DataError, DistribError
from distrib.models.capabilities import user_embedding
from distrib.score.histories import read_histories, require_columns
from distrib.score.policy import Output, PolicyConfig, ScoreConfig
from distrib.score.rules import Rules, item_table
from distrib.score.scorer import Recommendations, Scorer
from distrib.score.search import Limits
from distrib.score.tables import SINGULAR, lists_of, told_values
from distrib.serve.config import ServeConfig
from distrib.serve.requests import (
    ListAsk,
    RefusedError,
    TableAsk,
    joined,
    positions,
    read,
    require_history,
    require_kind,
)
from distrib.serve.schemas import Answer, ExplainRequest, MapRequest, RatingsRequest, Wishes
from distrib.serve.user_store import StoredUsers
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary

_CACHED_RULES = 64
_OVERRIDES = ("exclude_seen", "min_score", "popularity_damping", "max_per_group", "diversity")

Ask = ListAsk | TableAsk | RatingsRequest | ExplainRequest | MapRequest


class Wanted(NamedTuple):
    """What requests of one batch have in common."""

    policy: PolicyConfig
    k: int
    outputs: tuple[Output, ...] | None

    @property
    def tells(self) -> bool:
        """Whether more than scores and embeddings is wanted."""
        return self.outputs is None or bool({*self.outputs} - {"score", "embedding"})


class Loaded(NamedTuple):
    """A bundle ready to answer; replaced whole by a newer one."""

    scorer: Scorer
    bundle: Bundle
    version: str
    tells: tuple[str, ...]
    """Outputs that the model gives."""
    rules_of: Callable[[PolicyConfig], Rules]
    titles: dict[Any, str]
    by_popularity: pa.Table
    """``item``, ``title``, ``interactions`` and ``text`` to search in, the most popular first."""
    loaded_at: str

    @property
    def vocabulary(self) -> Vocabulary:
        """Items."""
        return self.scorer.vocabulary


class Desk:
    """A run's model, held up to date, that answers batches of requests.

    Answers are for one thread at a time; `refresh` may run beside them.

    Args:
        name: Of the model, as requests know it.
        run: Run folder.
        prepared: Whose users can be asked for by id.
        config: Limits and policy.

    Raises:
        CheckpointError: There is no bundle, or it is damaged.
        ConfigError: The policy does not go with the model.
        DataError: A file that the settings name is absent or no table.
    """

    def __init__(self, name: str, run: str, prepared: str, config: ServeConfig) -> None:
        self.name = name
        self.config = config
        self.fault: str | None = None
        self._folder = Folder(run) / BUNDLE
        self._prepared = prepared
        self._refused = ""
        self._lock = threading.Lock()
        torch.set_num_threads(max(1, int(config.cpus_per_replica)))
        self.loaded = self._load()
        self._users: StoredUsers | None = None

    def refresh(self) -> bool:
        """Take a newer bundle if there is one; keep the present one where that does not load.

        A bundle that is being written is left alone until its manifest is there.

        Returns:
            Whether the model was replaced.
        """
        with self._lock:
            self._refresh_users()
            version = self.loaded.version
            try:
                if not self._folder.exists(MANIFEST):
                    return False
                version = _version(read_manifest(self._folder))
                if version in {self.loaded.version, self._refused}:
                    return False
                self.loaded = self._load()
            except DataError as error:  # of the store; it may be over the next time
                self.fault = str(error)
                return False
            except Exception as error:  # noqa: BLE001  whatever it is, what is there goes on
                what = str(error) if isinstance(error, DistribError) else repr(error)
                self.fault, self._refused = what, version
                return False
            self.fault, self._refused = None, ""
            return True

    def _refresh_users(self) -> None:
        """Take notice of stored users who came since."""
        users = self._users
        if users is None:
            return
        try:
            if Dataset.open(self._prepared).hash != users.data:
                self._users = StoredUsers(self._prepared, self.config.cached_shards)
        except DataError:
            return  # it is being written, or the store is away

    def card(self) -> dict[str, Any]:
        """Return what is served here; see `messages.ModelCard`."""
        loaded = self.loaded
        facts = {k: v for k, v in loaded.bundle.facts.items() if k != "files"}
        files = loaded.bundle.facts["files"]
        return {
            "name": self.name,
            "version": loaded.version,
            "bundle": {name: entry["sha256"] for name, entry in files.items()},
            "model": loaded.bundle.config.model_dump(mode="json"),
            "tells": list(loaded.tells),
            "reads_ratings": len(loaded.vocabulary.levels) > 1,
            "levels": list(loaded.vocabulary.levels),
            "item_count": len(loaded.vocabulary),
            "num_users": loaded.vocabulary.num_users,
            "facts": facts,
            "loaded_at": loaded.loaded_at,
            "reload_fault": self.fault,
        }

    def items(self, query: str, limit: int) -> Answer:
        """Return the most popular items whose id or title has the query in it."""
        table = self.loaded.by_popularity
        found = pc.match_substring(table["text"], query.lower())
        return Answer(200, {"items": table.filter(found).slice(0, limit).drop("text").to_pylist()})

    def stored(self, user: str, wishes: Wishes) -> ListAsk | None:
        """Return the request of a stored user, None where there is no such user.

        Args:
            user: The id as text.
            wishes: How the list is to be made.

        Returns:
            What `answer` takes.

        Raises:
            DataError: The users' data is absent or damaged.
        """
        if not Folder(self._prepared).exists(PREPARED):
            return None
        users = self._users
        if users is None:
            users = self._users = StoredUsers(self._prepared, self.config.cached_shards)
        found = users.find(user)
        if found is None:
            return None
        history, number = found
        is_same = users.data == self.loaded.bundle.facts.get("data")
        return ListAsk(history, wishes, number if is_same else -1)

    def answer(self, asks: Sequence[Ask]) -> list[Answer]:
        """Answer requests; those for lists share their batches.

        Args:
            asks: Checked against their own rules, not yet against the model.

        Returns:
            One for each, in order; 422 where a request does not go with the model.
        """
        loaded = self.loaded
        answers: dict[int, Answer] = {}
        together: dict[Wanted, list[int]] = {}
        for place, ask in enumerate(asks):
            try:
                if isinstance(ask, ListAsk):
                    require_history(loaded.vocabulary, ask.history, self.config.max_history)
                    together.setdefault(self._wanted(loaded, ask.wishes), []).append(place)
                elif isinstance(ask, TableAsk):
                    answers[place] = Answer(200, self._table(loaded, ask))
                else:
                    answers[place] = Answer(200, self._alone(loaded, ask))
            except RefusedError as refused:
                answers[place] = Answer(refused.status, {"detail": refused.detail})
        for wanted, places in together.items():
            bodies = self._lists(loaded, [asks[place] for place in places], wanted)
            answers |= {p: Answer(200, body) for p, body in zip(places, bodies, strict=True)}
        return [answers[place] for place in range(len(asks))]

    def _table(self, loaded: Loaded, ask: TableAsk) -> pa.Table:
        """Return the lists of the users of a table, with the accounts in its metadata."""
        wanted = self._wanted(loaded, ask.wishes)
        score = ScoreConfig(
            k=wanted.k,
            outputs=wanted.outputs,
            policy=wanted.policy,
            batch_users=self.config.batch_users,
        )
        try:
            require_columns(ask.table.column_names)
            self._require_short(ask.table["items"])
            found = read_histories(loaded.vocabulary, ask.table, None)
            rules = loaded.rules_of(wanted.policy)
            parts = [lists for lists, _ in lists_of(loaded.scorer, found, score, rules)]
        except (DataError, pa.ArrowException) as error:
            raise RefusedError(str(error)) from error
        about = {
            **self._signed(loaded),
            "rejected": json.dumps(found.rejected),
            "interactions": json.dumps(found.row_status),
        }
        return pa.concat_tables(parts).replace_schema_metadata(about)

    def _require_short(self, items: pa.ChunkedArray) -> None:
        if not pa.types.is_list(items.type) and not pa.types.is_large_list(items.type):
            return  # told with the other faults of columns
        longest, limit = pc.max(pc.list_value_length(items)).as_py() or 0, self.config.max_history
        if longest > limit:
            raise RefusedError(f"{longest} interactions of one user, at most {limit}")

    def _load(self) -> Loaded:
        bundle = load_bundle(self._folder)
        device = "cuda" if self.config.gpus_per_replica else "cpu"
        precision = self.config.precision
        scorer = Scorer(bundle.model, bundle.vocabulary, device=device, precision=precision)

        rules = Rules.of(self.config.policy, scorer.model, scorer.vocabulary)

        @lru_cache(maxsize=_CACHED_RULES)
        def rules_of(policy: PolicyConfig) -> Rules:
            return rules.with_numbers(policy, scorer.model, scorer.vocabulary)

        scorer.require_numbers()
        titles = _titles(self.config.titles)
        return Loaded(
            scorer,
            bundle,
            _version(bundle.facts),
            _tells(scorer),
            rules_of,
            titles,
            _by_popularity(scorer.vocabulary, titles),
            time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        )

    def _wanted(self, loaded: Loaded, wishes: Wishes) -> Wanted:
        if wishes.k > self.config.max_k:
            raise RefusedError(f"wishes.k = {wishes.k}: at most {self.config.max_k}")
        said = {name: getattr(wishes, name) for name in _OVERRIDES}
        changes = {name: value for name, value in said.items() if value is not None}
        if "max_per_group" in changes and self.config.policy.groups is None:
            raise RefusedError("wishes.max_per_group: this server knows no groups of items")
        policy = self.config.policy.model_copy(update=changes)
        try:
            loaded.rules_of(policy)
        except DistribError as error:
            raise RefusedError(f"wishes: {error}") from error
        outputs = None if wishes.outputs is None else tuple(dict.fromkeys(wishes.outputs))
        absent = [name for name in outputs or () if name not in loaded.tells]
        if absent:
            raise RefusedError(
                f"wishes.outputs: the model tells {', '.join(loaded.tells)}, but not "
                f"{', '.join(absent)}"
            )
        return Wanted(policy, wishes.k, outputs)

    def _lists(self, loaded: Loaded, asks: Sequence[Any], wanted: Wanted) -> list[dict[str, Any]]:
        """Make the lists of users who want the same, in one batch."""
        scorer, vocabulary = loaded.scorer, loaded.vocabulary
        found = read(vocabulary, [ask.history for ask in asks])
        numbers = torch.tensor([ask.number for ask in asks])
        source = found.source._replace(user_B=numbers)
        hidden = found.seen if wanted.policy.exclude_seen else None
        denied = [positions(vocabulary, ask.wishes.deny) for ask in asks]
        if any(len(items) for items in denied):
            hidden = joined(hidden, denied)
        lists = scorer.recommend(
            source,
            hidden,
            wanted.k,
            rules=loaded.rules_of(wanted.policy),
            limits=_limits(vocabulary, asks),
            tells=wanted.tells,
        )
        items = _items(loaded, lists, wanted.outputs)
        bodies = [
            {**self._signed(loaded), "items": listed, "read": _account(row_status)}
            for listed, row_status in zip(items, found.status_BF.tolist(), strict=True)
        ]
        if "embedding" in (wanted.outputs or ()):
            for body, vector in zip(bodies, scorer.embed(source).tolist(), strict=True):
                body["embedding"] = vector
        return bodies

    def _alone(self, loaded: Loaded, ask: Any) -> dict[str, Any]:
        """Answer a request that has a batch of its own."""
        limit = self.config.max_history
        if isinstance(ask, ExplainRequest):
            limit = min(limit, self.config.max_explained)
        require_history(loaded.vocabulary, ask.history, limit)
        if isinstance(ask, RatingsRequest):
            return self._ratings(loaded, ask)
        if isinstance(ask, ExplainRequest):
            return self._explained(loaded, ask)
        return self._map(loaded, ask)

    def _ratings(self, loaded: Loaded, ask: RatingsRequest) -> dict[str, Any]:
        require_kind(loaded.vocabulary, ask.targets, "targets")
        found = read(loaded.vocabulary, [ask.history])
        position_N = loaded.vocabulary.positions(pa.array(ask.targets))
        target = Batch.from_lists([position_N[position_N >= 0].tolist()])
        predicted = loaded.scorer.predict(found.source, target)
        if predicted is None:
            raise RefusedError(f"model {self.name!r} tells no ratings; ask for recommendations")
        deviation_N = predicted.deviation_N
        ratings = predicted.rating_N.tolist()
        spreads = [None] * len(ratings) if deviation_N is None else deviation_N.tolist()
        told = zip(ratings, spreads, strict=True)
        entries = [
            {"item": item, **dict(zip(("rating", "deviation"), values, strict=True))}
            for item, values in (
                (item, next(told) if is_known else (None, None))
                for item, is_known in zip(ask.targets, position_N >= 0, strict=True)
            )
        ]
        account = _account(found.status_BF[0].tolist())
        return {**self._signed(loaded), "ratings": entries, "read": account}

    def _explained(self, loaded: Loaded, ask: ExplainRequest) -> dict[str, Any]:
        wanted = self._wanted(loaded, ask.wishes)
        (listed,) = self._lists(loaded, [ListAsk(ask.history, ask.wishes)], wanted)
        source = read(loaded.vocabulary, [ask.history]).source
        ids = pa.array([entry["item"] for entry in listed["items"]], loaded.vocabulary.ids.type)
        position_K = torch.from_numpy(loaded.vocabulary.positions(ids))
        influence_NK = loaded.scorer.explain(source, position_K)
        count = min(ask.max_reasons, len(influence_NK))
        place_RK = influence_NK.abs().topk(count, dim=0).indices
        explained = [
            {
                "recommended": item,
                "reasons": [
                    {
                        **_named(loaded, int(source.item_N[place])),
                        "influence": float(influence_NK[place, column]),
                    }
                    for place in place_RK[:, column].tolist()
                ],
            }
            for column, item in enumerate(listed["items"])
        ]
        return {**listed, "items": explained}

    def _map(self, loaded: Loaded, ask: MapRequest) -> dict[str, Any]:
        source = read(loaded.vocabulary, [ask.history]).source
        step = -(-len(loaded.vocabulary) // ask.max_items)
        prediction = loaded.scorer.predictions(source, slice(0, None, step))
        if prediction is None or prediction.probability_BI is None:
            raise RefusedError(f"model {self.name!r} tells not both probabilities and ratings")
        seen = {*source.item_N.tolist()}
        told = zip(
            prediction.probability_BI[0].tolist(), prediction.rating_BI[0].tolist(), strict=True
        )
        points = [
            {
                **_named(loaded, place * step),
                "probability": probability,
                "rating": rating,
                "seen": place * step in seen,
            }
            for place, (probability, rating) in enumerate(told)
        ]
        levels = list(loaded.vocabulary.levels)
        return {**self._signed(loaded), "levels": levels, "items": points}

    def _signed(self, loaded: Loaded) -> dict[str, str]:
        return {"model": self.name, "version": loaded.version}


def _version(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:12]


def _titles(url: str | None) -> dict[Any, str]:
    if url is None:
        return {}
    table = item_table(url, ("item", "title"))
    titles = table["title"].cast(pa.string()).to_pylist()
    return dict(zip(table["item"].to_pylist(), titles, strict=True))


def _by_popularity(vocabulary: Vocabulary, titles: dict[Any, str]) -> pa.Table:
    count_I = vocabulary.train_count_IL.sum(1)
    order = np.argsort(-count_I, kind="stable")
    items = vocabulary.ids.take(pa.array(order))
    names = pa.array([titles.get(item) for item in items.to_pylist()], pa.string())
    ids = items.cast(pa.string())
    text = pc.binary_join_element_wise(ids, pc.fill_null(names, ""), " ")
    columns = {"item": items, "title": names, "interactions": count_I[order]}
    return pa.table({**columns, "text": pc.utf8_lower(text)})


def _tells(scorer: Scorer) -> tuple[str, ...]:
    """Return the outputs that a model gives, found by asking for an item of nobody's."""
    nobody = Batch.from_lists([[]])
    told = told_values(scorer, scorer.recommend(nobody, None, 1), None)
    names = [SINGULAR[column] for column in told]
    if {"probability", "rating"} <= {*names} and len(scorer.vocabulary.levels) > 1:
        names.append("serendipity")
    if user_embedding(scorer.model, scorer.model.encode(nobody.to(scorer.device))) is not None:
        names.append("embedding")
    return tuple(names)


def _limits(vocabulary: Vocabulary, asks: Sequence[ListAsk]) -> Limits | None:
    wanted = [ask.wishes.candidates for ask in asks]
    if all(candidates is None for candidates in wanted):
        return None
    cells = joined(None, [positions(vocabulary, candidates or []) for candidates in wanted])
    return Limits(cells, torch.tensor([candidates is not None for candidates in wanted]))


def _account(row_status: Sequence[int]) -> dict[str, int]:
    names = ("used", "unknown_items", "ratings_off_scale", "duplicates")
    return dict(zip(names, row_status, strict=True))


def _named(loaded: Loaded, position: int) -> dict[str, Any]:
    item = loaded.vocabulary.ids[position].as_py()
    return {"item": item, "title": loaded.titles.get(item)}


def _items(
    loaded: Loaded, lists: Recommendations, outputs: tuple[Output, ...] | None
) -> list[list[dict[str, Any]]]:
    """Lay lists out as JSON, without the places that had no candidate."""
    told = told_values(loaded.scorer, lists, outputs)
    columns = {SINGULAR[name]: value.tolist() for name, value in told.items()}
    found = []
    for row, item_K in enumerate(lists.item_BK):
        count = int((item_K >= 0).sum())
        ids = loaded.vocabulary.ids.take(pa.array(item_K[:count].numpy())).to_pylist()
        found.append(
            [
                {
                    "item": item,
                    "title": loaded.titles.get(item),
                    **{name: values[row][place] for name, values in columns.items()},
                }
                for place, item in enumerate(ids)
            ]
        )
    return found
