"""Response bodies of one loaded model, for each kind of request."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from distrib.batch import Batch
from distrib.config import JsonObject
from distrib.errors import DataError, DistribError
from distrib.models.capabilities import ReadsLatest
from distrib.scoring.histories import read_histories, require_columns
from distrib.scoring.policy import Output, PolicyConfig, ScoreConfig
from distrib.scoring.results import Recommendations
from distrib.scoring.search import Limits
from distrib.scoring.tables import SINGULAR, lists_of, output_columns
from distrib.serve.config import ServeConfig
from distrib.serve.loaded import Loaded
from distrib.serve.requests import (
    ArrowJob,
    RecommendJob,
    RefusedError,
    joined,
    positions,
    read,
    require_history,
    require_kind,
    require_options,
)
from distrib.serve.schemas import ExplainRequest, MapRequest, RatingsRequest, RecommendOptions
from distrib.vocabulary import Vocabulary

_OVERRIDES = ("exclude_seen", "min_score", "popularity_damping", "max_per_group", "diversity")


class Wanted(NamedTuple):
    """Settings shared by the requests of one batch."""

    policy: PolicyConfig
    k: int
    outputs: tuple[Output, ...] | None

    @property
    def with_predictions(self) -> bool:
        """Whether the outputs include more than scores and embeddings."""
        return self.outputs is None or bool({*self.outputs} - {"score", "embedding"})


class Answers(NamedTuple):
    """Makes response bodies. Requests that do not fit the model raise `RefusedError`."""

    model: str
    """Model name in requests."""

    loaded: Loaded
    config: ServeConfig

    def wanted(self, options: RecommendOptions) -> Wanted:
        """Check the options of a request; the server's policy fills in missing ones."""
        if options.k > self.config.max_k:
            raise RefusedError(f"options.k = {options.k}: at most {self.config.max_k}")
        given = {name: getattr(options, name) for name in _OVERRIDES}
        changes = {name: value for name, value in given.items() if value is not None}
        if "max_per_group" in changes and self.config.policy.groups is None:
            raise RefusedError("options.max_per_group: this server has no item groups")
        policy = self.config.policy.model_copy(update=changes)
        try:
            self.loaded.rules_of(policy)
        except DistribError as error:
            raise RefusedError(f"options: {error}") from error
        outputs = None if options.outputs is None else tuple(dict.fromkeys(options.outputs))
        absent = [name for name in outputs or () if name not in self.loaded.outputs]
        if absent:
            raise RefusedError(
                f"options.outputs: the model predicts {', '.join(self.loaded.outputs)}, "
                f"but not {', '.join(absent)}"
            )
        return Wanted(policy, options.k, outputs)

    def lists(self, jobs: Sequence[RecommendJob], wanted: Wanted) -> list[JsonObject]:
        """Recommend to users with the same settings, in one batch."""
        scorer, vocabulary = self.loaded.scorer, self.loaded.vocabulary
        found = read(vocabulary, [job.history for job in jobs])
        numbers = torch.tensor([job.number for job in jobs])
        source = found.source._replace(user_B=numbers)
        hidden = found.seen if wanted.policy.exclude_seen else None
        denied = [positions(vocabulary, job.options.deny) for job in jobs]
        if any(len(items) for items in denied):
            hidden = joined(hidden, denied)
        lists = scorer.recommend(
            source,
            hidden,
            wanted.k,
            rules=self.loaded.rules_of(wanted.policy),
            limits=_limits(vocabulary, jobs),
            with_predictions=wanted.with_predictions,
        )
        items = _items(self.loaded, lists, wanted.outputs)
        bodies = [
            {
                **self._signed(),
                "items": listed,
                "read": _account(row_status) | {"unknown_candidates": _unknown(vocabulary, job)},
            }
            for listed, row_status, job in zip(items, found.status_BF.tolist(), jobs, strict=True)
        ]
        if "embedding" in (wanted.outputs or ()):
            for body, vector in zip(bodies, scorer.embed(source).tolist(), strict=True):
                body["embedding"] = vector
        return bodies

    def alone(self, job: RatingsRequest | ExplainRequest | MapRequest) -> JsonObject:
        """Answer a request that is not batched with others."""
        limit = self.config.max_history
        model = self.loaded.scorer.model
        reads = model.max_length if isinstance(model, ReadsLatest) else limit
        if isinstance(job, ExplainRequest) and reads > self.config.max_explained:
            limit = min(limit, self.config.max_explained)
        require_history(self.loaded.vocabulary, job.history, limit)
        if isinstance(job, ExplainRequest):
            require_options(self.loaded.vocabulary, job.options)
        if isinstance(job, RatingsRequest):
            return self._ratings(job)
        if isinstance(job, ExplainRequest):
            return self._explained(job)
        return self._map(job)

    def table(self, job: ArrowJob) -> pa.Table:
        """Return the lists of the users of a table, with counts in its metadata."""
        wanted = self.wanted(job.options)
        score = ScoreConfig(
            k=wanted.k,
            outputs=wanted.outputs,
            policy=wanted.policy,
            batch_users=self.config.batch_users,
        )
        try:
            require_columns(job.table.column_names)
            self._require_short(job.table)
            found = read_histories(self.loaded.vocabulary, job.table, None)
            rules = self.loaded.rules_of(wanted.policy)
            parts = [lists for lists, _ in lists_of(self.loaded.scorer, found, score, rules)]
        except (DataError, pa.ArrowException) as error:
            raise RefusedError(str(error)) from error
        about = {
            **self._signed(),
            "rejected": json.dumps(found.rejected),
            "interactions": json.dumps(found.row_status),
            "unknown_candidates": str(found.unknown_candidates),
        }
        return pa.concat_tables(parts).replace_schema_metadata(about)

    def _require_short(self, table: pa.Table) -> None:
        """Refuse lists that are too long; those of nulls take no room in the body."""
        item_count, held = len(self.loaded.vocabulary), 0
        for name in {"items", "ratings", "times", "candidates"} & {*table.column_names}:
            kind = table[name].type
            if not pa.types.is_list(kind) and not pa.types.is_large_list(kind):
                raise RefusedError(f"column {name!r} is {kind}, not a list; give one list per user")
            lengths = pc.list_value_length(table[name])
            longest = pc.max(lengths).as_py() or 0
            limit = item_count if name == "candidates" else self.config.max_history
            if longest > limit:
                raise RefusedError(f"{name}: {longest} entries of one user, at most {limit}")
            held += pc.sum(lengths).as_py() or 0
        most = int(self.config.max_body_mb * 2**20)
        if held > most:
            raise RefusedError(f"the lists hold {held} entries, at most {most}; send fewer users")

    def _ratings(self, job: RatingsRequest) -> JsonObject:
        require_kind(self.loaded.vocabulary, job.targets, "targets")
        found = read(self.loaded.vocabulary, [job.history])
        position_N = self.loaded.vocabulary.positions(pa.array(job.targets))
        known, place_N = np.unique(position_N[position_N >= 0], return_inverse=True)
        target = Batch.from_lists([known.tolist()])
        predicted = self.loaded.scorer.predict(found.source, target)
        if predicted is None:
            raise RefusedError(
                f"model {self.model!r} does not predict ratings; request recommendations"
            )
        deviation_N = predicted.deviation_N
        ratings = predicted.rating_N.tolist()
        spreads = [None] * len(ratings) if deviation_N is None else deviation_N.tolist()
        columns = iter([(ratings[place], spreads[place]) for place in place_N])
        entries = [
            {"item": item, **dict(zip(("rating", "deviation"), values, strict=True))}
            for item, values in (
                (item, next(columns) if is_known else (None, None))
                for item, is_known in zip(job.targets, position_N >= 0, strict=True)
            )
        ]
        account = _account(found.status_BF[0].tolist())
        return {**self._signed(), "ratings": entries, "read": account}

    def _explained(self, job: ExplainRequest) -> JsonObject:
        wanted = self.wanted(job.options)
        (listed,) = self.lists([RecommendJob(job.history, job.options)], wanted)
        source = read(self.loaded.vocabulary, [job.history]).source
        ids = pa.array(
            [entry["item"] for entry in listed["items"]], self.loaded.vocabulary.ids.type
        )
        position_K = torch.from_numpy(self.loaded.vocabulary.positions(ids))
        influence_NK = self.loaded.scorer.explain(source, position_K)
        count = min(job.max_reasons, len(influence_NK))
        place_RK = influence_NK.abs().topk(count, dim=0).indices
        explained = [
            {
                "recommended": item,
                "reasons": [
                    {
                        **_named(self.loaded, int(source.item_N[place])),
                        "influence": float(influence_NK[place, column]),
                    }
                    for place in place_RK[:, column].tolist()
                ],
            }
            for column, item in enumerate(listed["items"])
        ]
        return {**listed, "items": explained}

    def _map(self, job: MapRequest) -> JsonObject:
        source = read(self.loaded.vocabulary, [job.history]).source
        step = -(-len(self.loaded.vocabulary) // job.max_items)
        prediction = self.loaded.scorer.predictions(source, slice(0, None, step))
        if prediction is None or prediction.probability_BI is None:
            raise RefusedError(
                f"model {self.model!r} does not predict both ratings and probabilities"
            )
        seen = {*source.item_N.tolist()}
        columns = zip(
            prediction.probability_BI[0].tolist(), prediction.rating_BI[0].tolist(), strict=True
        )
        points = [
            {
                **_named(self.loaded, place * step),
                "probability": probability,
                "rating": rating,
                "seen": place * step in seen,
            }
            for place, (probability, rating) in enumerate(columns)
        ]
        levels = list(self.loaded.vocabulary.levels)
        return {**self._signed(), "levels": levels, "items": points}

    def _signed(self) -> dict[str, str]:
        return {"model": self.model, "version": self.loaded.version}


def _limits(vocabulary: Vocabulary, jobs: Sequence[RecommendJob]) -> Limits | None:
    wanted = [job.options.candidates for job in jobs]
    if all(candidates is None for candidates in wanted):
        return None
    listed = joined(None, [positions(vocabulary, candidates or []) for candidates in wanted])
    return Limits(listed, torch.tensor([candidates is not None for candidates in wanted]))


def _unknown(vocabulary: Vocabulary, job: RecommendJob) -> int:
    wanted = {*(job.options.candidates or ())}
    return len(wanted) - len(positions(vocabulary, [*wanted]))


def _account(row_status: Sequence[int]) -> dict[str, int]:
    names = ("used", "unknown_items", "ratings_off_scale", "duplicates")
    return dict(zip(names, row_status, strict=True))


def _named(loaded: Loaded, position: int) -> JsonObject:
    item = loaded.vocabulary.ids[position].as_py()
    return {"item": item, "title": loaded.titles.get(item)}


def _items(
    loaded: Loaded, lists: Recommendations, outputs: tuple[Output, ...] | None
) -> list[list[JsonObject]]:
    """Convert lists to JSON, without empty places."""
    tensors = output_columns(loaded.scorer, lists, outputs)
    columns = {SINGULAR[name]: value.tolist() for name, value in tensors.items()}
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
