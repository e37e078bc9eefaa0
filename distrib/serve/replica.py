"""Async front of a model host: request methods, batching queue, and bundle reloads."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from distrib.errors import DataError, excerpt
from distrib.events import emit
from distrib.serve.arrow_stream import stream_of, table_of
from distrib.serve.batching import Batcher, BusyError
from distrib.serve.config import ServeConfig
from distrib.serve.model_host import Job, ModelHost
from distrib.serve.requests import ArrowJob, RecommendJob
from distrib.serve.schemas import Answer, RecommendOptions, RecommendRequest

T = TypeVar("T")


class ModelMetrics(Protocol):
    """Receives metrics of a model."""

    def batched(self, num_users: int) -> None:
        """Record the size of a batch that starts."""

    def waiting(self, count: int) -> None:
        """Record the number of queued requests."""

    def unknown(self, count: int) -> None:
        """Count items in requests that the model does not know."""

    def reloaded(self, *, is_well: bool) -> None:
        """Count a reload of a newer bundle, successful or not."""


class Replica:
    """Dispatches requests by method name; every result is an `Answer`.

    Args:
        host: The model.
        config: Limits.
        metrics: Receives metrics of the model.
    """

    def __init__(self, host: ModelHost, config: ServeConfig, metrics: ModelMetrics) -> None:
        self.host = host
        self.metrics = metrics
        self._streams, self._max_streams = 0, config.max_streams
        self._max_users, self._batch_users = config.max_users, config.batch_users
        self._batcher: Batcher[Job, Answer] = Batcher(
            self._work,
            max_batch=config.batch_users,
            wait_s=config.batch_wait_ms / 1000,
            max_queue=config.max_queue,
            on_batch=metrics.batched,
        )
        self._questions: dict[str, Callable[..., Any]] = {
            "card": self._card,
            "items": self._items,
            "recommend": self._recommend,
            "recommend_stored": self._recommend_stored,
            "history": self._history,
            "recommend_arrow": self._recommend_arrow,
            "answer": self._batcher.submit,
        }

    async def submit(self, what: str, *arguments: Any) -> Answer:
        """Answer a request.

        Args:
            what: Method: ``card``; ``items`` (query, limit); ``recommend`` (a `RecommendRequest`);
                ``answer`` (another request); ``recommend_stored`` (user, options);
                ``history`` (user); ``recommend_arrow`` (stream, options).
            *arguments: Arguments of the method.

        Returns:
            The answer; 429 if the queue is full.
        """
        try:
            answer: Answer = await self._questions[what](*arguments)
        except BusyError as error:
            answer = Answer(429, {"detail": f"{error}; retry later"})
        self.metrics.waiting(self._batcher.waiting)
        return answer

    async def watch(self, every_s: float) -> None:
        """Check for a newer bundle every ``every_s`` seconds, forever."""
        while True:
            await asyncio.sleep(every_s)
            version, fault = self.host.loaded.version, self.host.fault
            is_new = await asyncio.get_running_loop().run_in_executor(None, self.host.refresh)
            if is_new:
                emit("reloaded", model=self.host.name, was=version, now=self.host.loaded.version)
                self.metrics.reloaded(is_well=True)
            elif self.host.fault not in {None, fault}:
                emit("reload_failed", model=self.host.name, fault=self.host.fault, kept=version)
                self.metrics.reloaded(is_well=False)

    async def beat(self) -> None:
        """Wait until the scoring thread responds."""
        await self._batcher.beat()

    def _work(self, jobs: Sequence[Job]) -> list[Answer]:
        try:
            answers = self.host.answer(jobs)
        except Exception as error:  # noqa: BLE001  one request must not fail the others
            if len(jobs) > 1:
                return [answer for job in jobs for answer in self._work([job])]
            emit("answer_failed", model=self.host.name, fault=f"{type(error).__name__}: {error}")
            return [Answer(500, {"detail": "internal error; see the server log"})]
        bodies = [answer.body for answer in answers if isinstance(answer.body, dict)]
        reads = [body["read"] for body in bodies if "read" in body]
        self.metrics.unknown(sum(read["unknown_items"] for read in reads))
        return answers

    async def _card(self) -> Answer:
        return Answer(200, self.host.card())

    async def _items(self, query: str, limit: int) -> Answer:
        return self.host.items(query, limit)

    async def _recommend(self, request: RecommendRequest) -> Answer:
        return await self._batcher.submit(RecommendJob(request.history, request.options))

    async def _recommend_stored(self, user: str, options: RecommendOptions) -> Answer:
        found = await self._of_stored(user, lambda: self.host.stored(user, options))
        return found if isinstance(found, Answer) else await self._batcher.submit(found)

    async def _history(self, user: str) -> Answer:
        found = await self._of_stored(user, lambda: self.host.history(user))
        return found if isinstance(found, Answer) else Answer(200, found)

    async def _of_stored(self, user: str, read: Callable[[], T | None]) -> T | Answer:
        """Read something of a stored user in a thread; an answer where there is no such user."""
        try:
            found = await asyncio.get_running_loop().run_in_executor(None, read)
        except DataError as error:
            emit("stored_users_unavailable", error=str(error))
            return Answer(503, {"detail": "the stored users cannot be read; retry later"})
        if found is None:
            return Answer(404, {"detail": f"no such user in the prepared data: {excerpt(user)!r}"})
        return found

    async def _recommend_arrow(self, content: bytes, options: RecommendOptions) -> Answer:
        """Answer a stream one batch of users at a time, so that other requests run in between."""
        if self._streams >= self._max_streams:
            raise BusyError(f"too many concurrent streams ({self._streams})")
        self._streams += 1
        try:
            return await self._answered_stream(content, options)
        finally:
            self._streams -= 1

    async def _answered_stream(self, content: bytes, options: RecommendOptions) -> Answer:
        loop = asyncio.get_running_loop()
        try:
            table = await loop.run_in_executor(None, table_of, content)
        except ValueError as error:
            return Answer(422, {"detail": str(error)})
        if len(table) > self._max_users:
            detail = f"{len(table)} users, but {self._max_users} are allowed; send fewer"
            return Answer(413, {"detail": detail})
        found = []
        for start in range(0, max(len(table), 1), self._batch_users):
            part = table.slice(start, self._batch_users)
            answer = await self._batcher.submit(ArrowJob(part, options), max(len(part), 1))
            if answer.status != 200:
                return answer
            found.append(answer.body)
        return Answer(200, await loop.run_in_executor(None, _joined, found))


def _joined(parts: list[pa.Table]) -> bytes:
    """Concatenate the lists of a stream, and add up the counts of users and interactions."""
    totals: dict[str, Counter[str]] = {"rejected": Counter(), "interactions": Counter()}
    for part in parts:
        for name, total in totals.items():
            total.update(json.loads(part.schema.metadata[name.encode()]))
    plain = pa.concat_tables([part.replace_schema_metadata(None) for part in parts])
    unknown = sum(int(part.schema.metadata[b"unknown_candidates"]) for part in parts)
    versions = {part.schema.metadata[b"version"].decode() for part in parts}
    about = {
        "model": parts[0].schema.metadata[b"model"].decode(),
        "version": ",".join(sorted(versions)),
        "unknown_candidates": str(unknown),
        **{name: json.dumps(total) for name, total in totals.items()},
    }
    return stream_of(plain.replace_schema_metadata(about))
