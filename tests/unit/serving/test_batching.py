"""What is computed together, in which order, and what is not computed at all."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tokenwm.errors import TokenwmError
from tokenwm.imagination.pausing import Pausing
from tokenwm.serving.batching import (
    Batcher,
    DeadlineError,
    QueueFullError,
    StoppedError,
    UnwantedError,
)


def submit(
    batcher: Batcher,
    key: str | None,
    num_rows: int,
    length: int,
    request: Any,
    timeout: float,
    is_wanted: Callable[[], bool] | None = None,
) -> Any:
    """Wait for a result on this thread."""

    async def leave() -> None:
        while is_wanted is not None and is_wanted():
            await asyncio.sleep(0.01)

    async def wait() -> Any:
        gone = None if is_wanted is None else leave()
        return await batcher.submit(key, num_rows, length, request, timeout, gone)

    return asyncio.run(wait())


class Slow:
    """Computes by doubling, and waits until it is let go."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.began = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, asked: list[int]) -> Pausing[list[int]]:
        yield from ()
        self.began.set()
        self.gate.wait(20)
        self.batches.append(list(asked))
        if 13 in asked:
            raise TokenwmError("unlucky")
        return [2 * number for number in asked]


def test_what_waits_together_is_computed_together() -> None:
    slow = Slow()
    batcher = Batcher(slow, max_rows=4, max_queued_rows=20)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(submit, batcher, "a", 1, 5, 1, 20)
        slow.began.wait(20)
        waiting = []
        for key, rows, length, number in [
            ("a", 1, 3, 2),  # the next batch's first
            ("b", 1, 3, 3),  # another key
            ("a", 2, 3, 4),  # fits
            ("a", 1, 4, 5),  # longer than the first
            ("a", 2, 2, 13),  # too many rows for this batch
            (None, 1, 1, 7),  # alone
        ]:
            waiting.append(pool.submit(submit, batcher, key, rows, length, number, 20))
            while batcher.queued_rows < sum((1, 1, 2, 1, 2, 1)[: len(waiting)]):
                time.sleep(0.001)
        slow.gate.set()
        assert first.result() == 2
        for future, expected in zip(waiting, [4, 6, 8, 10, None, 14], strict=True):
            if expected is None:
                with pytest.raises(TokenwmError, match="unlucky"):
                    future.result()
            else:
                assert future.result() == expected
    assert slow.batches == [[1], [2, 4], [3], [5, 13], [7], [5], [13]]
    batcher.close()


def test_a_full_queue_and_a_deadline_are_errors() -> None:
    slow = Slow()
    batcher = Batcher(slow, max_rows=4, max_queued_rows=2)
    with ThreadPoolExecutor(4) as pool:
        running = pool.submit(submit, batcher, "a", 1, 1, 1, 20)
        slow.began.wait(20)
        late = pool.submit(submit, batcher, "a", 2, 1, 2, 0.2)
        while batcher.queued_rows < 2:
            time.sleep(0.001)
        with pytest.raises(QueueFullError, match="2 rows are waiting and at most 2 may"):
            submit(batcher, "a", 1, 1, 3, 20)
        with pytest.raises(DeadlineError, match="no result within 0.2 s"):
            late.result()
        assert batcher.queued_rows == 0
        slow.gate.set()
        assert running.result() == 2
    batcher.close()
    assert slow.batches == [[1]]  # what nobody waits for is not computed
    assert not batcher.is_alive


def test_a_request_that_is_given_up_does_not_stop_the_others() -> None:
    """Requests hold arrays, which do not compare."""
    gate = threading.Event()
    began = threading.Event()

    def compute(asked: list[Any]) -> Pausing[list[Any]]:
        began.set()
        yield from ()
        gate.wait(20)
        return [2 * array for array in asked]

    batcher = Batcher(compute, max_rows=4, max_queued_rows=20)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(submit, batcher, "a", 1, 1, np.arange(3), 20)]
        began.wait(20)
        for length, timeout in [(3, 20.0), (4, 20.0), (4, 0.2), (4, 0.2)]:
            futures.append(pool.submit(submit, batcher, "a", 1, length, np.arange(3), timeout))
            while batcher.queued_rows < len(futures) - 1:
                time.sleep(0.001)
        for late in futures[3:]:
            with pytest.raises(DeadlineError):
                late.result()
        gate.set()
        for future in futures[:3]:
            assert (future.result() == 2 * np.arange(3)).all()
    assert batcher.is_alive
    batcher.close()


class Chunks:
    """Computes as many chunks as it is asked for, each as long as the test lets it."""

    def __init__(self) -> None:
        self.turn = threading.Semaphore(0)
        self.began = threading.Event()
        self.done: list[str] = []
        self.closed: list[str] = []

    def __call__(self, asked: list[tuple[str, int]]) -> Pausing[list[str]]:
        name = "+".join(one[0] for one in asked)
        self.began.set()
        try:
            for chunk in range(max(one[1] for one in asked)):
                if chunk:
                    yield
                assert self.turn.acquire(timeout=20)
                self.done.append(name)
        except GeneratorExit:
            self.closed.append(name)
            raise
        return [one[0] for one in asked]

    def let(self, count: int) -> None:
        """Have so many chunks computed."""
        wanted = len(self.done) + count
        self.turn.release(count)
        while len(self.done) < wanted:
            time.sleep(0.001)


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_short_request_waits_for_a_chunk_of_a_long_one() -> None:
    chunks = Chunks()
    batcher = Batcher(chunks, turn_seconds=0, max_rows=4, max_queued_rows=20)
    with ThreadPoolExecutor(4) as pool:
        long = pool.submit(submit, batcher, "a", 1, 100, ("long", 100), 20)
        chunks.let(3)
        short = pool.submit(submit, batcher, "a", 1, 1, ("short", 1), 20)
        wait_until(lambda: batcher.queued_rows == 1)
        chunks.let(2)
        assert short.result() == "short"
        assert not long.done()
        assert batcher.running_seconds > 0
        chunks.let(96)
        assert long.result() == "long"
        assert chunks.done[:6] == ["long"] * 4 + ["short"] + ["long"]
    batcher.close()


def test_what_is_too_late_or_unwanted_is_dropped_between_chunks() -> None:
    chunks, wanted = Chunks(), threading.Event()
    wanted.set()
    batcher = Batcher(chunks, turn_seconds=0, max_rows=4, max_queued_rows=20)
    with ThreadPoolExecutor(4) as pool:
        late = pool.submit(submit, batcher, "a", 1, 9, ("late", 9), 0.3)
        chunks.let(1)
        with pytest.raises(DeadlineError, match="no result within 0.3 s"):
            late.result()
        chunks.let(1)  # the chunk that it was in the middle of
        wait_until(lambda: chunks.closed == ["late"])
        gone = pool.submit(submit, batcher, "a", 1, 9, ("gone", 9), 20, wanted.is_set)
        chunks.let(1)
        queued = pool.submit(submit, batcher, "b", 3, 9, ("queued", 9), 20, wanted.is_set)
        wait_until(lambda: batcher.queued_rows == 3)
        wanted.clear()
        for future in (gone, queued):
            with pytest.raises(UnwantedError, match="the client has gone"):
                future.result()
        assert batcher.queued_rows == 0
        chunks.let(1)
        wait_until(lambda: chunks.closed == ["late", "gone"])
        assert batcher.running_seconds == 0
    batcher.close()
    assert chunks.done == ["late"] * 2 + ["gone"] * 2


def test_no_more_begins_than_memory_is_meant_for() -> None:
    chunks = Chunks()
    batcher = Batcher(chunks, turn_seconds=0, max_rows=2, max_queued_rows=99)
    with ThreadPoolExecutor(8) as pool:
        futures = []
        for number in range(6):  # larger than a batch: held part by part
            asked = (None, 5, 2, (str(number), 2), 20)
            futures.append(pool.submit(submit, batcher, *asked))
            chunks.began.wait(20)
            wait_until(lambda: batcher.queued_rows == 5 * (len(futures) - 1))
        chunks.let(1)
        wait_until(lambda: batcher.queued_rows == 5 * 2)
        chunks.let(11)
        assert chunks.done[:5] == list("01230")
        assert [future.result() for future in futures] == list("012345")
    batcher.close()


def test_closing_refuses_what_waits_and_ends_what_has_begun_after_a_while() -> None:
    chunks = Chunks()
    batcher = Batcher(chunks, turn_seconds=0, max_rows=1, max_queued_rows=99)
    with ThreadPoolExecutor(8) as pool:
        running = pool.submit(submit, batcher, None, 1, 1, ("running", 9), 20)
        chunks.let(1)
        waiting = pool.submit(submit, batcher, None, 1, 1, ("waiting", 9), 20)
        wait_until(lambda: batcher.queued_rows == 1)
        closing = pool.submit(batcher.close, 0.2)
        with pytest.raises(StoppedError):
            waiting.result()
        assert not running.done()
        time.sleep(0.25)
        chunks.let(1)
        with pytest.raises(StoppedError):
            running.result()
        closing.result()
        with pytest.raises(StoppedError, match="the server stops"):
            submit(batcher, None, 1, 1, ("late", 1), 20)
    assert chunks.closed == ["running"]
    assert not batcher.is_alive
