"""Checks of what comes over the wire: arrays, and options of JSON."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.errors import TokenwmError


def check_at_most(count: int, most: int, text: str) -> None:
    """Check a number of what a text names, such as ``rows are imagined``.

    Raises:
        TokenwmError: It is larger.
    """
    if count > most:
        what, _, verb = text.rpartition(" are ")
        raise TokenwmError(f"{count} {what} asked; at most {most} are {verb}")


def check_names(
    kind: str, given: Mapping[str, Any], needed: Collection[str], allowed: Collection[str] = ()
) -> None:
    """Check that all that is needed is given, and nothing that is unknown.

    Raises:
        TokenwmError: Something is missing or unknown.
    """
    missing, unknown = {*needed} - {*given}, {*given} - {*needed, *allowed}
    if missing or unknown:
        raise TokenwmError(
            f"{kind}s missing: {sorted(missing)}; unknown: {sorted(unknown)}; "
            f"known: {sorted({*needed, *allowed})}"
        )


def check_array(
    name: str, array: NDArray[Any], shape: tuple[int | None, ...], dtype: Any = None
) -> None:
    """Check an array: its shape (None: any size) and type (None: numbers), finite, and not empty.

    Raises:
        TokenwmError: It is something else.
    """
    fits = array.ndim == len(shape) and all(
        wanted is None or wanted == size for wanted, size in zip(shape, array.shape, strict=True)
    )
    is_type = array.dtype.kind in "fiu" if dtype is None else array.dtype == dtype
    if not fits or not is_type:
        wanted = ", ".join("·" if size is None else str(size) for size in shape)
        raise TokenwmError(
            f"{name} has shape {array.shape} and type {array.dtype}; expected ({wanted}) "
            f"{np.dtype(dtype).name if dtype is not None else 'numbers'}"
        )
    if array.shape[0] < 1:
        raise TokenwmError(f"{name} has no row")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise TokenwmError(f"{name} has NaN or infinite values; only finite values can be binned")


def number(options: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    """An option that is a number in [low, high].

    Raises:
        TokenwmError: It is something else.
    """
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise TokenwmError(f"{name}={value!r}; a number in [{low:g}, {high:g}]")
    return float(value)


def whole_number(
    options: Mapping[str, Any], name: str, default: int | None, low: int, high: int
) -> Any:
    """An option that is a whole number in [low, high], or None where that is its default.

    Raises:
        TokenwmError: It is something else.
    """
    value = options.get(name, default)
    if value is not None and (type(value) is not int or not low <= value <= high):
        raise TokenwmError(f"{name}={value!r}; a whole number in [{low}, {high}]")
    return default if value is None else value
