"""Small pieces of sentences."""

from collections.abc import Sequence


def count(number: int, noun: str) -> str:
    """``1 episode``, ``1,200 episodes``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def few(names: Sequence[str], shown: int = 5) -> str:
    """The first names of a list, and the number of the others."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
