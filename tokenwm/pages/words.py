"""Small pieces of sentences."""

from collections.abc import Sequence


def count(number: int, noun: str) -> str:
    """``1 episode``, ``1,200 episodes``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def seconds(value: float) -> str:
    """``0.033 s``, ``0.5 s``, ``2 s``, ``100 s``: two digits, or whole seconds."""
    return f"{value:.2g} s" if value < 9.95 else f"{value:.0f} s"


def few(names: Sequence[str], shown: int = 5) -> str:
    """The first names of a list, and the number of the others."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
