"""A worker for many callers: waiting requests that fit together are computed together.

Computations pause (:mod:`tokenwm.imagination.pausing`). At every pause, what nobody wants any more
is dropped, what waits may begin, and the next batch has its turn.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from tokenwm.errors import TokenwmError
from tokenwm.imagination.pausing import Pausing
from tokenwm.serving.metrics import Metrics

TURN_SECONDS = 0.25
"""Length of a batch's turn, after which it goes on to its next pause, then another's begins."""
BATCHES_AT_ONCE = 4
"""Batches of the largest size that may take turns: the memory of their caches is held."""


class UnavailableError(TokenwmError):
    """There is no room now; there may be later."""


class QueueFullError(UnavailableError):
    """More is waiting than may wait."""


class StoppedError(UnavailableError):
    """Nothing more is computed here."""


class DeadlineError(TokenwmError):
    """A result did not come in time."""


class UnwantedError(TokenwmError):
    """The caller has gone."""


@dataclass(kw_only=True, eq=False)  # requests hold arrays, which do not compare
class _Job:
    """Something to compute; see :meth:`Batcher.submit`. Times are of :func:`time.monotonic`."""

    key: Hashable
    num_rows: int
    length: int
    request: Any
    deadline: float
    submitted: float = field(default_factory=time.monotonic)
    future: Future[Any] = field(default_factory=Future)


@dataclass(kw_only=True, eq=False)
class _Batch:
    jobs: list[_Job]
    work: Pausing[list[Any]]
    began: float = field(default_factory=time.monotonic)

    @property
    def num_rows(self) -> int:
        return sum(job.num_rows for job in self.jobs)


class Batcher:
    """Computes jobs on one thread; begins them first come first served, others that fit along.

    Batches that have begun take turns, from pause to pause.

    Args:
        compute: Requests of jobs with one key → a generator that returns their results, in order.
        max_rows: Most rows of a batch; a larger job is computed alone.
        max_queued_rows: Most rows that may wait.
        metrics: Counters and histograms.
        turn_seconds: Length of a turn, seconds; it ends at the next pause of the computation.
    """

    def __init__(
        self,
        compute: Callable[[list[Any]], Pausing[list[Any]]],
        *,
        max_rows: int,
        max_queued_rows: int,
        metrics: Metrics | None = None,
        turn_seconds: float = TURN_SECONDS,
    ) -> None:
        self.compute, self.max_rows, self.max_queued_rows = compute, max_rows, max_queued_rows
        self.turn_seconds = turn_seconds
        self.metrics = metrics or Metrics()
        self._waiting: deque[_Job] = deque()
        self._begun: deque[_Batch] = deque()
        self._changed = threading.Condition()
        self._stop_at: float | None = None
        self._worker = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._worker.start()

    @property
    def queued_rows(self) -> int:
        """Rows that wait."""
        with self._changed:
            return sum(job.num_rows for job in self._waiting)

    @property
    def running_seconds(self) -> float:
        """Age of the oldest batch that has begun, 0 if there is none."""
        with self._changed:
            now = time.monotonic()
            return max((now - batch.began for batch in self._begun), default=0.0)

    @property
    def is_alive(self) -> bool:
        """True while the worker thread computes jobs."""
        return self._worker.is_alive()

    async def submit(
        self,
        key: Hashable,
        num_rows: int,
        length: int,
        request: Any,
        timeout: float,
        gone: Awaitable[object] | None = None,
    ) -> Any:
        """Wait for a result.

        Args:
            key: Jobs with equal keys can be computed together; None: alone.
            num_rows: Rows that it takes of a batch.
            length: A job joins another that is at least as long and at most twice.
            request: The request to compute.
            timeout: Seconds to wait.
            gone: Ends when the result is not wanted any more.

        Raises:
            QueueFullError: Too much is waiting.
            StoppedError: The batcher was closed.
            DeadlineError: The result did not come within ``timeout`` seconds.
            UnwantedError: It is not wanted any more.
            Exception: Whatever computing raised.
        """
        deadline = time.monotonic() + timeout
        job = _Job(key=key, num_rows=num_rows, length=length, request=request, deadline=deadline)
        with self._changed:
            queued = self.queued_rows
            if self._stop_at is not None:
                raise StoppedError("the server stops")
            if self._waiting and queued + num_rows > self.max_queued_rows:
                raise QueueFullError(
                    f"{queued} rows are waiting and at most {self.max_queued_rows} may; "
                    "try again later"
                )
            self._waiting.append(job)
            self._changed.notify()
        result = asyncio.wrap_future(job.future)
        leaving = [] if gone is None else [asyncio.ensure_future(gone)]
        try:
            await asyncio.wait(
                [result, *leaving], timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if result.done():
                return result.result()
            if leaving and leaving[0].done():
                raise UnwantedError("the client has gone")
            raise DeadlineError(f"no result within {timeout:g} s")
        finally:
            for task in leaving:
                task.cancel()
            job.future.cancel()  # if it is not done; the worker sees it at its next pause
            self._finish(job)

    def close(self, grace: float = 0.0) -> None:
        """Refuse what waits, compute what has begun for a while, and stop.

        Waits for the next pause, but not for ever.

        Args:
            grace: Seconds that what has begun is given.
        """
        with self._changed:
            self._stop_at = time.monotonic() + grace
            for job in list(self._waiting):
                self._finish(job, error=StoppedError("the server stops"))
            self._changed.notify()
        self._worker.join(grace + 10.0)

    def _work(self) -> None:
        batch: _Batch | None = None
        while (batch := self._next(batch)) is not None:
            self._advance(batch)

    def _next(self, last: _Batch | None) -> _Batch | None:
        """Wait for the batch whose turn it is after ``last``; None: none will come."""
        with self._changed:
            while True:
                now = time.monotonic()
                is_over = self._stop_at is not None and now >= self._stop_at
                for job in [*self._waiting, *(job for b in self._begun for job in b.jobs)]:
                    if is_over:
                        self._finish(job, error=StoppedError("the server stops"))
                    elif now >= job.deadline:
                        self._finish(job, error=DeadlineError("not computed in time"))
                while jobs := self._take():
                    self._begin(jobs)
                if last is not None and last in self._begun:  # behind those that have just begun
                    self._begun.remove(last)
                    self._begun.append(last)
                if self._begun:
                    return self._begun[0]
                if self._stop_at is not None:
                    return None
                self._changed.wait()

    def _take(self) -> list[_Job]:
        """Take the oldest job and those behind it that fit, if there is room for another batch."""
        held = sum(min(batch.num_rows, self.max_rows) for batch in self._begun)
        if not self._waiting:
            return []
        first = self._waiting[0]
        if held + min(first.num_rows, self.max_rows) > BATCHES_AT_ONCE * self.max_rows:
            return []
        taken, rows = [self._waiting.popleft()], first.num_rows
        for job in list(self._waiting):
            if (
                job.key is not None
                and job.key == first.key
                and job.length <= first.length <= 2 * job.length
                and rows + job.num_rows <= self.max_rows
            ):
                self._waiting.remove(job)
                taken.append(job)
                rows += job.num_rows
        return taken

    def _begin(self, jobs: list[_Job]) -> None:
        batch = _Batch(jobs=jobs, work=self.compute([job.request for job in jobs]))
        self._begun.append(batch)
        self.metrics.add("batches_total")
        self.metrics.add("batched_requests_total", len(jobs))
        self.metrics.add("batched_rows_total", batch.num_rows)
        for job in jobs:
            self.metrics.observe("queue_wait_seconds", batch.began - job.submitted)

    def _advance(self, batch: _Batch) -> None:
        """Compute one turn of a batch, and hand out its results when it is done."""
        results: list[Any] = [None] * len(batch.jobs)
        failure: Exception | None = None
        end = time.monotonic() + self.turn_seconds
        try:
            while not all(job.future.done() for job in batch.jobs):
                next(batch.work)
                if time.monotonic() >= end:
                    return
            batch.work.close()
        except StopIteration as stop:
            results = stop.value
        except Exception as error:
            failure = error
        with self._changed:
            self._begun.remove(batch)
            for job, result in zip(batch.jobs, results, strict=True):
                if failure is None or len(batch.jobs) == 1:
                    self._finish(job, result=result, error=failure)
                elif not job.future.done():  # one bad request must not cost the others theirs
                    self._begin([job])

    def _finish(self, job: _Job, *, result: Any = None, error: BaseException | None = None) -> None:
        """Hand over the first result or error of a job; later ones are too late."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
            job.request = None
            with contextlib.suppress(InvalidStateError):
                job.future.set_result(result) if error is None else job.future.set_exception(error)
