"""A desk with a queue before it: the questions that may be put to a model, asynchronously."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from distrib.errors import DataError
from distrib.events import emit
from distrib.serve.arrow import stream_of, table_of
from distrib.serve.batching import Batcher, BusyError
from distrib.serve.config import ServeConfig
from distrib.serve.desk import Ask, Desk
from distrib.serve.messages import Answer, RecommendRequest, Wishes
from distrib.serve.reading import ListAsk


class Meters(Protocol):
    """Who keeps count of what a model does."""

    def batched(self, num_users: int) -> None:
        """Note a batch that begins."""

    def waiting(self, count: int) -> None:
        """Note how many wait."""

    def unknown(self, count: int) -> None:
        """Note items in requests that the model does not know."""

    def reloaded(self, *, is_well: bool) -> None:
        """Note a newer bundle that was taken, or could not be."""


class Replica:
    """Answers questions by name; whatever is asked, the answer is one of `Answer`.

    Args:
        desk: The model.
        config: Limits.
        meters: Who keeps count.
    """

    def __init__(self, desk: Desk, config: ServeConfig, meters: Meters) -> None:
        self.desk = desk
        self.meters = meters
        self._batcher: Batcher[Ask, Answer] = Batcher(
            self._work,
            max_batch=config.batch_users,
            wait_s=config.batch_wait_ms / 1000,
            max_waiting=config.max_waiting,
            told=meters.batched,
        )
        self._questions: dict[str, Callable[..., Any]] = {
            "card": self._card,
            "items": self._items,
            "recommend": self._recommend,
            "recommend_stored": self._recommend_stored,
            "recommend_arrow": self._recommend_arrow,
            "answer": self._batcher.ask,
        }

    async def ask(self, what: str, *arguments: Any) -> Answer:
        """Put a question.

        Args:
            what: ``card``; ``items`` (query, limit); ``recommend`` (a request), ``answer`` (one of
                the others); ``recommend_stored`` (user, wishes); ``recommend_arrow`` (stream,
                wishes).
            *arguments: Of the question.

        Returns:
            The answer; 429 where too many wait.
        """
        try:
            answer: Answer = await self._questions[what](*arguments)
        except BusyError as error:
            answer = Answer(429, {"detail": f"{error}; come again"})
        self.meters.waiting(self._batcher.waiting)
        return answer

    async def watch(self, every_s: float) -> None:
        """Look for a newer bundle for ever, beside the answers."""
        while True:
            await asyncio.sleep(every_s)
            version, fault = self.desk.loaded.version, self.desk.fault
            is_new = await asyncio.get_running_loop().run_in_executor(None, self.desk.refresh)
            if is_new:
                emit("reloaded", model=self.desk.name, was=version, now=self.desk.loaded.version)
                self.meters.reloaded(is_well=True)
            elif self.desk.fault not in {None, fault}:
                emit("reload_failed", model=self.desk.name, fault=self.desk.fault, kept=version)
                self.meters.reloaded(is_well=False)

    async def beat(self) -> None:
        """Wait until the thread that scores comes round."""
        await self._batcher.apart(lambda: None)

    def _work(self, asks: Sequence[Ask]) -> list[Answer]:
        try:
            answers = self.desk.answer(asks)
        except Exception as error:  # noqa: BLE001  one request must not take the others with it
            if len(asks) > 1:
                return [answer for ask in asks for answer in self._work([ask])]
            emit("answer_failed", model=self.desk.name, fault=f"{type(error).__name__}: {error}")
            return [Answer(500, {"detail": "the scorer failed; it is in the server's log"})]
        reads = [answer.body.get("read") for answer in answers]
        self.meters.unknown(sum(read["unknown_items"] for read in reads if read))
        return answers

    async def _card(self) -> Answer:
        return Answer(200, self.desk.card())

    async def _items(self, query: str, limit: int) -> Answer:
        return self.desk.items(query, limit)

    async def _recommend(self, request: RecommendRequest) -> Answer:
        return await self._batcher.ask(ListAsk(request.history, request.wishes))

    async def _recommend_stored(self, user: str, wishes: Wishes) -> Answer:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(None, self.desk.stored, user, wishes)
        except DataError as error:
            return Answer(503, {"detail": str(error)})
        if found is None:
            return Answer(404, {"detail": "no such user in the prepared data"})
        return await self._batcher.ask(found)

    async def _recommend_arrow(self, content: bytes, wishes: Wishes) -> Answer:
        try:
            table = table_of(content)
        except ValueError as error:
            return Answer(422, {"detail": str(error)})
        answer: Answer = await self._batcher.apart(lambda: self.desk.answer_table(table, wishes))
        return answer if answer.status != 200 else Answer(200, stream_of(answer.body))
