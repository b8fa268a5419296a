"""Long computations that pause, so that their caller can stop them or do something else."""

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")

Pausing = Generator[None, None, T]
"""A generator that computes a ``T``; it yields nothing, only the chance to stop."""


def finish(work: Pausing[T]) -> T:
    """Compute without a pause."""
    while True:
        try:
            next(work)
        except StopIteration as stop:
            result: T = stop.value
            return result
