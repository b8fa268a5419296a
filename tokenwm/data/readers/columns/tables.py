"""Tables beside videos: CSV, parquet or NPZ, one for each episode or one for all.

Columns such as ``action_0, action_1, …`` are one column ``action`` here.
"""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from tokenwm.data.readers.columns.arrays import MAX_NUMBERS, column_of
from tokenwm.data.readers.columns.arrow import to_numbers
from tokenwm.data.readers.columns.columns import Column
from tokenwm.data.readers.columns.npz import read_arrays, read_headers
from tokenwm.data.readers.columns.parquet import read_groups
from tokenwm.data.readers.paths import read_small
from tokenwm.errors import EpisodeError, SourceError

logger = logging.getLogger(__name__)

MAX_TABLE_BYTES = 2**31
"""Largest size of one table, which may be that of all episodes."""
SUFFIXES = (".csv", ".parquet", ".npz")
NUMBERED = re.compile(r"(?P<name>.+?)[._]?\[?(?P<number>\d{1,6})\]?")
Table = Mapping[str, NDArray[Any]]
"""Column → ``(N,)`` text, or ``(N, ...)`` numbers."""


def read_table(folder: Path, path: Path) -> Table:
    """Read all of a table; the last two are kept, since one may hold many episodes.

    Args:
        folder: The dataset.
        path: A file in it, of a suffix in :data:`SUFFIXES`.

    Raises:
        EpisodeError: It is damaged, absurdly large, or lies outside the folder.
    """
    try:
        about = path.stat()
        return _read(folder, path, about.st_mtime_ns, about.st_size)
    except (SourceError, OSError, ValueError, pyarrow.ArrowException) as error:
        if isinstance(error, EpisodeError):
            raise
        raise EpisodeError(f"{path} cannot be read: {error}") from error


def columns_of(table: Table) -> dict[str, Column]:
    """Columns of a table: numbers, pictures, or text, which is not used as such."""
    return {name: column_of(array.dtype, array.shape[1:], name) for name, array in table.items()}


@lru_cache(maxsize=2)
def _read(folder: Path, path: Path, _time: int, _size: int) -> Table:
    if path.suffix == ".npz":
        headers = read_headers(path)
        return read_arrays(path, [name for name, header in headers.items() if header.shape])
    content = pyarrow.BufferReader(read_small(folder, path, MAX_TABLE_BYTES))
    if path.suffix == ".csv":
        table = pyarrow.csv.read_csv(content, pyarrow.csv.ReadOptions(use_threads=False))
    else:
        with pyarrow.parquet.ParquetFile(content) as file:
            names = file.schema_arrow.names
            table = read_groups(file, range(file.num_row_groups), names, str(path), MAX_NUMBERS)
    names = table.column_names
    doubled = {name for name in names if names.count(name) > 1}
    if doubled - {""}:
        logger.warning("%s: columns of the same name are not used: %s", path, sorted(doubled))
    return _grouped({n: _to_array(table.column(n)) for n in names if n not in doubled})


def _to_array(column: Any) -> NDArray[Any]:
    """A column; rows with missing values are masked, since a table may hold many episodes."""
    column = column.combine_chunks()
    missing = np.asarray(column.is_null().to_numpy(zero_copy_only=False)).astype(bool)
    values = _without_missing(column.drop_null())
    if not missing.any() or not len(values):
        return values if len(values) else np.array([""] * len(column))
    whole = np.zeros((len(column), *values.shape[1:]), dtype=values.dtype)
    whole[~missing] = values
    mask = np.broadcast_to(missing.reshape(-1, *[1] * (whole.ndim - 1)), whole.shape)
    return np.ma.masked_array(whole, mask)


def _without_missing(column: Any) -> NDArray[Any]:
    """Numbers; what cannot be numbers is text, of which we have no use but as labels and tasks."""
    try:
        return to_numbers(column)
    except ValueError:
        texts = [str(value) for value in column.to_pylist()]
        numbers = _mostly_real(texts)
        return np.array(texts) if numbers is None else numbers


def _mostly_real(texts: Sequence[str]) -> NDArray[np.float64] | None:
    """The real numbers that most texts are, NaN for the others; None if most are something else.

    A slip in one row of a table for all costs its episode. Whole numbers may be labels, and stay
    texts.
    """
    numbers = np.array([_number(text) for text in texts])
    is_number = np.isfinite(numbers)
    has_point = any("." in text for text, good in zip(texts, is_number, strict=True) if good)
    return numbers if has_point and is_number.mean() > 0.5 else None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _grouped(arrays: dict[str, NDArray[Any]]) -> Table:
    """Put columns that are numbered from 0 side by side under their common name."""
    parts: dict[str, dict[int, str]] = {}
    for name, array in arrays.items():
        match = NUMBERED.fullmatch(name)
        if match and array.ndim == 1 and array.dtype.kind in "biuf":
            parts.setdefault(match["name"], {})[int(match["number"])] = name
    table = dict(arrays)
    for common, numbered in parts.items():
        if sorted(numbered) == list(range(len(numbered))) and common not in arrays:
            names = [numbered[i] for i in range(len(numbered))]
            table[common] = np.ma.column_stack([table.pop(name) for name in names])
    return table
