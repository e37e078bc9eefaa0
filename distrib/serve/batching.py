"""Requests that come one by one, worked on by many: a queue with a bound."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

JobT = TypeVar("JobT")
AnswerT = TypeVar("AnswerT")


class BusyError(Exception):
    """So many wait that a further one would only wait in vain."""


class Batcher(Generic[JobT, AnswerT]):
    """Gathers what is asked while a batch is worked on, in one thread of its own.

    A batch begins as soon as the one before is done and something waits, after a short wait for
    company where it is small. Whoever asked and went away is left out.

    Args:
        work: Answers a batch, in order.
        max_batch: Most users at once; whoever asks for more has a batch alone.
        wait_s: How long the first of a batch waits for others.
        max_waiting: Most that wait.
        on_batch: Hears the number of users of each batch.
    """

    def __init__(
        self,
        work: Callable[[Sequence[JobT]], Sequence[AnswerT]],
        *,
        max_batch: int,
        wait_s: float,
        max_waiting: int,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._work = work
        self._max_batch, self._wait_s, self._max_waiting = max_batch, wait_s, max_waiting
        self._on_batch = on_batch
        self._waiting: deque[_Waiting[JobT, AnswerT]] = deque()
        self._thread = ThreadPoolExecutor(1)
        self._worker: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    async def submit(self, job: JobT, users: int = 1) -> AnswerT:
        """Wait for an answer.

        Args:
            job: What is asked.
            users: For how many.

        Returns:
            The answer.

        Raises:
            BusyError: Too many wait already.
        """
        if len(self._waiting) >= self._max_waiting:
            raise BusyError(f"{len(self._waiting)} requests wait already")
        future: asyncio.Future[AnswerT] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(job, future, users))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._serve())
        return await future

    async def beat(self) -> None:
        """Wait until the thread comes round to do nothing."""
        await asyncio.get_running_loop().run_in_executor(self._thread, int)

    async def _serve(self) -> None:
        while self._waiting:
            if len(self._waiting) < self._max_batch and self._wait_s:
                await asyncio.sleep(self._wait_s)
            batch = self._taken()
            if batch:
                self._on_batch(sum(waiting.users for waiting in batch))
                await self._answered(batch)

    def _taken(self) -> "list[_Waiting[JobT, AnswerT]]":
        """Take from the queue what makes a batch."""
        batch: list[_Waiting[JobT, AnswerT]] = []
        room = self._max_batch
        while self._waiting and (not batch or self._waiting[0].users <= room):
            waiting = self._waiting.popleft()
            if not waiting.future.done():
                batch.append(waiting)
                room -= waiting.users
        return batch

    async def _answered(self, batch: "list[_Waiting[JobT, AnswerT]]") -> None:
        jobs = [waiting.job for waiting in batch]
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self._thread, self._work, jobs)
        except Exception as error:  # noqa: BLE001  those who wait must hear of anything
            for waiting in batch:
                if not waiting.future.done():
                    waiting.future.set_exception(error)
            return
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.future.done():
                waiting.future.set_result(answer)


class _Waiting(NamedTuple, Generic[JobT, AnswerT]):
    """Someone who asked."""

    job: JobT
    future: "asyncio.Future[AnswerT]"
    users: int
