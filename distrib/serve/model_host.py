"""One model that answers: many requests to one batch, and each its own answer."""

import threading
from collections.abc import Sequence

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
from distrib.serve.requests import ArrowJob, RecommendJob, RefusedError, require_history
from distrib.serve.schemas import (
    Answer,
    ExplainRequest,
    MapRequest,
    RatingsRequest,
    RecommendOptions,
)
from distrib.serve.user_store import StoredUsers
from distrib.storage import Folder

Job = RecommendJob | ArrowJob | RatingsRequest | ExplainRequest | MapRequest


class ModelHost:
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
                version = version_of(read_manifest(self._folder))
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

    def card(self) -> JsonObject:
        """Return what is served here; see `messages.ModelCard`."""
        loaded = self.loaded
        facts = {k: v for k, v in loaded.bundle.facts.items() if k != "files"}
        files = loaded.bundle.facts["files"]
        return {
            "name": self.name,
            "version": loaded.version,
            "bundle": {name: entry["sha256"] for name, entry in files.items()},
            "model": loaded.bundle.config.model_dump(mode="json"),
            "tells": list(loaded.outputs),
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

    def stored(self, user: str, options: RecommendOptions) -> RecommendJob | None:
        """Return the request of a stored user, None where there is no such user.

        Args:
            user: The id as text.
            options: How the list is to be made.

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
        return RecommendJob(history, options, number if is_same else -1)

    def _load(self) -> Loaded:
        return load(self._folder, self.config)

    def answer(self, jobs: Sequence[Job]) -> list[Answer]:
        """Answer requests; those for lists share their batches.

        Args:
            jobs: Checked against their own rules, not yet against the model.

        Returns:
            One for each, in order; 422 where a request does not go with the model.
        """
        make = Answers(self.name, self.loaded, self.config)
        answers: dict[int, Answer] = {}
        together: dict[Wanted, dict[int, RecommendJob]] = {}
        for place, job in enumerate(jobs):
            try:
                if isinstance(job, RecommendJob):
                    require_history(make.loaded.vocabulary, job.history, self.config.max_history)
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
