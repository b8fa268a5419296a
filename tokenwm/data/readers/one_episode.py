"""The border around one episode: whatever goes wrong with it costs that episode and no other."""

import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

import tokenwm
from tokenwm.errors import EpisodeError, TokenwmError

Item = TypeVar("Item")
Result = TypeVar("Result")
PACKAGE = Path(tokenwm.__file__).parent
MOST_TEXT = 400
"""Characters of a reason that was not written by us; it may hold a stranger's data."""


@contextmanager
def costs_one_episode(key: str, *, passing: type[TokenwmError] = EpisodeError) -> Iterator[None]:
    """Make an EpisodeError of whatever is raised within, a MemoryError too; Ctrl-C passes.

    Args:
        key: The episode, for the message.
        passing: Errors that pass as they are: those that a reader raises on purpose.

    Raises:
        EpisodeError: Names the class of the error and the place where it arose.
    """
    try:
        # A number that overflows becomes infinite, which the quality rules find.
        with np.errstate(all="ignore"):
            yield
    except passing as error:
        # The reason is kept in files, and names of files in it need not be UTF-8.
        if isinstance(error, EpisodeError) and writable(str(error)) != str(error):
            raise EpisodeError(writable(str(error))) from error
        raise
    except TokenwmError as error:
        raise EpisodeError(writable(f"episode {key}: {error}")) from error
    except Exception as error:
        told = f"{type(error).__name__} at {place_of(error)}: {str(error) or 'without a word'}"
        raise EpisodeError(f"episode {key} cannot be used: {writable(told)[:MOST_TEXT]}") from error


def readable(
    items: Iterable[Item],
    read: Callable[[Item], Result],
    problems: list[EpisodeError] | None = None,
) -> Iterator[Result]:
    """Read items one after the other; the errors of bad ones are added to ``problems``."""
    for item in items:
        try:
            with costs_one_episode(str(item)):
                result = read(item)
        except EpisodeError as error:
            if problems is not None:
                problems.append(error)
            continue
        yield result


def place_of(error: BaseException) -> str:
    """Place where an error arose, ``file:line``: the last in this package, else anywhere."""
    places = [
        (frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    ours = [(name, line) for name, line in places if Path(name).is_relative_to(PACKAGE)]
    name, line = (ours or places)[-1]
    path = Path(name)
    return f"{path.relative_to(PACKAGE.parent) if ours else path.name}:{line}"


def writable(text: str) -> str:
    """A text with what cannot be written as UTF-8 escaped; file names and JSON may hold such."""
    return text.encode("utf-8", errors="backslashreplace").decode()
