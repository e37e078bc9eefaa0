"""Dynamic batching of single requests, with a bounded queue."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

JobT = TypeVar("JobT")
AnswerT = TypeVar("AnswerT")


class BusyError(Exception):
    """The queue is full."""


class Batcher(Generic[JobT, AnswerT]):
    """Queues jobs while one batch runs in a dedicated thread.

    A batch starts when the previous one is done and the queue is not empty; if fewer than
    ``max_batch`` jobs are queued, it first waits ``wait_s`` for more. Canceled jobs are skipped.

    Args:
        work: Answers a batch, in order.
        max_batch: Most users per batch; a larger job is a batch of its own.
        wait_s: Time that a batch which is not full waits for more jobs.
        max_queue: Capacity of the queue.
        on_batch: Called with the number of users of each batch.
    """

    def __init__(
        self,
        work: Callable[[Sequence[JobT]], Sequence[AnswerT]],
        *,
        max_batch: int,
        wait_s: float,
        max_queue: int,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._work = work
        self._max_batch, self._wait_s, self._max_waiting = max_batch, wait_s, max_queue
        self._on_batch = on_batch
        self._waiting: deque[_Waiting[JobT, AnswerT]] = deque()
        self._thread = ThreadPoolExecutor(1)
        self._worker: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Number of queued jobs."""
        return len(self._waiting)

    async def submit(self, job: JobT, users: int = 1) -> AnswerT:
        """Queue a job and wait for its answer.

        Args:
            job: Passed to ``work``.
            users: Number of users of the job.

        Returns:
            The answer.

        Raises:
            BusyError: The queue is full.
        """
        if len(self._waiting) >= self._max_waiting:
            raise BusyError(f"too many queued requests ({len(self._waiting)})")
        future: asyncio.Future[AnswerT] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(job, future, users))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._serve())
        return await future

    async def beat(self) -> None:
        """Wait until the thread runs a no-op, which proves that it is alive."""
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
        """Take the jobs of the next batch from the queue."""
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
        except Exception as error:  # noqa: BLE001  every waiting caller must get an answer
            for waiting in batch:
                if not waiting.future.done():
                    waiting.future.set_exception(error)
            return
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.future.done():
                waiting.future.set_result(answer)


class _Waiting(NamedTuple, Generic[JobT, AnswerT]):
    """A queued job."""

    job: JobT
    future: "asyncio.Future[AnswerT]"
    users: int
