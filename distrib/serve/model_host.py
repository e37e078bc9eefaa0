"""Hosts one model: reloads newer bundles and answers batches of requests."""

import threading
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import torch

from distrib.checkpoint.bundle import BUNDLE
from distrib.checkpoint.manifest import MANIFEST, read_manifest
from distrib.config import JsonObject
from distrib.data.dataset import MANIFEST as PREPARED
from distrib.data.dataset import Dataset
from distrib.errors import DataError, DistribError
from distrib.serve.answers import Answers, Wanted
from distrib.serve.config import ServeConfig
from distrib.serve.loaded import Loaded, load, version_of
from distrib.serve.requests import (
    ArrowJob,
    RecommendJob,
    RefusedError,
    require_history,
    require_options,
)
from distrib.serve.schemas import (
    Answer,
    ExplainRequest,
    History,
    MapRequest,
    RatingsRequest,
    RecommendOptions,
)
from distrib.serve.user_store import StoredUsers
from distrib.storage import Folder

Job = RecommendJob | ArrowJob | RatingsRequest | ExplainRequest | MapRequest


class ModelHost:
    """A run's model, kept up to date, that answers batches of requests.

    Only one thread may call `answer` at a time; `refresh` may run concurrently.

    Args:
        name: Model name in requests.
        run: Run folder.
        prepared: Prepared folder whose users can be requested by id.
        config: Limits and policy.

    Raises:
        CheckpointError: There is no bundle, or it is damaged.
        ConfigError: The policy does not fit the model.
        DataError: A configured file is absent or not a table.
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
        """Load a newer bundle if there is one; keep the current one if that fails.

        A bundle that is being written is ignored until its manifest exists.

        Returns:
            Whether the model was replaced.
        """
        with self._lock:
            self._refresh_users()
            version = self.loaded.version
            try:
                if not self._folder.exists(MANIFEST):
                    return False
                version = version_of(read_manifest(self._folder))
                if version in {self.loaded.version, self._refused}:
                    return False
                self.loaded = self._load()
            except DataError as error:  # store failure, maybe transient: retry at the next refresh
                self.fault = str(error)
                return False
            except Exception as error:  # noqa: BLE001  keep serving the current model
                what = str(error) if isinstance(error, DistribError) else repr(error)
                self.fault, self._refused = what, version
                return False
            self.fault, self._refused = None, ""
            return True

    def _refresh_users(self) -> None:
        """Reopen the stored users if they were prepared again."""
        users = self._users
        if users is None:
            return
        try:
            if Dataset.open(self._prepared).hash != users.data:
                self._users = StoredUsers(self._prepared, self.config.cached_shards)
        except DataError:
            return  # being written, or the store is unavailable

    def card(self) -> JsonObject:
        """Return the model card; see `schemas.ModelCard`."""
        loaded = self.loaded
        manifest = loaded.bundle.manifest
        return {
            "name": self.name,
            "version": loaded.version,
            "bundle": {name: entry.sha256 for name, entry in manifest.files.items()},
            "model": loaded.bundle.config.model_dump(mode="json"),
            "outputs": list(loaded.outputs),
            "tells": list(loaded.outputs),
            "reads_ratings": len(loaded.vocabulary.levels) > 1,
            "reads_repeats": loaded.vocabulary.facts.has_repeats,
            "levels": list(loaded.vocabulary.levels),
            "item_count": len(loaded.vocabulary),
            "num_users": loaded.vocabulary.num_users,
            "facts": manifest.facts,
            "loaded_at": loaded.loaded_at,
            "reload_fault": self.fault,
        }

    def items(self, query: str, limit: int) -> Answer:
        """Return the most popular items whose id or title contains the query."""
        table = self.loaded.by_popularity
        found = pc.match_substring(table["text"], query.lower())
        return Answer(200, {"items": table.filter(found).slice(0, limit).drop("text").to_pylist()})

    def stored(self, user: str, options: RecommendOptions) -> RecommendJob | None:
        """Return the request for a stored user, None if there is no such user.

        Args:
            user: The id as a string.
            options: Options of the list.

        Returns:
            A job for `answer`.

        Raises:
            DataError: The users' data is absent or damaged.
        """
        found = self._find(user)
        if found is None:
            return None
        history, number, data = found
        is_same = data == self.loaded.bundle.facts.data
        return RecommendJob(history, options, number if is_same else -1)

    def history(self, user: str) -> JsonObject | None:
        """Return the history of a stored user, None if there is no such user.

        Args:
            user: The id as a string.

        Returns:
            The fields of `schemas.HistoryAnswer`.

        Raises:
            DataError: The users' data is absent or damaged.
        """
        found = self._find(user)
        if found is None:
            return None
        items, ratings = found[0].items, found[0].ratings
        vocabulary, titles = self.loaded.vocabulary, self.loaded.titles
        count_I = vocabulary.train_count_IL.sum(1)
        place_N = vocabulary.positions(pa.array(items, vocabulary.ids.type)).tolist()
        rated = ratings if ratings is not None else [None] * len(items)
        entries = [
            {"item": item, "title": titles.get(item), "interactions": count_I[at], "rating": rating}
            for item, at, rating in zip(items, place_N, rated, strict=True)
            if at >= 0
        ]
        return {"user": user, "items": entries}

    def _find(self, user: str) -> tuple[History, int, str] | None:
        """Find a stored user: history, index, and hash of the data; None if there is none."""
        if not Folder(self._prepared).exists(PREPARED):
            return None
        users = self._users
        if users is None:
            users = self._users = StoredUsers(self._prepared, self.config.cached_shards)
        found = users.find(user)
        return None if found is None else (*found, users.data)

    def _load(self) -> Loaded:
        return load(self._folder, self.config)

    def answer(self, jobs: Sequence[Job]) -> list[Answer]:
        """Answer requests; list requests with the same settings share a batch.

        Args:
            jobs: Checked against the schema, not yet against the model.

        Returns:
            One answer per job, in order; 422 if a request does not fit the model.
        """
        make = Answers(self.name, self.loaded, self.config)
        answers: dict[int, Answer] = {}
        together: dict[Wanted, dict[int, RecommendJob]] = {}
        for place, job in enumerate(jobs):
            try:
                if isinstance(job, RecommendJob):
                    require_history(make.loaded.vocabulary, job.history, self.config.max_history)
                    require_options(make.loaded.vocabulary, job.options)
                    together.setdefault(make.wanted(job.options), {})[place] = job
                elif isinstance(job, ArrowJob):
                    answers[place] = Answer(200, make.table(job))
                else:
                    answers[place] = Answer(200, make.alone(job))
            except RefusedError as refused:
                answers[place] = Answer(refused.status, {"detail": refused.detail})
        for wanted, alike in together.items():
            bodies = make.lists([*alike.values()], wanted)
            answers |= {p: Answer(200, body) for p, body in zip(alike, bodies, strict=True)}
        return [answers[place] for place in range(len(jobs))]
