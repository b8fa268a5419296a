"""Columns of Arrow tables as NumPy arrays."""

from typing import Any

import numpy as np
import pyarrow
from numpy.typing import NDArray


def to_numbers(column: pyarrow.Array) -> NDArray[Any]:
    """A column of numbers, or of lists of them however deep, in the file's own type.

    Args:
        column: ``N`` rows.

    Returns:
        ``(N, ...)``, an axis for each level of lists. What is missing, also an empty list among
        others, is NaN, and then whole numbers are float64.

    Raises:
        ValueError: It holds something else, or lists of different lengths; the message goes
            behind the name of the column.
    """
    if not pyarrow.types.is_nested(column.type):
        return _flat_numbers(column)
    is_there = np.asarray(column.is_valid())
    lengths = np.zeros(len(column), np.int64)
    lengths[is_there] = _lengths(column.drop_null())
    if lengths.any():
        is_there = lengths > 0
    present = column.filter(pyarrow.array(is_there)) if not is_there.all() else column
    lengths = lengths[is_there]
    if len(lengths) and (lengths != lengths[0]).any():
        raise ValueError("has rows of different lengths")
    inner = to_numbers(present.flatten())
    width = int(lengths[0]) if len(lengths) else 0
    rows = inner.reshape(len(present), width, *inner.shape[1:])
    if is_there.all():
        return rows
    dtype = rows.dtype if rows.dtype.kind == "f" else np.float64
    every = np.full((len(column), *rows.shape[1:]), np.nan, dtype=dtype)
    every[is_there] = rows
    return every


def _lengths(lists: pyarrow.Array) -> NDArray[Any]:
    kind = lists.type
    if pyarrow.types.is_fixed_size_list(kind):
        return np.full(len(lists), kind.list_size)
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return np.asarray(lists.value_lengths())
    raise ValueError(f"holds {kind}; expected numbers")


def _flat_numbers(column: pyarrow.Array) -> NDArray[Any]:
    kind = column.type
    if pyarrow.types.is_boolean(kind) and column.null_count:
        column = column.cast(pyarrow.int8())
    elif not (
        pyarrow.types.is_floating(kind)
        or pyarrow.types.is_integer(kind)
        or pyarrow.types.is_boolean(kind)
    ):
        raise ValueError(f"holds {kind}; expected numbers")
    return np.asarray(column.to_numpy(zero_copy_only=False))  # missing ones are NaN there
