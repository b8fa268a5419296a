"""Work in parts that fit into memory; how large those are is found by trying and remembered."""

import logging
from collections.abc import Callable, Hashable
from functools import partial
from typing import TypeVar

from torch import OutOfMemoryError

from tokenwm.imagination.pausing import Pausing, finish, without_pause
from tokenwm.tokenizer.frames import FrameTokenizer

logger = logging.getLogger(__name__)
T = TypeVar("T")

TOLERANCE = 8
"""The search ends when what fits and what does not differ by one part in so many."""


class RowLimits:
    """Most rows of each kind of work that fit into memory.

    Rows are halved until they fit. Then the search goes on between what fitted and what did not,
    with the rows that are still to be done, so that only attempts that fail are for nothing: two or
    three in all. A limit is remembered as long as the object lives; :meth:`forget` it when there is
    more memory.
    """

    def __init__(self) -> None:
        self._fit: dict[Hashable, int] = {}  # kind of work → most rows that fitted
        self._fail: dict[Hashable, int] = {}  # kind of work → fewest rows that did not fit

    def forget(self) -> None:
        """Try everything anew."""
        self._fit.clear()
        self._fail.clear()

    def most_rows(self, kind: Hashable) -> int | None:
        """Most rows that are known to fit, or None if all that were tried did."""
        return self._fit[kind] if kind in self._fail and kind in self._fit else None

    def in_parts(
        self,
        kind: Hashable,
        what: str,
        num_rows: int,
        compute: Callable[[slice], Pausing[T]],
        free_memory: Callable[[], bool],
        at_most: int,
        group: int = 1,
    ) -> Pausing[list[T]]:
        """Compute rows, all at once or in parts, with a pause between two parts.

        Args:
            kind: What else the memory depends on: a limit holds for work of the same kind.
            what: Name of the rows, for the log.
            num_rows: Number of rows.
            compute: Computes some of them.
            free_memory: Called when memory runs out; True if it freed some, so that trying again
                as many rows makes sense.
            at_most: Most rows to try at a time.
            group: Neighbouring rows that share something: parts have whole groups, as long as one
                fits.

        Raises:
            RuntimeError: A single row does not fit.
        """
        is_new, parts, first = kind not in self._fail, list[T](), 0
        while first < num_rows:
            if first > 0:
                yield
            count = self._next(kind, num_rows - first, at_most)
            if count < group or first % group:
                count = min(count, group - first % group)
            else:
                count -= count % group
            rows = slice(first, first + count)
            part = yield from _attempt(partial(compute, rows), free_memory, is_last=count == 1)
            if part is None:
                self._fail[kind] = count
                self._fit[kind] = min(count - 1, self._fit.get(kind, 0))
            else:
                parts += part
                self._fit[kind] = max(count, self._fit.get(kind, 0))
                first += count
        if is_new and kind in self._fail:
            logger.warning(
                "%d %s do not fit into memory at once; they are done in parts of at most %d",
                num_rows,
                what,
                self._fit[kind],
            )
        return parts

    def _next(self, kind: Hashable, num_rows: int, at_most: int) -> int:
        """The number of rows to try next, of those that are left."""
        num_rows, fit = min(num_rows, at_most), self._fit.get(kind, 0)
        if num_rows <= fit or kind not in self._fail:
            return num_rows
        fail = self._fail[kind]
        if fail - fit > max(1, fail // TOLERANCE):
            return min(num_rows, (fit + fail) // 2)
        num_parts = -(-num_rows // fit)
        return -(-num_rows // num_parts)  # equal parts: the last would else be small


def within_pixel_memory(
    tokenizer: FrameTokenizer, free_memory: Callable[[], bool], compute: Callable[[], T]
) -> T:
    """Encode or decode; with half the ``pixel_memory``, for good, each time memory runs out.

    Raises:
        RuntimeError: A single frame does not fit.
    """
    before, result = tokenizer.pixel_memory, None
    while result is None:
        is_last = tokenizer.frames_at_once == 1
        try:
            result = finish(_attempt(lambda: without_pause(compute), free_memory, is_last=is_last))
        except (RuntimeError, MemoryError):
            tokenizer.pixel_memory = before
            raise
        if result is None:
            tokenizer.pixel_memory //= 2
    if tokenizer.pixel_memory < before:
        logger.warning(
            "frames did not fit into memory with pixel_memory=%d bytes; it is %d now",
            before,
            tokenizer.pixel_memory,
        )
    return result[0]


def _attempt(
    compute: Callable[[], Pausing[T]], free_memory: Callable[[], bool], *, is_last: bool
) -> Pausing[tuple[T] | None]:
    """Compute, again where memory could be freed; None if there is too little of it.

    Raises:
        RuntimeError: There is too little and this is the last attempt, or something else failed.
    """
    while True:
        try:
            return ((yield from compute()),)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failed = error.with_traceback(None) if is_last else None
        # Outside the except clause: its traceback, and so the memory, is gone here.
        if not free_memory():
            if failed is not None:
                raise failed
            return None


def is_out_of_memory(error: Exception) -> bool:
    """True if an error says that memory ran out: a GPU's, or the CPU's in torch or oneDNN.

    oneDNN's message can have other causes; then a single row fails too, and the error is raised.
    """
    if isinstance(error, OutOfMemoryError | MemoryError):
        return True
    signs = ("DefaultCPUAllocator", "bad_alloc", "could not create a primitive")
    return any(sign in str(error) for sign in signs)
