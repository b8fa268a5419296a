"""Long computations that pause, so that their caller can stop them or do something else."""

import functools
from collections.abc import Callable, Generator
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
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


def without_pause(function: Callable[[], T]) -> Pausing[T]:
    """Wrap a plain call as a pausing computation that never pauses."""
    yield from ()
    return function()


def unpaused(function: Callable[P, Pausing[T]]) -> Callable[P, T]:
    """Turn a function that pauses into one that computes the same without a pause."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return finish(function(*args, **kwargs))

    return call
