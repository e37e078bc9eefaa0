"""Requests that come one by one, worked on by many: a queue with a bound."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

AskT = TypeVar("AskT")
AnswerT = TypeVar("AnswerT")


class BusyError(Exception):
    """So many wait that a further one would only wait in vain."""


class Batcher(Generic[AskT, AnswerT]):
    """Gathers what is asked while a batch is worked on, in one thread of its own.

    A batch begins as soon as the one before is done and something waits, after a short wait for
    company where it is small. Whoever asked and went away is left out.

    Args:
        work: Answers a batch, in order.
        max_batch: Most asked at once.
        wait_s: How long the first of a batch waits for others.
        max_waiting: Most that wait.
        told: Hears the size of each batch.
    """

    def __init__(
        self,
        work: Callable[[Sequence[AskT]], Sequence[AnswerT]],
        *,
        max_batch: int,
        wait_s: float,
        max_waiting: int,
        told: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._work = work
        self._max_batch, self._wait_s, self._max_waiting = max_batch, wait_s, max_waiting
        self._told = told
        self._waiting: deque[tuple[AskT, asyncio.Future[AnswerT]]] = deque()
        self._thread = ThreadPoolExecutor(1)
        self._worker: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    async def ask(self, ask: AskT) -> AnswerT:
        """Wait for an answer.

        Args:
            ask: What is asked.

        Returns:
            The answer.

        Raises:
            BusyError: Too many wait already.
        """
        if len(self._waiting) >= self._max_waiting:
            raise BusyError(f"{len(self._waiting)} requests wait already")
        future: asyncio.Future[AnswerT] = asyncio.get_running_loop().create_future()
        self._waiting.append((ask, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._serve())
        return await future

    async def apart(self, work: Callable[[], Any]) -> Any:
        """Do something else in the same thread, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _serve(self) -> None:
        while self._waiting:
            if len(self._waiting) < self._max_batch and self._wait_s:
                await asyncio.sleep(self._wait_s)
            batch = [
                self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))
            ]
            batch = [(ask, future) for ask, future in batch if not future.done()]
            if batch:
                self._told(len(batch))
                await self._answered(batch)

    async def _answered(self, batch: list[tuple[AskT, asyncio.Future[AnswerT]]]) -> None:
        asks = [ask for ask, _ in batch]
        try:
            answers = await self.apart(lambda: self._work(asks))
        except Exception as error:  # noqa: BLE001  those who wait must hear of anything
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)
