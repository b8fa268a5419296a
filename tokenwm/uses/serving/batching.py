"""One worker, many callers: what waits together and fits together is computed together."""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from tokenwm.errors import TokenwmError


class QueueFullError(TokenwmError):
    """More is waiting than may wait."""


class DeadlineError(TokenwmError):
    """A result did not come in time."""


@dataclass(kw_only=True, eq=False)  # requests hold arrays, which do not compare
class Job:
    """Something to compute.

    Attributes:
        key: Jobs with equal keys can be computed together; None: alone.
        num_rows: How much of a batch it takes.
        length: A job joins another that is at least as long, which so never waits for it.
        request: What to compute.
        deadline: By :func:`time.monotonic`; a job that has not begun by then is dropped.
    """

    key: Hashable
    num_rows: int
    length: int
    request: Any
    deadline: float
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: BaseException | None = None


class Batcher:
    """Computes jobs on one thread, first come first served, others that fit along with the first.

    Args:
        compute: Requests of jobs with one key → their results, in order.
        max_rows: Most rows of a batch; a larger job is computed alone.
        max_queued_rows: Most rows that may wait.
    """

    def __init__(
        self, compute: Callable[[list[Any]], list[Any]], *, max_rows: int, max_queued_rows: int
    ) -> None:
        self.compute, self.max_rows, self.max_queued_rows = compute, max_rows, max_queued_rows
        self.num_batches = self.num_jobs = self.num_rows = 0
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._worker.start()

    @property
    def queued_rows(self) -> int:
        """Rows that wait."""
        with self._changed:
            return sum(job.num_rows for job in self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether jobs are still being computed."""
        return self._worker.is_alive()

    def submit(
        self, key: Hashable, num_rows: int, length: int, request: Any, timeout: float
    ) -> Any:
        """Wait for a result. From any thread.

        Raises:
            QueueFullError: Too much is waiting.
            DeadlineError: The result did not come within ``timeout`` seconds.
            Exception: Whatever computing raised.
        """
        deadline = time.monotonic() + timeout
        job = Job(key=key, num_rows=num_rows, length=length, request=request, deadline=deadline)
        with self._changed:
            queued = self.queued_rows
            if self._closed or (self._waiting and queued + num_rows > self.max_queued_rows):
                raise QueueFullError(
                    f"{queued} rows are waiting and at most {self.max_queued_rows} may; "
                    "try again later"
                )
            self._waiting.append(job)
            self._changed.notify()
        if not job.done.wait(timeout):
            with self._changed:
                if job in self._waiting:
                    self._waiting.remove(job)
            raise DeadlineError(f"no result within {timeout:g} s")
        if job.error is not None:
            raise job.error
        return job.result

    def close(self) -> None:
        """Compute what is waiting, then stop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._worker.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                jobs = self._take()
            if jobs:
                self._run(jobs)

    def _take(self) -> list[Job]:
        """The oldest job and those behind it that fit; drops what is too late."""
        now, rows = time.monotonic(), 0
        taken: list[Job] = []
        for job in list(self._waiting):
            if job.deadline < now:
                self._waiting.remove(job)
                self._finish(job, error=DeadlineError("the request waited too long"))
            elif not taken or (
                job.key is not None
                and job.key == taken[0].key
                and job.length <= taken[0].length
                and rows + job.num_rows <= self.max_rows
            ):
                self._waiting.remove(job)
                taken.append(job)
                rows += job.num_rows
        return taken

    def _run(self, jobs: list[Job]) -> None:
        self.num_batches += 1
        self.num_jobs += len(jobs)
        self.num_rows += sum(job.num_rows for job in jobs)
        try:
            results = self.compute([job.request for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                self._finish(jobs[0], error=error)
            else:  # one bad request must not cost the others their results
                for job in jobs:
                    self._run([job])
            return
        for job, result in zip(jobs, results, strict=True):
            self._finish(job, result=result)

    @staticmethod
    def _finish(job: Job, *, result: Any = None, error: BaseException | None = None) -> None:
        job.result, job.error = result, error
        job.done.set()
