"""Comparison of what a dataset declares with what is there, shared by the readers."""

from collections.abc import Sequence
from typing import Any

from tokenwm.data.readers.base import Gap
from tokenwm.pages.words import few


def compare(
    where: str, what: str, declared: Any, found: int, *, missing: Sequence[str] = ()
) -> list[Gap]:
    """A gap if a declared number differs from the number found.

    Args:
        where: What declares it, for example a file.
        what: What is counted; those that are missing count in the verdict if it is ``episodes``.
        declared: The number, which some write as a text or with a point behind it; anything but a
            whole number declares nothing.
        found: The number found.
        missing: Names of those that are missing, as far as they are known.
    """
    try:
        total = None if isinstance(declared, bool) else float(declared)
    except (TypeError, ValueError, OverflowError):
        total = None
    if total is None or not total.is_integer():
        return []
    declared = int(total)
    lost = declared - found
    if lost == 0:
        return []
    text = f"{where} declares {declared:,} {what}, and {found:,} are there"
    if lost > 0:
        verb = "is" if lost == 1 else "are"
        text += f": {lost:,} of {declared:,} {verb} missing"
        text += f" ({few(missing)})" if missing else ""
    return [Gap(text=text, num_missing=max(0, lost) if what == "episodes" else 0)]
